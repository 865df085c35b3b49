//! `SERVICE health`: asks the service that runs with the same configuration whether it serves. For health checks of
//! containers whose image holds only the service.
//!
//! Must never start anything, and never wait longer than a health check does.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{ProcessError, answer, print_out};
use crate::config::{Program, Refused, socket_addr};

/// First argument that makes the program ask instead of serve.
pub(super) const COMMAND: &str = "health";
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn main(program: &Program, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let addr = match address(program, arguments) {
        Ok(addr) => addr,
        Err(refused) => return answer(program, refused),
    };
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))
        .and_then(|runtime| runtime.block_on(ask(addr)));
    match asked {
        Ok(()) => {
            print_out(&format!("{} at {addr} serves\n", program.name));
            ExitCode::SUCCESS
        }
        Err(reason) => {
            print_out(&format!("{} at {addr}: {reason}\n", program.name));
            ExitCode::from(ProcessError::start(reason).code())
        }
    }
}

/// The address at which the service can be reached on its own machine.
fn address(program: &Program, arguments: impl Iterator<Item = OsString>) -> Result<SocketAddr, Refused> {
    let mut values = program.read(arguments, std::env::vars_os())?;
    let listen = values.get("listen", socket_addr);
    let mut addr = values.finish(listen)?;
    if addr.ip().is_unspecified() {
        addr.set_ip(if addr.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    Ok(addr)
}

async fn ask(addr: SocketAddr) -> Result<(), String> {
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|_| "no service listens there".to_owned())?;
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(channel).check(request).await.map_err(|status| status.to_string())?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            status @ (ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown) => {
                Err(format!("the service answers {}", status.as_str_name()))
            }
        }
    };
    tokio::time::timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{config::Setting, shell::Process};

    const PROGRAM: Program =
        Program { name: "test-svc", about: "", settings: &[&[Setting::optional("listen", "ADDR", "")]], others: &[] };

    #[tokio::test]
    async fn a_running_service_serves_until_it_is_told_to_stop() {
        let process = Process { shutdown: CancellationToken::new() };
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(ask(free).await.unwrap_err(), "no service listens there");
        process.serve_health(free, votestream_server::Connections::default()).await.unwrap();
        ask(free).await.unwrap();
        process.shutdown.cancel();
        let stopped = async { while ask(free).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), stopped).await.expect("it never stopped");
    }

    #[test]
    fn the_address_is_that_of_the_configuration() {
        let address = |flag: &str| address(&PROGRAM, [OsString::from(flag)].into_iter());
        assert_eq!(address("--listen=0.0.0.0:50051").unwrap(), "127.0.0.1:50051".parse().unwrap());
        assert_eq!(address("--listen=[::]:50051").unwrap(), "[::1]:50051".parse().unwrap());
        assert_eq!(address("--listen=127.0.0.2:1").unwrap(), "127.0.0.2:1".parse().unwrap());
        assert!(matches!(address("--listen=here"), Err(Refused::Mistakes(mistakes)) if mistakes.len() == 1));
    }
}
