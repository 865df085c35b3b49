//! The `tally-svc` process on Kinesis and DynamoDB.

use std::process::ExitCode;

use votestream_aws::{AwsConfig, Deployment, connect, kinesis::Reading};
use votestream_process::shell::{self, Process, ProcessError};
use votestream_server::AuditLog;
use votestream_tally::{
    TallyConfig,
    give_up::{self, Request},
    settings::{PROGRAM, Settings},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let given_up = shell::command(give_up::NAME, &give_up::PROGRAM, Request::read, give_up);
    given_up.unwrap_or_else(|| shell::main(&PROGRAM, Settings::read, serve))
}

async fn give_up(request: Request) -> Result<(), ProcessError> {
    let deployment = Deployment {
        reading: Reading::of_services(request.fan_out),
        ..Deployment::new(&request.engine.stream, &request.engine.table_prefix)
    };
    let ports = connect(&AwsConfig::default(), deployment).await.map_err(ProcessError::start)?;
    let bounds = TallyConfig::distributed().group.bounds;
    let say = |line: &str| shell::print_out(&format!("{line}\n"));
    give_up::run(&request, &ports, &bounds, say).await.map(drop).map_err(ProcessError::start)
}

async fn serve(settings: Settings, process: Process) -> Result<(), ProcessError> {
    let Settings { listen, engine, fan_out, audit_log, mut tally, drain } = settings;
    tally.audit = audit_log.as_ref().map(AuditLog::open).transpose().map_err(ProcessError::start)?.unwrap_or_default();
    let deployment = Deployment {
        create_with_shards: engine.create_with_shards,
        reading: Reading::of_services(fan_out),
        ..Deployment::new(engine.stream, engine.table_prefix)
    };
    let ports = connect(&AwsConfig::default(), deployment).await.map_err(ProcessError::start)?;
    let listener = process.bind(listen)?;
    process.serves_with(&tally.connections);
    process.run(drain, votestream_tally::run(tally, ports, listener, process.shutdown())).await
}
