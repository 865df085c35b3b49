//! Clients: they stream votes to ingest processes and log what they sent and which answers they got.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use votestream_core::PollId;
use votestream_ingest::{Admission, Caller, Session};
use votestream_proto::{VotesMessage, v1::RejectionCode};

use super::world::World;

/// The answer to a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Durable,
    /// The vote was certainly not stored.
    Rejected,
    /// The outcome is unknown: the service said so, or it died.
    Unknown,
}

/// What a client knows about a vote. Each vote has its own option, so the sums distinguish the votes.
#[derive(Clone, Debug)]
pub(super) struct SentVote {
    pub(super) poll: PollId,
    pub(super) user: String,
    pub(super) option: usize,
    /// Number of the stream. Votes of one stream keep their order.
    pub(super) stream: u64,
    pub(super) sent_at: u64,
    pub(super) answer: Option<(Answer, u64)>,
}

/// All votes of a run, in the order in which they were sent.
#[derive(Default)]
pub(super) struct Log {
    votes: Mutex<Vec<SentVote>>,
    /// Counts sends and answers. This gives their real-time order.
    step: AtomicU64,
    pub(super) streams: AtomicU64,
}

impl Log {
    fn step(&self) -> u64 {
        self.step.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn sent(&self, poll: &PollId, user: String, option: usize, stream: u64) -> usize {
        let sent_at = self.step();
        let mut votes = self.votes.lock();
        votes.push(SentVote { poll: poll.clone(), user, option, stream, sent_at, answer: None });
        votes.len() - 1
    }

    pub(super) fn answered(&self, vote: usize, answer: Answer) {
        let at = self.step();
        self.votes.lock()[vote].answer.get_or_insert((answer, at));
    }

    pub(super) fn take(&self) -> Vec<SentVote> {
        std::mem::take(&mut self.votes.lock())
    }
}

/// An ingest process from the clients' side.
#[derive(Clone)]
pub(super) struct IngestProcess {
    pub(super) admission: Arc<Admission>,
    /// Cancelled when the process is killed. Then its clients see a broken connection.
    pub(super) dead: CancellationToken,
}

/// The processes that clients can reach at present.
pub(super) type Ingests = Arc<Mutex<Vec<Option<IngestProcess>>>>;

/// Polls in which votes can be cast, and how many of their options are used.
pub(super) type OpenPolls = Arc<Mutex<Vec<(PollId, usize)>>>;

/// Users of a run. Few, so that each votes several times.
const USERS: u32 = 7;
/// Most options of a simulated poll, and so most votes.
pub(super) const OPTIONS: usize = 400;

/// Streams votes until `until`: mostly for polls of the ingest service. A few are for polls of other producers, and
/// must be refused.
pub(super) async fn client(world: Arc<World>, ingests: Ingests, polls: [OpenPolls; 2], log: Arc<Log>, until: Instant) {
    while Instant::now() < until {
        sleep(Duration::from_millis(world.draw(|rng| rng.random_range(0..400)))).await;
        let process = {
            let ingests = ingests.lock();
            let at = world.draw(|rng| rng.random_range(0..ingests.len()));
            ingests[at].clone()
        };
        if let Some(process) = process {
            stream(&world, &process, &polls, &log, until).await;
        }
    }
}

/// One stream to one process.
async fn stream(world: &Arc<World>, process: &IngestProcess, polls: &[OpenPolls; 2], log: &Arc<Log>, until: Instant) {
    let id = log.streams.fetch_add(1, Ordering::Relaxed);
    let session = Arc::new(Session::default());
    let waiting = Waiting::default();
    let answers = tokio::spawn(answers(world.clone(), session.clone(), waiting.clone(), log.clone()));
    let send = async {
        let mut first = 0;
        for _ in 0..world.draw(|rng| rng.random_range(1..6)) {
            if Instant::now() >= until {
                break;
            }
            let message = message(world, polls, log, id, &waiting);
            let messages = [message];
            let permit = process.admission.acquire(&messages).await;
            // Answers are read as they come, so `Crowded` does not happen.
            first += process
                .admission
                .admit(&session, &Caller::everybody(), first, &messages, permit)
                .await
                .unwrap_or_default();
            let (pause, wait) = world.draw(|rng| (rng.random_range(0..150), rng.random_bool(0.4)));
            sleep(Duration::from_millis(pause)).await;
            while wait && !waiting.lock().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        }
        session.close();
    };
    let all = async {
        send.await;
        answers.await.ok();
    };
    tokio::select! {
        biased;
        () = process.dead.cancelled() => {
            for vote in std::mem::take(&mut *waiting.lock()) {
                log.answered(vote, Answer::Unknown);
            }
        }
        () = all => {}
    }
}

/// Votes that wait for their answer, in the order of their stream.
pub(super) type Waiting = Arc<Mutex<VecDeque<usize>>>;

/// Logs the answers of a stream.
pub(super) async fn answers(world: Arc<World>, session: Arc<Session>, waiting: Waiting, log: Arc<Log>) {
    let mut through = 0;
    while let Some(settled) = session.settled().await {
        let mut refused = settled.refused.into_iter().peekable();
        for index in through..settled.through {
            let refused = refused.next_if(|refused| refused.index == index);
            let answer = match refused.map(|refused| refused.code()) {
                None => Answer::Durable,
                Some(RejectionCode::OutcomeUnknown) => Answer::Unknown,
                Some(_) => Answer::Rejected,
            };
            let vote = waiting.lock().pop_front();
            if let Some(vote) = vote {
                log.answered(vote, answer);
                world.note(|| format!("vote {vote} is {answer:?}"));
            }
        }
        through = settled.through;
    }
}

/// A message of a few votes.
fn message(
    world: &Arc<World>,
    polls: &[OpenPolls; 2],
    log: &Log,
    stream: u64,
    waiting: &Mutex<VecDeque<usize>>,
) -> VotesMessage {
    let mut message = VotesMessage::default();
    for _ in 0..world.draw(|rng| rng.random_range(1..5)) {
        let user = format!("user-{}", world.draw(|rng| rng.random_range(0..USERS)));
        let of = usize::from(world.draw(|rng| rng.random_bool(0.05)));
        let Some((poll, option)) = choose(world, &polls[of]) else { continue };
        message.push(poll.as_str(), &user, &option.to_string());
        let vote = log.sent(&poll, user.clone(), option, stream);
        world.note(|| format!("vote {vote}: {user} casts {option} in {poll} on stream {stream}"));
        waiting.lock().push_back(vote);
    }
    message
}

/// One of the latest polls, and an option of it that nobody has used.
pub(super) fn choose(world: &World, polls: &OpenPolls) -> Option<(PollId, usize)> {
    const LATEST: usize = 3;
    let mut polls = polls.lock();
    let count = polls.len();
    if count == 0 {
        return None;
    }
    let at = world.draw(|rng| rng.random_range(count.saturating_sub(LATEST)..count));
    let (poll, used) = &mut polls[at];
    if *used >= OPTIONS {
        return None;
    }
    *used += 1;
    Some((poll.clone(), *used - 1))
}
