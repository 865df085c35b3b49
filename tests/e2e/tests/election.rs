//! A real election through the three binaries, as in production: TLS on their ports and on the way to AWS, tokens,
//! pseudonyms. On the way AWS has a bad day, and the result is the official one.
//!
//! Every kind of trouble is counted, and the test fails if one did not happen.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use serde_json::json;
use tokio::time::timeout;
use tonic::{
    Code, Request, Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig},
};
use votestream_core::port::Group;
use votestream_e2e::{
    aws::{self, STREAM},
    aws_edge::{AwsEdge, EdgeFault},
    cluster::{Binaries, Cluster, PATIENCE, cast_all, eventually},
    house::{bearing, key_entry},
    issuer::{Issuer, now},
    mayor,
    tls::Authority,
};
use votestream_proto::{
    VotesMessage,
    v1::{
        ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetInterimResultsRequest, PollOption,
        RecountRequest, RejectionCode, ingest_service_client::IngestServiceClient,
        poll_service_client::PollServiceClient, results_service_client::ResultsServiceClient,
    },
};
use votestream_testkit::stand_ins::Reading;

const BINARIES: Binaries = Binaries {
    ingest: env!("CARGO_BIN_EXE_cluster-ingest-svc"),
    persist: env!("CARGO_BIN_EXE_cluster-persist-svc"),
    tally: env!("CARGO_BIN_EXE_cluster-tally-svc"),
};

/// Voters whose three choices come one after the other, before the next voters' choices.
const VOTERS_AT_A_TIME: usize = 4_000;
/// Of the first voters, how many cast their first choice by themselves, each with a token of their own.
const OWN_TOKENS: usize = 100;
/// How often such a voter and the clerk try.
const ATTEMPTS_MAX: usize = 20;
/// Longest time from closing the poll to its final result.
const FINAL_MAX: Duration = Duration::from_secs(240);
/// One call in so many finds that AWS does not know the credentials.
const BLINK_EVERY: u64 = 40;
/// One batch of statements in so many is stored, and its answer is cut.
const CUT_EVERY: u64 = 60;

const POLL: &str = "mayor";
const RELAY: &str = "the-relay-of-the-city";
const MANAGER: &str = "the-clerk-of-the-city";
const ISS: &str = "https://login.city.test";

/// A connection that trusts this CA.
async fn connect(address: SocketAddr, ca: &str) -> Channel {
    let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap().tls_config(trusted).unwrap();
    endpoint.connect_timeout(PATIENCE).connect().await.unwrap()
}

