//! A crowd that casts many votes, which fill files of the log and of the store within seconds.
//!
//! Owns the streams of votes in one poll, one after the other, with a new user for each vote, and the verdict on how
//! many count. Must never vote faster than votes are acknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use votestream_proto::{
    VotesMessage,
    v1::{
        ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetInterimResultsRequest, PollOption,
        RecountRequest, RejectionCode, ingest_service_client::IngestServiceClient,
        poll_service_client::PollServiceClient, results_service_client::ResultsServiceClient,
    },
};

use crate::voters::{Election, PATIENCE, connect};

/// The poll.
const POLL: &str = "crowd";
/// Votes of one message.
const VOTES_PER_MESSAGE: u64 = 100;
/// Messages that wait for their answer.
const MESSAGES_MAX: u64 = 20;
/// Longest silence of a stream. Its process may wait for a disk without power.
const SILENCE: Duration = Duration::from_secs(15);
/// Pause before another connection.
const AGAIN: Duration = Duration::from_millis(50);

/// Number of votes, by their answer.
#[derive(Debug, Default)]
struct Numbers {
    /// All votes that were sent.
    sent: AtomicU64,
    /// Acknowledged.
    durable: AtomicU64,
    /// Refused.
    rejected: AtomicU64,
    /// Sent, but not answered yet.
    waiting: AtomicU64,
}

/// People who vote once each.
pub struct Crowd {
    numbers: Arc<Numbers>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Crowd {
    /// Creates their poll.
    ///
    /// # Errors
    ///
    /// If that takes too long.
    pub async fn open(election: &Election) -> Result<(), String> {
        let option = |id: &str| PollOption { option_id: id.into(), title: String::new() };
        let request = CreatePollRequest {
            poll_id: POLL.into(),
            options: ["a", "b"].map(option).into(),
            opens_at: Some(SystemTime::now().into()),
            closes_at: Some((SystemTime::now() + Duration::from_secs(3_600)).into()),
            ..CreatePollRequest::default()
        };
        let created = election.ask("creating the poll of the crowd", request, |channel, request| async move {
            PollServiceClient::new(channel).create_poll(request).await
        });
        created.await.map(drop)
    }

    /// Starts to vote, with this pause between two messages.
    pub fn start(election: &Arc<Election>, pause: Duration) -> Self {
        let (numbers, stop) = (Arc::<Numbers>::default(), CancellationToken::new());
        let (election, crowd, stopped) = (election.clone(), numbers.clone(), stop.clone());
        let task = tokio::spawn(async move {
            for turn in 0.. {
                if stopped.is_cancelled() {
                    return;
                }
                if let Some(channel) = connect(&election.places, |places| &places.ingest, turn).await {
                    crowd.stream(channel, pause, &stopped).await;
                }
                sleep(AGAIN).await;
            }
        });
        Self { numbers, stop, task }
    }

    /// Votes that wait for their answer.
    pub fn waiting(&self) -> u64 {
        self.numbers.waiting.load(Ordering::SeqCst)
    }

    /// Acknowledged votes.
    pub fn durable(&self) -> u64 {
        self.now()[1]
    }

    /// Stops voting, closes the poll, and judges its result.
    ///
    /// # Errors
    ///
    /// If an acknowledged vote is lost, one is counted twice, or the final result is not the recount.
    pub async fn verdict(self, election: &Election) -> Result<(), String> {
        let numbers = self.numbers.clone();
        self.end().await?;
        let [sent, durable, rejected] = numbers.now();
        judge(election, durable..=sent - rejected).await
    }

    /// Stops voting.
    ///
    /// # Errors
    ///
    /// If it goes on.
    pub async fn end(self) -> Result<(), String> {
        self.stop.cancel();
        let ended = timeout(PATIENCE, self.task).await.map_err(|_| "the crowd never ends")?;
        ended.map_err(|error| error.to_string())
    }

    /// Votes sent, acknowledged and refused so far.
    pub fn now(&self) -> [u64; 3] {
        self.numbers.now()
    }
}

/// Closes the poll of the crowd, and judges its result.
///
/// # Errors
///
/// If the result is not in this range, or if the final result is not the recount.
pub async fn judge(election: &Election, allowed: std::ops::RangeInclusive<u64>) -> Result<(), String> {
    let request = ClosePollRequest { poll_id: POLL.into() };
    let close = |channel, request| async move { PollServiceClient::new(channel).close_poll(request).await };
    election.ask("closing the poll of the crowd", request, close).await?;
    let request = GetFinalResultsRequest { poll_id: POLL.into(), wait: false };
    let last = |channel, request| async move { ResultsServiceClient::new(channel).get_final_results(request).await };
    let last = election.ask("the final result of the crowd", request, last).await?.into_inner();
    let request = RecountRequest { poll_id: POLL.into() };
    let recount = |channel, request| async move { ResultsServiceClient::new(channel).recount(request).await };
    let recount = election.ask("a recount of the crowd", request, recount).await?.into_inner();
    let request = GetInterimResultsRequest { poll_id: POLL.into() };
    let shown = |channel, request| async move { ResultsServiceClient::new(channel).get_interim_results(request).await };
    let shown = election.ask("interim results of the crowd", request, shown).await?.into_inner();
    let counted: u64 = last.options.iter().map(|option| option.votes).sum();
    let recounted: u64 = recount.options.iter().map(|option| option.recounted).sum();
    let submitted = shown.total_submitted;
    if counted == recounted && allowed.contains(&counted) && allowed.contains(&submitted) {
        return Ok(());
    }
    Err(format!(
        "the crowd: {counted} votes are final, {recounted} recounted, {submitted} submitted; {allowed:?} are allowed"
    ))
}

impl Numbers {
    fn now(&self) -> [u64; 3] {
        [&self.sent, &self.durable, &self.rejected].map(|number| number.load(Ordering::SeqCst))
    }

