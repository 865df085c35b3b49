//! Tests the whole way from a client that streams votes to an exact final result, with real gRPC and the embedded
//! engines.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tonic::Code;
use votestream_core::TimeBounds;
use votestream_e2e::{
    mayor,
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::{
    VotesMessage,
    v1::{
        CastVotesResponse, CreatePollRequest, GetFinalResultsRequest, GetFinalResultsResponse,
        GetInterimResultsRequest, PollOption, RecountRequest, RejectionCode,
    },
};

fn engine(dir: &Path, bounds: TimeBounds) -> EmbeddedEngine {
    EmbeddedEngine::open(dir, EmbeddedOptions { bounds, ..EmbeddedOptions::default() }).unwrap()
}

fn votes_of(result: &GetFinalResultsResponse) -> BTreeMap<String, u64> {
    result.options.iter().filter(|option| option.votes > 0).map(|o| (o.option_id.clone(), o.votes)).collect()
}

async fn recount_matches(stack: &Stack, poll: &str) -> bool {
    let request = RecountRequest { poll_id: poll.into() };
    stack.results().await.recount(request).await.unwrap().into_inner().matches
}

async fn submitted(stack: &Stack, poll: &str) -> u64 {
    let request = GetInterimResultsRequest { poll_id: poll.into() };
    stack.results().await.get_interim_results(request).await.unwrap().into_inner().total_submitted
}

/// Waits until interim results show this many submitted votes.
async fn wait_for_submitted(stack: &Stack, poll: &str, votes: u64) {
    let shown = async {
        while submitted(stack, poll).await != votes {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), shown).await.expect("interim results never showed every vote");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_vote_wins_and_final_stays_final() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path(), TEST_BOUNDS);
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a", "b", "c"]).await;

    let mut rng = StdRng::seed_from_u64(5);
    let votes: Vec<_> = (0..20_000)
        .map(|_| (format!("user-{}", rng.random_range(0..7_000)), ["a", "b", "c"][rng.random_range(0..3)].to_owned()))
        .collect();
    let last: HashMap<_, _> = votes.iter().cloned().collect();
    let mut model = BTreeMap::<String, u64>::new();
    last.values().for_each(|option| *model.entry(option.clone()).or_default() += 1);

    // Two streams, one after the other: the second is sent after the first is acknowledged.
    for half in votes.chunks(10_000) {
        let answer = stack.cast("p", half).await;
        assert_eq!((answer.accepted, answer.rejected), (10_000, 0));
    }
    wait_for_submitted(&stack, "p", 20_000).await;

    let request = GetFinalResultsRequest { poll_id: "p".into(), wait: false };
    let too_early = stack.results().await.get_final_results(request.clone()).await.unwrap_err();
    assert_eq!(too_early.code(), Code::FailedPrecondition);
    assert!(too_early.message().contains("closes at"), "says what is missing: {}", too_early.message());

    let result = stack.finish("p").await;
    assert_eq!(votes_of(&result), model);
    assert_eq!(result.total_votes, last.len() as u64);
    assert!(recount_matches(&stack, "p").await);
    stack.stop().await;
    opened.close();

    // After a restart the answer is the same, byte for byte.
    let opened = engine(dir.path(), TEST_BOUNDS);
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    let again = stack.results().await.get_final_results(request).await.unwrap().into_inner();
    assert_eq!(again, result);
    assert!(recount_matches(&stack, "p").await);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_votes_are_named_and_good_ones_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path(), TEST_BOUNDS);
    let stack = Stack::start(opened.ports(), TEST_BOUNDS).await;
    stack.create_poll("p", ["a", "b"]).await;

    let mut message = VotesMessage::default();
    let long = "x".repeat(257);
    for (poll, user, option) in [
        ("p", "u", "a"),
        ("nope", "u", "a"),
        ("p", "u", "nope"),
        ("p", "", "a"),
        ("p", &long, "a"),
        ("", "u", "a"),
        ("p", "u", ""),
        ("p", "v", "b"),
    ] {
        message.push(poll, user, option);
    }
    // A user id that is not UTF-8. No client library would send it.
    let mut bytes = prost::Message::encode_to_vec(&message);
    bytes.extend([0x0a, 9, 0x0a, 1, b'p', 0x12, 1, 0xff, 0x1a, 1, b'a']);
    let message = prost::Message::decode(&bytes[..]).unwrap();
    let answer = stack.ingest().await.cast_votes(tokio_stream::iter([message])).await.unwrap().into_inner();
    let CastVotesResponse { accepted, rejected, rejections } = answer;
    assert_eq!((accepted, rejected), (2, 7));
    let found: Vec<_> = rejections.iter().map(|rejection| (rejection.index, rejection.code())).collect();
    use RejectionCode::{Malformed, OptionNotFound, PollNotFound};
    let expected = [
        (1, PollNotFound),
        (2, OptionNotFound),
        (3, Malformed),
        (4, Malformed),
        (5, Malformed),
        (6, Malformed),
        (8, Malformed),
    ];
    assert_eq!(found, expected);
    let reason = &rejections[3].reason;
    assert!(reason.contains("user_id") && reason.contains("256"), "names the field and the limit: {reason}");

    // A message above the limit ends the stream with a reason. The votes before it are durable, and the answer says so.
    let mut good = VotesMessage::default();
    good.push("p", "w", "a");
    let mut huge = VotesMessage::default();
    huge.push("p", &"x".repeat(100 << 20), "a");
    let status = stack.ingest().await.cast_votes(tokio_stream::iter([good, huge])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("1 are durable"), "{}", status.message());
    wait_for_submitted(&stack, "p", 3).await;

    // Polls: two with one id, one without options, one that is not open yet.
    let in_an_hour = std::time::SystemTime::now() + Duration::from_secs(3_600);
    let option = |id: &str| PollOption { option_id: id.into(), title: String::new() };
    let poll = |id: &str, options| CreatePollRequest {
        poll_id: id.into(),
        options,
        closes_at: Some((in_an_hour + Duration::from_secs(60)).into()),
        ..CreatePollRequest::default()
    };
    let mut polls = stack.polls().await;
    let twice = polls.create_poll(poll("p", vec![option("other")])).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists, "{twice}");
    let none = polls.create_poll(poll("none", vec![])).await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidArgument, "{none}");
    assert!(none.message().contains("options"), "names the field: {}", none.message());
    let later = CreatePollRequest { opens_at: Some(in_an_hour.into()), ..poll("later", vec![option("a")]) };
    polls.create_poll(later).await.unwrap();
    let mut early = VotesMessage::default();
    early.push("later", "u", "a");
    let status = stack.ingest().await.cast_vote(early).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("not open"), "{}", status.message());

    // Single votes get the right status for each kind of error.
    for (poll, option, code) in
        [("p", "a", None), ("nope", "a", Some(Code::NotFound)), ("p", "nope", Some(Code::InvalidArgument))]
    {
        let mut message = VotesMessage::default();
        message.push(poll, "u", option);
        assert_eq!(stack.ingest().await.cast_vote(message).await.err().map(|status| status.code()), code);
    }
    stack.finish("p").await;
    let mut late = VotesMessage::default();
    late.push("p", "u", "b");
    let status = stack.ingest().await.cast_vote(late).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    stack.stop().await;
}

/// The mayoral election of Minneapolis in 2013.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_election_gives_its_official_result() {
    let Some(rounds) = mayor::rounds(usize::MAX) else { return };
    let votes = rounds.concat();

    let dir = tempfile::tempdir().unwrap();
    let opened = engine(dir.path(), TEST_BOUNDS);
    let stack = Arc::new(Stack::start(opened.ports(), TEST_BOUNDS).await);
    stack.create_poll("mayor", mayor::options(&rounds)).await;
    let answer = stack.cast("mayor", &votes).await;
    assert_eq!((answer.accepted, answer.rejected), (mayor::VOTES as u64, 0));
    let result = stack.finish("mayor").await;
    mayor::must_be_official(&result);
    assert_eq!(submitted(&stack, "mayor").await, mayor::VOTES as u64);
    assert!(recount_matches(&stack, "mayor").await);
    Arc::into_inner(stack).unwrap().stop().await;
}