/// Writes certificates, the auth file and the keys of pseudonyms. Returns the arguments of a port.
fn secure(dir: &Path, authority: &Authority, issuer: &Issuer) -> Vec<String> {
    authority.server().write(dir);
    let path = |name: &str| dir.join(name).display().to_string();
    std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
    std::fs::write(dir.join("jwks.json"), json!({"keys": [issuer.jwk()]}).to_string()).unwrap();
    let voters = format!(
        "[[issuer]]\niss = \"{ISS}\"\naud = \"votestream\"\nkeys = \"jwks.json\"\nalgorithms = [\"ES256\"]\nscopes = [\"vote:{POLL}\"]\n"
    );
    let keys =
        key_entry("relay", RELAY, "\"relay:mayor\"") + &key_entry("clerk", MANAGER, "\"manage:mayor\", \"read:mayor\"");
    std::fs::write(dir.join("auth.toml"), voters + &keys).unwrap();
    std::fs::write(dir.join("pseudonym-keys"), "5a".repeat(32)).unwrap();
    std::fs::set_permissions(dir.join("pseudonym-keys"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let flag = |name: &str, file: &str| format!("--{name}={}", path(file));
    vec![
        flag("tls-cert", "cert.pem"),
        flag("tls-key", "key.pem"),
        flag("auth", "auth.toml"),
        flag("pseudonym-keys", "pseudonym-keys"),
    ]
}

/// Casts these votes through the relay, until all are acknowledged. Returns their number.
async fn cast(ingest: &IngestServiceClient<Channel>, votes: &[(String, String)]) -> usize {
    cast_all(POLL, votes, &[RejectionCode::Unavailable, RejectionCode::OutcomeUnknown], async |messages| {
        let messages = bearing(RELAY, tokio_stream::iter(messages));
        ingest.clone().stream_votes(messages).await.unwrap().into_inner()
    })
    .await
}

/// Casts one vote as the voter.
async fn cast_as_voter(ingest: &mut IngestServiceClient<Channel>, issuer: &Issuer, user: &str, option: &str) {
    let token =
        issuer.token(&json!({"iss": ISS, "aud": "votestream", "sub": user, "scope": "vote:mayor", "exp": now() + 600}));
    let mut last = String::new();
    for _ in 0..ATTEMPTS_MAX {
        let mut message = VotesMessage::default();
        message.push(POLL, user, option);
        match ingest.cast_vote(bearing(&token, message)).await {
            Ok(_) => return,
            Err(status) => last = status.to_string(),
        }
    }
    panic!("{user} cannot vote: {last}");
}

/// Calls as the clerk, again while a store does not answer: that is what the message of the status asks for.
async fn as_clerk<Q: Clone, A>(request: Q, call: impl AsyncFn(Request<Q>) -> Result<Response<A>, Status>) -> A {
    let mut last = String::new();
    for _ in 0..ATTEMPTS_MAX {
        match call(bearing(MANAGER, request.clone())).await {
            Ok(answer) => return answer.into_inner(),
            Err(status) if status.code() == Code::Unavailable => last = status.to_string(),
            Err(status) => panic!("{status}"),
        }
    }
    panic!("the clerk gets no answer: {last}");
}

/// Splits the first open shard, and lets it leave the stream once both groups have read it. Returns its id.
async fn lose_a_parent(cluster: &Cluster, reading: &Reading) -> String {
    let listed = cluster.clients().kinesis.list_shards().stream_name(STREAM).send().await.unwrap();
    let parent = &listed.shards()[0];
    let range = parent.hash_key_range().unwrap();
    let [start, end] = [range.starting_hash_key(), range.ending_hash_key()].map(|hash| hash.parse::<u128>().unwrap());
    let split = cluster.clients().kinesis.split_shard().stream_name(STREAM).shard_to_split(parent.shard_id());
    split.new_starting_hash_key((start + (end - start) / 2 + 1).to_string()).send().await.unwrap();
    let id = parent.shard_id().to_owned();
    for group in [Group::Persist, Group::Tally] {
        eventually(&format!("{group:?} has read {id} to its end"), PATIENCE, async || {
            let rows = cluster.rows(group).await;
            let row = rows.into_iter().find(|row| row.shard.as_str() == id);
            if row.as_ref().is_some_and(|row| row.progress.ended) { Ok(()) } else { Err(row) }
        })
        .await;
    }
    reading.vanish(&*id);
    id
}

/// The mayoral election of Minneapolis in 2013.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_election_gives_its_official_result_on_a_bad_day() {
    let Some(rounds) = mayor::rounds(VOTERS_AT_A_TIME) else { return };

    let dir = tempfile::tempdir().unwrap();
    let (authority, issuer, reading) = (Authority::new("the city"), Issuer::new("es1"), Reading::default());
    let secured = secure(dir.path(), &authority, &issuer);
    let secured: Vec<&str> = secured.iter().map(String::as_str).collect();
    let (kinesis, kinesis_server, _) = aws::kinesis_read_by(4, &reading).await;
    let (dynamodb, dynamodb_server) = aws::dynamodb().await;
    let (to_kinesis, to_dynamodb) =
        tokio::join!(AwsEdge::tls(&authority, &kinesis), AwsEdge::tls(&authority, &dynamodb));
    let ca = dir.path().join("ca.pem").display().to_string();
    let cluster = Cluster::over(BINARIES, STREAM, (kinesis, kinesis_server), (dynamodb, vec![dynamodb_server]))
        .await
        .with_variables([
            ("AWS_ENDPOINT_URL_KINESIS", &*to_kinesis.url),
            ("AWS_ENDPOINT_URL_DYNAMODB", &*to_dynamodb.url),
            ("SSL_CERT_FILE", &*ca),
        ]);

    // Credentials blink from the first call on: start-up checks are repeated.
    for edge in [&to_kinesis, &to_dynamodb] {
        edge.next(2, None, EdgeFault::BLINK);
        edge.every(BLINK_EVERY, None, EdgeFault::BLINK);
    }
    to_dynamodb.every(CUT_EVERY, Some("BatchExecuteStatement"), EdgeFault::Cut);
    let create = ["--create-tables", "--shards=4"];
    let persist_flags =
        [&create[..], &["--window-linger=2s", "--failover=10s", "--renew-every=2s", "--sync-every=500ms"]].concat();
    let port_flags = [&create[..], &secured].concat();
    let first_persist = cluster.start_persist("persist-1", &persist_flags);
    let (mut ingest, mut tally) =
        tokio::join!(cluster.start_ingest("ingest", &port_flags), cluster.start_tally("tally", &port_flags));
    let mut voting = IngestServiceClient::new(connect(ingest.address().await, &authority.pem).await);
    let channel = connect(tally.address().await, &authority.pem).await;
    let (polls, results) = (PollServiceClient::new(channel.clone()), ResultsServiceClient::new(channel));
    let request = CreatePollRequest {
        poll_id: POLL.into(),
        options: mayor::options(&rounds)
            .into_iter()
            .map(|id| PollOption { option_id: id.into(), title: String::new() })
            .collect(),
        closes_at: Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into()),
        ..CreatePollRequest::default()
    };
    as_clerk(request, async |request| polls.clone().create_poll(request).await).await;
    let close = ClosePollRequest { poll_id: POLL.into() };
    let nobody = polls.clone().close_poll(close.clone()).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated, "{nobody}");

    let (mut accepted, mut stalled, mut parent, mut first_persist) = (0, [0, 0], None, Some(first_persist));
    let mut second_persist = None;
    for (at, round) in rounds.iter().enumerate() {
        if at == rounds.len() / 4 {
            stalled = [to_kinesis.stall(), to_dynamodb.stall()];
        }
        if at == rounds.len() / 2 {
            parent = Some(lose_a_parent(&cluster, &reading).await);
            // Whoever comes now has never seen the parent.
            second_persist = Some(cluster.start_persist("persist-2", &persist_flags));
            if let Some(first) = first_persist.take() {
                first.kill().await;
            }
        }
        let own = if at == 2 { OWN_TOKENS.min(round.len()) } else { 0 };
        for (user, option) in &round[..own] {
            cast_as_voter(&mut voting, &issuer, user, option).await;
        }
        accepted += own + cast(&voting, &round[own..]).await;
    }
    assert_eq!(accepted, mayor::VOTES);

    as_clerk(close, async |request| polls.clone().close_poll(request).await).await;
    let request = GetFinalResultsRequest { poll_id: POLL.into(), wait: true };
    let result = as_clerk(request, async |request| results.clone().get_final_results(request).await);
    mayor::must_be_official(&timeout(FINAL_MAX, result).await.expect("the result is final in time"));
    // A vote whose outcome was unknown may have come twice. It counts once.
    let request = GetInterimResultsRequest { poll_id: POLL.into() };
    let interim = as_clerk(request, async |request| results.clone().get_interim_results(request).await).await;
    assert!(interim.total_submitted >= mayor::VOTES as u64, "{}", interim.total_submitted);
    let request = RecountRequest { poll_id: POLL.into() };
    let recount = as_clerk(request, async |request| results.clone().recount(request).await).await;
    assert!(recount.matches && recount.r#final, "{recount:?}");

    assert!(stalled.iter().all(|lines| *lines > 0), "no connection was stalled: {stalled:?}");
    let blinks = [&to_kinesis, &to_dynamodb].map(|edge| edge.count(EdgeFault::BLINK));
    assert!(blinks.iter().all(|times| *times > 2), "credentials never blinked: {blinks:?}");
    let cut = to_dynamodb.count(EdgeFault::Cut);
    assert!(cut > 0, "no answer was cut");
    let parent = parent.expect("a shard has left the stream");
    let listed = cluster.clients().kinesis.list_shards().stream_name(STREAM).send().await.unwrap();
    assert!(listed.shards().iter().all(|shard| shard.shard_id() != parent), "{parent} is still there");
    eprintln!("stalled connections {stalled:?}, blinks {blinks:?}, cut answers {cut}, {parent} has left the stream");
    for process in [Some(ingest), second_persist, Some(tally)].into_iter().flatten() {
        process.stop(PATIENCE).await;
    }
}
