//! Sends the same bytes to the generated service and to the edge of ingest. The edge replaces the library, so it must
//! give the same answers.
//!
//! The calls use all three methods, over gRPC, gRPC-Web and gRPC-Web in text, on both versions of HTTP, right and wrong
//! in every part. Status, message, content, the place of the status, and how a call breaks must be equal. Where the
//! edge differs on purpose, [`excuse`] says so and why. `VOTESTREAM_SEED` repeats a run, `VOTESTREAM_CALLS` makes it
//! longer.

#[path = "differential/calls.rs"]
mod calls;
#[path = "differential/reference.rs"]
mod reference;

use std::collections::BTreeMap;

use calls::{Case, Method};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use tonic::Code;
use votestream_e2e::{
    hostile::{self, call::Outcome},
    stack::{Stack, TEST_BOUNDS},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_proto::v1::{CastVotesResponse, StreamVotesResponse};

/// Number of random calls.
const CALLS: usize = 400;
/// Number of exceptions in [`excuse`].
const EXCUSES: usize = 8;
/// Calls at the same time.
const TOGETHER: usize = 16;

/// What a client learns, in a form that can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Learned {
    http: u16,
    content_type: String,
    status: Option<(u32, String)>,
    status_in: &'static str,
    /// Settled votes, and the rejections among them, however many answers they came in.
    through: u64,
    rejected: u64,
    rejections: Vec<(u64, i32, String)>,
    answered: bool,
    broken: Option<String>,
}

impl Learned {
    fn of(method: Method, outcome: Outcome) -> Self {
        let status = outcome.status.map(|(code, message)| (code, unescaped(&message)));
        let mut learned = Self {
            http: outcome.http,
            content_type: outcome.content_type,
            status,
            status_in: outcome.status_in,
            answered: !outcome.messages.is_empty(),
            broken: outcome.broken,
            ..Self::default()
        };
        for message in outcome.messages {
            learned.take(method, &message);
        }
        learned.rejections.sort_unstable();
        learned
    }

    fn take(&mut self, method: Method, message: &[u8]) {
        let rejections = match method {
            Method::CastVote => {
                assert_eq!(message, b"", "the answer to one vote has no fields");
                return;
            }
            Method::CastVotes => {
                let response = CastVotesResponse::decode(message).unwrap();
                self.through = response.accepted + response.rejected;
                self.rejected = response.rejected;
                response.rejections
            }
            Method::StreamVotes => {
                let response = StreamVotesResponse::decode(message).unwrap();
                assert!(response.durable_through >= self.through, "durable_through never decreases");
                self.through = response.durable_through;
                self.rejected += response.rejections.len() as u64;
                response.rejections
            }
        };
        self.rejections
            .extend(rejections.into_iter().map(|rejection| (rejection.index, rejection.code, rejection.reason)));
    }

    fn code(&self) -> Option<Code> {
        self.status.as_ref().map(|(code, _)| Code::from(*code as i32))
    }

    /// Without the words of the status.
    fn without_words(&self) -> Self {
        Self { status: self.status.as_ref().map(|(code, _)| (*code, String::new())), ..self.clone() }
    }
}

/// The text of a gRPC status, without escapes.
fn unescaped(message: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = message.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why the edge may answer differently from the generated service; `None` if it may not.
fn excuse(case: &Case, edge: &Learned, generated: &Learned) -> Option<&'static str> {
    // The generated service accepts every content type, also those that a browser lets any page send without asking.
    if case.is_of_another_type() && edge.http == 415 {
        return Some("a call without a gRPC content type is refused");
    }
    // tonic's timer ends when the headers of the answer are there, so the stream would go on for ever.
    if case.expires() && case.method == Method::StreamVotes && edge.code() == Some(Code::DeadlineExceeded) {
        return Some("a deadline holds for the whole of a stream");
    }
    // A client that wants a deadline must get one, or an error.
    if case.has_bad_deadline() && edge.code() == Some(Code::InvalidArgument) {
        return Some("a deadline that cannot be read is refused, not ignored");
    }
    let same_but_words = edge.without_words() == generated.without_words();
    let code = (edge.code()?, generated.code()?);
    match code {
        // Both answer INVALID_ARGUMENT, but only the edge knows which message it was, and what was settled before it.
        (Code::InvalidArgument, Code::InvalidArgument) if same_but_words && case.is_unreadable() => {
            Some("the edge names the message that cannot be read, and the votes before it")
        }
        // The codec of the generated service answers before any handler is called, with a different code for each
        // mistake.
        (Code::InvalidArgument, Code::Internal | Code::OutOfRange | Code::Unknown)
            if case.method == Method::CastVote && case.is_unreadable() =>
        {
            Some("one code for everything that cannot be read: INVALID_ARGUMENT, in single calls and in streams")
        }
        // The generated service reads only the first message. The second vote would be lost silently.
        (Code::InvalidArgument, _) if case.method == Method::CastVote && case.has_second_message() => {
            Some("a call for one vote that has more messages is refused as a whole")
        }
        // The codec of the generated service drops the header, and treats the call as successfully ended.
        (Code::InvalidArgument, Code::Ok) if case.ends_after_header() => {
            Some("a call that ends within a message is an error, also directly after its length")
        }
        // In gRPC an expired deadline is DEADLINE_EXCEEDED; tonic's timer says CANCELLED.
        (Code::DeadlineExceeded, Code::Cancelled) if case.expires() => {
            Some("a deadline that has passed is DEADLINE_EXCEEDED")
        }
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_answers_what_the_generated_service_answers() {
    let seed = hostile::seed("differential");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let stack = Stack::start(engine.ports(), TEST_BOUNDS).await;
    let polls = reference::polls();
    for poll in &polls {
        assert!(engine.ports().polls.create(poll).await.is_ok());
    }
    let generated = reference::serve(polls).await;
    let calls = std::env::var("VOTESTREAM_CALLS").map_or(CALLS, |calls| calls.parse().unwrap());
    let mut cases = calls::by_hand();
    cases.extend((0..calls).map(|_| calls::at_random(&mut rng)));

    let (mut differences, mut excuses) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for together in cases.chunks(TOGETHER) {
        let edge = stack.ingest;
        let answers = together.iter().map(|case| async move {
            let (edge, generated) = tokio::join!(case.call.send(edge), case.call.send(generated));
            let learn = |answer: std::io::Result<hostile::Answer>| Learned::of(case.method, answer.unwrap().outcome());
            (case, learn(edge), learn(generated))
        });
        for (case, edge, generated) in futures::future::join_all(answers).await {
            if edge != generated {
                match excuse(case, &edge, &generated) {
                    Some(reason) => *excuses.entry(reason).or_default() += 1,
                    None => differences.push(format!("{case:?}\n  edge      {edge:?}\n  generated {generated:?}")),
                }
            }
        }
    }
    eprintln!("{} calls, differences that are meant: {excuses:#?}", cases.len());
    stack.stop().await;
    let shown = differences.iter().take(20).map(|difference| format!("\n{difference}")).collect::<String>();
    assert!(differences.is_empty(), "seed {seed}: {} of {} calls differ:{shown}", differences.len(), cases.len());
    assert_eq!(excuses.len(), EXCUSES, "an exception that nothing needs has to go: {excuses:#?}");
}
