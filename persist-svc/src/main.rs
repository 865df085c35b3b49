//! The `persist-svc` process on Kinesis and DynamoDB.

use std::process::ExitCode;

use votestream_aws::{AwsConfig, Deployment, connect, kinesis::Reading};
use votestream_persist::{
    PersistConfig,
    settings::{PROGRAM, Settings},
};
use votestream_process::shell::{self, Process, ProcessError};
use votestream_server::Connections;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shell::main(&PROGRAM, Settings::read, serve)
}

async fn serve(settings: Settings, process: Process) -> Result<(), ProcessError> {
    let Settings { listen, limits, tls, engine, consumer, write_units_per_second, drain } = settings;
    let deployment = Deployment {
        create_with_shards: engine.create_with_shards,
        reading: Reading::of_services(consumer.fan_out),
        write_units_per_second,
        ..Deployment::new(engine.stream, engine.table_prefix)
    };
    let ports = connect(&AwsConfig::default(), deployment).await.map_err(ProcessError::start)?;
    if let Some(addr) = listen {
        process.serve_health(addr, Connections::secured(limits, tls)).await?;
    }
    let config = PersistConfig { group: consumer.group };
    // Nobody calls it: it is ready once it may read.
    process.serves();
    process.run(drain, votestream_persist::run(config, ports, process.shutdown())).await
}
