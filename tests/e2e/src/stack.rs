//! All three services in one process, over any engine ports, on loopback ports that the system chooses.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Channel;
use votestream_core::{TimeBounds, port::Ports};
use votestream_proto::{
    VotesMessage,
    v1::{
        CastVotesResponse, ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetFinalResultsResponse,
        PollOption, ingest_service_client::IngestServiceClient, poll_service_client::PollServiceClient,
        results_service_client::ResultsServiceClient,
    },
};
use votestream_stack::{Listeners, StackConfig};

/// Short enough for tests; as long as on one machine, which may stand still for a while.
pub const TEST_BOUNDS: TimeBounds = TimeBounds {
    answer_deadline: Duration::from_secs(5),
    clock_skew_max: Duration::ZERO,
    poll_cache_life: Duration::from_millis(200),
};

/// A running stack.
pub struct Stack {
    /// Address of `IngestService`.
    pub ingest: SocketAddr,
    /// Address of `ResultsService` and `PollService`.
    pub results: SocketAddr,
    services: votestream_stack::Stack,
}

impl Stack {
    /// Starts the services with the settings for one machine.
    pub async fn start(ports: Ports, bounds: TimeBounds) -> Self {
        Self::start_with(ports, bounds, |_| ()).await
    }

    /// Starts the services with other settings.
    pub async fn start_with(ports: Ports, bounds: TimeBounds, change: impl FnOnce(&mut StackConfig)) -> Self {
        let (ingest, results) = (listener().await, listener().await);
        let addrs = (ingest.local_addr().unwrap(), results.local_addr().unwrap());
        Self::start_on(Listeners::Apart { ingest, results }, addrs, &ports, bounds, change)
    }

    /// Starts the services with other settings, all on one address.
    pub async fn start_as_one(ports: Ports, bounds: TimeBounds, change: impl FnOnce(&mut StackConfig)) -> Self {
        let listener = listener().await;
        let addr = listener.local_addr().unwrap();
        Self::start_on(Listeners::One(listener), (addr, addr), &ports, bounds, change)
    }

    fn start_on(
        listeners: Listeners,
        (ingest, results): (SocketAddr, SocketAddr),
        ports: &Ports,
        bounds: TimeBounds,
        change: impl FnOnce(&mut StackConfig),
    ) -> Self {
        let mut config = StackConfig::one_machine();
        config.ingest.bounds = bounds;
        config.ingest.lanes.bounds = bounds;
        config.persist.group.bounds = bounds;
        config.tally.group.bounds = bounds;
        change(&mut config);
        Self { ingest, results, services: votestream_stack::Stack::start(ports, config, listeners) }
    }

    /// Checks that every service still runs.
    ///
    /// # Panics
    ///
    /// If one has ended by itself. The message says why.
    pub async fn check(&mut self) {
        if let Some(broken) = self.services.broken().now_or_never() {
            panic!("{broken}");
        }
    }

    /// Stops the services in good order.
    ///
    /// # Panics
    ///
    /// If one of them fails.
    pub async fn stop(self) {
        self.services.stop().await.unwrap();
    }

    /// A new connection to `IngestService`.
    pub async fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(connect(self.ingest).await)
    }

    /// A new connection to `PollService`.
    pub async fn polls(&self) -> PollServiceClient<Channel> {
        PollServiceClient::new(connect(self.results).await)
    }

    /// A new connection to `ResultsService`.
    pub async fn results(&self) -> ResultsServiceClient<Channel> {
        ResultsServiceClient::new(connect(self.results).await)
    }

    /// Creates a poll that is open for an hour.
    pub async fn create_poll<'a>(&self, id: &str, options: impl IntoIterator<Item = &'a str>) {
        let options = options.into_iter();
        let request = CreatePollRequest {
            poll_id: id.into(),
            options: options.map(|id| PollOption { option_id: id.into(), title: String::new() }).collect(),
            closes_at: Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into()),
            ..CreatePollRequest::default()
        };
        self.polls().await.create_poll(request).await.unwrap();
    }

    /// Casts votes in one client stream, 200 per message.
    pub async fn cast(&self, poll: &str, votes: &[(String, String)]) -> CastVotesResponse {
        let messages: Vec<_> = votes
            .chunks(200)
            .map(|votes| {
                let mut message = VotesMessage::default();
                votes.iter().for_each(|(user, option)| message.push(poll, user, option));
                message
            })
            .collect();
        self.ingest().await.cast_votes(tokio_stream::iter(messages)).await.unwrap().into_inner()
    }

    /// Closes a poll and waits for its final result.
    pub async fn finish(&self, poll: &str) -> GetFinalResultsResponse {
        self.polls().await.close_poll(ClosePollRequest { poll_id: poll.into() }).await.unwrap();
        let request = GetFinalResultsRequest { poll_id: poll.into(), wait: true };
        let waiting = self.results();
        let final_result = async { waiting.await.get_final_results(request).await };
        tokio::time::timeout(Duration::from_secs(60), final_result).await.unwrap().unwrap().into_inner()
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// A new connection to a server.
///
/// # Panics
///
/// If nothing listens there.
pub async fn connect(addr: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

/// One call over HTTP/1.1 on a connection of its own. Returns status and body.
///
/// # Panics
///
/// If there is no answer, or if it is no text.
pub async fn http(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
