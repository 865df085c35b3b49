//! Connections to the services.
//!
//! Owns addresses, connection time-outs and the message for a service that is not there. Must never retry by itself: what
//! may be repeated is the command's decision.

use std::{str::FromStr, time::Duration};

use tonic::transport::{Channel, Endpoint};
use votestream_proto::v1::{
    ingest_service_client::IngestServiceClient, poll_service_client::PollServiceClient,
    results_service_client::ResultsServiceClient,
};

use crate::failure::{Failure, innermost};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for an answer to a short call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often an idle connection is tried, so that a vanished host is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Address of a service: `http://host:port`, or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target(String);

impl Target {
    /// The address as a URL.
    pub(crate) fn url(&self) -> &str {
        &self.0
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = url.trim_end_matches('/').to_owned();
        let expected = || "expected a URL such as http://127.0.0.1:50051".to_owned();
        let uri: tonic::transport::Uri = url.parse().map_err(|_| expected())?;
        if uri.host().is_none_or(str::is_empty) {
            return Err(expected());
        }
        if uri.scheme_str() != Some("http") {
            return Err("only http:// is supported; put a TLS proxy in between".to_owned());
        }
        Ok(Self(url))
    }
}

/// Connects to a service; `name` is what a message calls it.
pub(crate) async fn connect(name: &str, target: &Target) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(target.0.clone())
        .map_err(|error| Failure::usage(format!("{}: {error}", target.0)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE);
    endpoint.connect().await.map_err(|error| {
        Failure::failed(format!(
            "cannot reach the {name} service at {}: {} (start one with `votestream up`)",
            target.0,
            innermost(&error)
        ))
    })
}

/// Client of the ingest service.
pub(crate) async fn ingest(target: &Target) -> Result<IngestServiceClient<Channel>, Failure> {
    Ok(IngestServiceClient::new(connect("ingest", target).await?))
}

/// Clients of the results and the poll service, which share a connection.
pub(crate) async fn results(
    target: &Target,
) -> Result<(ResultsServiceClient<Channel>, PollServiceClient<Channel>), Failure> {
    let channel = connect("results", target).await?;
    Ok((ResultsServiceClient::new(channel.clone()), PollServiceClient::new(channel)))
}

/// A request with a deadline.
pub(crate) fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let url = |text: &str| text.parse::<Target>().map(|target| target.0);
        assert_eq!(url("127.0.0.1:1"), Ok("http://127.0.0.1:1".into()));
        assert_eq!(url("http://host:1/"), Ok("http://host:1".into()));
        assert_eq!(url("[::1]:1"), Ok("http://[::1]:1".into()));
        assert!(url("https://host:1").is_err());
        assert!(url("http://").is_err());
        assert!(url("").is_err());
    }

    #[tokio::test]
    async fn an_absent_service_is_named_with_its_url() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target: Target = format!("127.0.0.1:{port}").parse().unwrap();
        let Err(Failure::Failed(message)) = connect("ingest", &target).await else { panic!("connected to nothing") };
        assert!(message.contains(&format!("http://127.0.0.1:{port}")), "{message}");
        assert!(message.contains("votestream up"), "{message}");
        assert!(message.contains("refused"), "{message}");
    }
}
