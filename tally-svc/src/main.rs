//! The `tally-svc` process on Kinesis and DynamoDB.

use std::process::ExitCode;

use votestream_aws::{AwsConfig, Deployment, connect, kinesis::Reading};
use votestream_process::shell::{self, Process, ProcessError};
use votestream_server::AuditLog;
use votestream_tally::settings::{PROGRAM, Settings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shell::main(&PROGRAM, Settings::read, serve)
}

async fn serve(settings: Settings, process: Process) -> Result<(), ProcessError> {
    let Settings { listen, engine, fan_out, audit_log, mut tally, drain } = settings;
    tally.audit = audit_log.as_ref().map(AuditLog::open).transpose().map_err(ProcessError::start)?.unwrap_or_default();
    let deployment = Deployment {
        create_with_shards: engine.create_with_shards,
        reading: if fan_out { Reading::enhanced_fan_out("votestream") } else { Reading::POLLING },
        ..Deployment::new(engine.stream, engine.table_prefix)
    };
    let ports = connect(&AwsConfig::default(), deployment).await.map_err(ProcessError::start)?;
    let listener = process.bind(listen)?;
    process.serves_with(&tally.connections);
    process.run(drain, votestream_tally::run(tally, ports, listener, process.shutdown())).await
}
