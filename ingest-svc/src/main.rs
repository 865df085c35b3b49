//! The `ingest-svc` process on Kinesis and DynamoDB.

use std::process::ExitCode;

use votestream_aws::{AwsConfig, Deployment, connect};
use votestream_ingest::settings::{PROGRAM, SETTLE_MAX, Settings};
use votestream_process::shell::{self, Process, ProcessError};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shell::main(&PROGRAM, Settings::read, serve)
}

async fn serve(settings: Settings, process: Process) -> Result<(), ProcessError> {
    let deployment = Deployment {
        create_with_shards: settings.engine.create_with_shards,
        writers: settings.ingest_tasks,
        ..Deployment::new(settings.engine.stream, settings.engine.table_prefix)
    };
    let ports = connect(&AwsConfig::default(), deployment).await.map_err(ProcessError::start)?;
    let listener = process.bind(settings.listen)?;
    process.serves_with(&settings.ingest.connections);
    let drain_max = settings.ingest.drain + SETTLE_MAX;
    process.run(drain_max, votestream_ingest::run(settings.ingest, ports, listener, process.shutdown())).await
}