    fn message(&self) -> VotesMessage {
        let first = self.sent.fetch_add(VOTES_PER_MESSAGE, Ordering::SeqCst);
        self.waiting.fetch_add(VOTES_PER_MESSAGE, Ordering::SeqCst);
        let mut message = VotesMessage::default();
        for vote in first..first + VOTES_PER_MESSAGE {
            message.push(POLL, &user(vote), if vote.is_multiple_of(3) { "a" } else { "b" });
        }
        message
    }

    /// One stream, until it breaks.
    async fn stream(&self, channel: tonic::transport::Channel, pause: Duration, stop: &CancellationToken) {
        let (send, messages) = mpsc::channel(MESSAGES_MAX as usize);
        let mut client = IngestServiceClient::new(channel);
        let opened = timeout(SILENCE, client.stream_votes(ReceiverStream::new(messages))).await;
        let Ok(Ok(answers)) = opened else { return };
        let mut answers = answers.into_inner();
        let (mut send, mut sent, mut through) = (Some(send), 0, 0);
        loop {
            let may_send = sent - through < MESSAGES_MAX * VOTES_PER_MESSAGE;
            tokio::select! {
                answer = timeout(SILENCE, answers.next()) => {
                    let Ok(Some(Ok(answer))) = answer else { break };
                    let unknown = answer.rejections.iter().filter(|it| it.code() == RejectionCode::OutcomeUnknown).count();
                    let refused = (answer.rejections.len() - unknown) as u64;
                    let settled = answer.durable_through - through;
                    self.rejected.fetch_add(refused, Ordering::SeqCst);
                    self.durable.fetch_add(settled - answer.rejections.len() as u64, Ordering::SeqCst);
                    self.waiting.fetch_sub(settled, Ordering::SeqCst);
                    through = answer.durable_through;
                }
                () = sleep(pause), if may_send && send.is_some() => {
                    if stop.is_cancelled() {
                        send = None;
                    } else if send.as_ref().is_none_or(|send| send.try_send(self.message()).is_err()) {
                        break;
                    } else {
                        sent += VOTES_PER_MESSAGE;
                    }
                }
            }
        }
        // The outcome of these votes is unknown.
        self.waiting.store(0, Ordering::SeqCst);
    }
}

/// A user's id. Long and as random as possible, so that files are full after fewer votes.
fn user(number: u64) -> String {
    let mut rng = StdRng::seed_from_u64(number);
    format!("{number}-{:032x}{:032x}", rng.random::<u128>(), rng.random::<u128>())
}
