//! Code that these tests share: the process, and small clients that are not hostile.

mod costs;
mod credentials;
mod meaning;
mod slow;
mod withstood;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::{SeedableRng, rngs::StdRng};
use tonic::transport::Channel;
use votestream_e2e::{
    hostile::{self, Answer, Call, Options, Server, Target, votes::METHODS, wire},
    stack::connect,
};
use votestream_proto::v1::{
    ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, PollOption,
    ingest_service_client::IngestServiceClient, poll_service_client::PollServiceClient,
    results_service_client::ResultsServiceClient,
};

const BINARY: &str = env!("CARGO_BIN_EXE_cluster-votestream");
/// The poll in which the honest voters of [`Server`] vote.
const BESIDE: &str = "beside";
/// Memory that an attack may cost: the three rooms of ingest (64 MiB each), the server's budget as the tests set it (32 MiB), and
/// 64 MiB for streams without anything in them (11 KB each) and for what the allocator keeps for a moment.
const MEMORY_MAX: u64 = (3 * 64 + 32 + 64) << 20;
/// How long a process may take to come to rest after its attacker has left.
const REST: Duration = PATIENCE;
/// Longest time of a call that is not attacked.
const PATIENCE: Duration = Duration::from_secs(60);

/// A new server, and the random source of the test.
async fn start(test: &str) -> (Server, StdRng) {
    start_with(test, Options::default()).await
}

async fn start_with(test: &str, options: Options) -> (Server, StdRng) {
    let seed = hostile::seed(test);
    (Server::start_with(BINARY, seed, options).await, StdRng::seed_from_u64(seed))
}

fn target(server: &Server) -> Target {
    Target { ingest: server.ingest, results: server.results, poll: BESIDE.into() }
}

async fn ingest(server: &Server) -> IngestServiceClient<Channel> {
    IngestServiceClient::new(connect(server.ingest).await)
}

/// A poll with these options.
fn poll(id: &str, options: &[&str]) -> CreatePollRequest {
    CreatePollRequest {
        poll_id: id.into(),
        options: options.iter().map(|&id| PollOption { option_id: id.into(), title: String::new() }).collect(),
        closes_at: Some((SystemTime::now() + Duration::from_secs(3_600)).into()),
        ..CreatePollRequest::default()
    }
}

async fn create(server: &Server, request: CreatePollRequest) {
    PollServiceClient::new(connect(server.results).await).create_poll(request).await.unwrap();
}

async fn close(server: &Server, poll: &str) {
    let request = ClosePollRequest { poll_id: poll.into() };
    PollServiceClient::new(connect(server.results).await).close_poll(request).await.unwrap();
}

/// Ends a test: closes its poll, which must have this many votes, and checks that every honest vote is counted.
async fn ends_with(server: Server, poll: &str, votes: u64) {
    close(&server, poll).await;
    let results = server.results;
    // Run both together, because each waits long for a final result.
    tokio::join!(server.counts_exactly(), async {
        let request = GetFinalResultsRequest { poll_id: poll.into(), wait: true };
        let mut client = ResultsServiceClient::new(connect(results).await);
        let result = tokio::time::timeout(PATIENCE, client.get_final_results(request)).await;
        let result = result.expect("the result never becomes final").unwrap().into_inner();
        assert_eq!(result.total_votes, votes, "{result:?}");
    });
}

/// A call of a gRPC method with this body.
fn grpc(method: usize, headers: &[(&str, &str)], body: Vec<u8>) -> Call {
    let every = [("content-type", "application/grpc"), ("te", "trailers")];
    Call {
        http2: true,
        path: METHODS[method].into(),
        headers: every.iter().chain(headers).map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        body: vec![Bytes::from(body)],
        ..Call::default()
    }
}

/// A vote as JSON over HTTP/1.1.
async fn json_vote(server: &Server, poll: &str, user: &str, headers: &[(&str, &str)]) -> Answer {
    let body = format!(r#"{{"user_id":"{user}","option_id":"yes"}}"#);
    let call = Call {
        path: format!("/v1/polls/{poll}/votes"),
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        body: vec![Bytes::from(body)],
        ..Call::default()
    };
    call.send(server.ingest).await.unwrap()
}

/// The message of a CastVote call.
fn one_vote(poll: &str, user: &str, option: &str) -> Vec<u8> {
    wire::message(&wire::vote(poll, user, option))
}
