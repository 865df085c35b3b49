//! Clients and an administrator for runs in which services fail. They call the API over real connections, reconnect
//! when these break, and log the answers.
//!
//! Owns polls in which every vote has its own option, the clients that vote in them, and what the API shows at the end.
//! Must never count a broken connection as an answer. Must never wait without a limit.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig},
};
use votestream_proto::{
    VotesMessage,
    v1::{
        ClosePollRequest, CreatePollRequest, FinalOption, GetFinalResultsRequest, GetInterimResultsRequest,
        GetPollRequest, PollOption, RecountRequest, RejectionCode, ingest_service_client::IngestServiceClient,
        poll_service_client::PollServiceClient, results_service_client::ResultsServiceClient,
    },
};

use votestream_testkit::audit::{Answer, Log, SentVote, Shown, judge};

/// Longest time that a step may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Options of a poll, and so its most votes: as many as a poll can have.
const OPTIONS: usize = 1_000;
/// Users of a poll. Few, so that each votes several times.
const USERS: u32 = 25;
/// Longest time of one attempt of a call. A process may be frozen.
const ATTEMPT: Duration = Duration::from_secs(15);
/// Pause before the next try or check.
const AGAIN: Duration = Duration::from_millis(50);
/// How long settled results are watched: they must not change.
const WATCHED: Duration = Duration::from_secs(1);

/// Addresses of the processes that accept calls; `None` while a process is down.
#[derive(Debug, Default)]
pub struct Places {
    /// `IngestService`.
    pub ingest: Mutex<Vec<Option<SocketAddr>>>,
    /// `ResultsService` and `PollService`.
    pub results: Mutex<Vec<Option<SocketAddr>>>,
    /// CA of the processes in PEM, if they speak TLS.
    pub ca: Mutex<Option<String>>,
}

/// Polls, their votes and the answers.
#[derive(Debug, Default)]
pub struct Election {
    /// Where to call.
    pub places: Places,
    /// What was sent and answered.
    pub log: Log,
    /// Id of each poll, and how many of its options are used. Votes go to the last two polls.
    polls: Mutex<Vec<(String, usize)>>,
    /// Final results at the moment they were first seen.
    finals: Mutex<BTreeMap<String, Vec<u64>>>,
}

/// A connection to one of the processes that are up; `None` if none is.
pub(crate) async fn connect(
    places: &Places,
    which: impl FnOnce(&Places) -> &Mutex<Vec<Option<SocketAddr>>>,
    turn: usize,
) -> Option<Channel> {
    let up: Vec<SocketAddr> = which(places).lock().iter().flatten().copied().collect();
    let address = up.get(turn % up.len().max(1))?;
    let endpoint = match places.ca.lock().as_deref() {
        None => Channel::from_shared(format!("http://{address}")).ok()?,
        Some(ca) => {
            let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            Channel::from_shared(format!("https://{address}")).ok()?.tls_config(trusted).ok()?
        }
    };
    endpoint.connect_timeout(ATTEMPT).connect().await.ok()
}

impl Election {
    /// Calls a results service until a call succeeds.
    pub(crate) async fn ask<T, R: Clone, F: Future<Output = Result<T, Status>>>(
        &self,
        what: &str,
        request: R,
        call: impl Fn(Channel, R) -> F,
    ) -> Result<T, String> {
        let start = Instant::now();
        let mut last = "no process takes calls".to_owned();
        for turn in 0.. {
            if start.elapsed() > PATIENCE {
                break;
            }
            if let Some(channel) = connect(&self.places, |places| &places.results, turn).await {
                match timeout(ATTEMPT, call(channel, request.clone())).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) => last = status.to_string(),
                    Err(_) => last = format!("no answer within {ATTEMPT:?}"),
                }
            }
            sleep(AGAIN).await;
        }
        Err(format!("{what}: not within {PATIENCE:?}: {last}"))
    }

    /// Opens a poll for an hour. From now on votes go to it.
    ///
    /// # Errors
    ///
    /// If that takes too long.
    pub async fn open(&self, poll: &str) -> Result<(), String> {
        let now = SystemTime::now();
        self.create(poll, Some(now), now + Duration::from_secs(3_600)).await
    }

    /// Opens a poll at once by the clock of its service. From now on votes go to it.
    ///
    /// # Errors
    ///
    /// If that takes too long.
    pub async fn open_until(&self, poll: &str, closes_at: SystemTime) -> Result<(), String> {
        self.create(poll, None, closes_at).await
    }

    async fn create(&self, poll: &str, opens_at: Option<SystemTime>, closes_at: SystemTime) -> Result<(), String> {
        let request = CreatePollRequest {
            poll_id: poll.into(),
            options: (0..OPTIONS)
                .map(|option| PollOption { option_id: option.to_string(), title: String::new() })
                .collect(),
            opens_at: opens_at.map(Into::into),
            closes_at: Some(closes_at.into()),
            ..CreatePollRequest::default()
        };
        self.ask(&format!("creating {poll}"), request, |channel, request| async move {
            PollServiceClient::new(channel).create_poll(request).await
        })
        .await?;
        self.polls.lock().push((poll.to_owned(), 0));
        Ok(())
    }

    /// Whether most options of the latest poll are used.
    pub fn is_worn(&self) -> bool {
        self.polls.lock().last().is_none_or(|(_, used)| *used > OPTIONS * 3 / 4)
    }

    /// The polls that were opened.
    pub fn poll_ids(&self) -> Vec<String> {
        self.polls.lock().iter().map(|(poll, _)| poll.clone()).collect()
    }

    /// Closes a poll and waits until its result is final.
    ///
    /// # Errors
    ///
    /// If that takes too long.
    pub async fn close(&self, poll: &str) -> Result<(), String> {
        let request = ClosePollRequest { poll_id: poll.into() };
        self.ask(&format!("closing {poll}"), request, |channel, request| async move {
            PollServiceClient::new(channel).close_poll(request).await
        })
        .await?;
        let result = self.final_result(poll).await?;
        self.finals.lock().entry(poll.to_owned()).or_insert(result);
        Ok(())
    }

    /// Looks for every poll whose creation was acknowledged.
    ///
    /// # Errors
    ///
    /// If one does not exist, or if that takes too long.
    pub async fn must_know_polls(&self) -> Result<(), String> {
        for poll in self.poll_ids() {
            let request = GetPollRequest { poll_id: poll.clone() };
            let what = format!("looking for {poll}");
            let found = self.ask(&what, request, |channel, request| async move {
                match PollServiceClient::new(channel).get_poll(request).await {
                    Err(status) if status.code() == Code::NotFound => Ok(false),
                    answer => answer.map(|_| true),
                }
            });
            if !found.await? {
                return Err(format!("poll {poll} was acknowledged and does not exist"));
            }
        }
        Ok(())
    }

    async fn final_result(&self, poll: &str) -> Result<Vec<u64>, String> {
        let request = GetFinalResultsRequest { poll_id: poll.into(), wait: false };
        let result = self
            .ask(&format!("the final result of {poll}"), request, |channel, request| async move {
                ResultsServiceClient::new(channel).get_final_results(request).await
            })
            .await?
            .into_inner();
        let votes = |option: &FinalOption| option.votes;
        Ok(result.options.iter().map(votes).collect())
    }

    async fn shown(&self, poll: &str) -> Result<Shown, String> {
        let interim = self
            .ask("interim results", GetInterimResultsRequest { poll_id: poll.into() }, |channel, request| async move {
                ResultsServiceClient::new(channel).get_interim_results(request).await
            })
            .await?
            .into_inner();
        let recount = self
            .ask("a recount", RecountRequest { poll_id: poll.into() }, |channel, request| async move {
                ResultsServiceClient::new(channel).recount(request).await
            })
            .await?
            .into_inner();
        let first_final = self.finals.lock().get(poll).cloned().ok_or("it was never closed")?;
        Ok(Shown {
            submitted: interim.options.iter().map(|option| option.submitted).collect(),
            counted: interim.options.iter().map(|option| option.counted).collect(),
            recounted: recount.options.iter().map(|option| option.recounted).collect(),
            first_final,
            last_final: self.final_result(poll).await?,
        })
    }

    /// Sum of the submitted votes over all polls.
    ///
    /// # Errors
    ///
    /// If results cannot be read in time.
    pub async fn submitted(&self) -> Result<u64, String> {
        let mut sum = 0;
        for poll in self.poll_ids() {
            sum += self.shown(&poll).await?.submitted.iter().sum::<u64>();
        }
        Ok(sum)
    }

    /// Judges every poll after its results have settled. All polls must have been closed.
    ///
    /// # Errors
    ///
    /// What is not allowed.
    pub async fn verdict(&self) -> Result<(), String> {
        for poll in self.poll_ids() {
            self.verdict_on(&poll, &self.log.of_poll(&poll)).await?;
        }
        Ok(())
    }

    /// The same polls at other addresses, which serve a copy of the data.
    pub fn elsewhere(&self, ingest: SocketAddr, results: SocketAddr) -> Self {
        let places = Places {
            ingest: Mutex::new(vec![Some(ingest)]),
            results: Mutex::new(vec![Some(results)]),
            ..Places::default()
        };
        Self { places, polls: Mutex::new(self.polls.lock().clone()), ..Self::default() }
    }

    /// Judges one poll by these votes.
    ///
    /// # Errors
    ///
    /// What is not allowed.
    pub async fn verdict_on(&self, poll: &str, votes: &[SentVote]) -> Result<(), String> {
        let start = Instant::now();
        let mut shown = self.shown(poll).await?;
        let mut rested_at: Option<Instant> = None;
        // If results do not settle, they are still judged, and the verdict says what is wrong.
        while start.elapsed() < PATIENCE / 2 && rested_at.is_none_or(|at| at.elapsed() < WATCHED) {
            sleep(AGAIN).await;
            let now = self.shown(poll).await?;
            let rests = now.has_come_to_rest(votes) && now == shown;
            rested_at = if rests { rested_at.or_else(|| Some(Instant::now())) } else { None };
            shown = now;
        }
        judge(votes, &shown).map_err(|reason| format!("poll {poll}: {reason}"))
    }

    /// Takes an unused option of one of the current polls; `None` if none is left.
    fn vote(&self, rng: &mut StdRng, stream: u64) -> Option<Vote> {
        let mut polls = self.polls.lock();
        let from = polls.len().saturating_sub(2);
        // Mostly of the new poll. The other one is closing or closed.
        let at = if rng.random_bool(0.9) { polls.len().checked_sub(1)? } else { from };
        let (poll, used) = polls.get_mut(at)?;
        let option = if rng.random_bool(0.02) {
            None
        } else if *used < OPTIONS {
            *used += 1;
            Some(*used - 1)
        } else {
            return None;
        };
        let poll = poll.clone();
        drop(polls);
        let user = format!("user-{}", rng.random_range(0..USERS));
        let number = self.log.sent(&poll, &user, option, stream);
        let option = option.map_or_else(|| "no such option".to_owned(), |option| option.to_string());
        Some(Vote { number, poll, user, option })
    }

    /// Votes until it is told to stop.
    async fn client(self: Arc<Self>, seed: u64, stop: CancellationToken) {
        let mut rng = StdRng::seed_from_u64(seed);
        for turn in 0.. {
            if stop.is_cancelled() {
                return;
            }
            sleep(Duration::from_millis(rng.random_range(0..150))).await;
            if let Some(channel) = connect(&self.places, |places| &places.ingest, turn + seed as usize).await {
                if rng.random_bool(0.25) {
                    self.cast_one(channel, &mut rng).await;
                } else {
                    self.stream(channel, &mut rng, &stop).await;
                }
            }
        }
    }

    async fn cast_one(&self, channel: Channel, rng: &mut StdRng) {
        let Some(vote) = self.vote(rng, self.log.stream()) else { return };
        let mut message = VotesMessage::default();
        message.push(&vote.poll, &vote.user, &vote.option);
        let answer = match timeout(ATTEMPT, IngestServiceClient::new(channel).cast_vote(message)).await {
            Ok(Ok(_)) => Answer::Durable,
            // A broken connection never causes these codes.
            Ok(Err(status))
                if [Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument].contains(&status.code()) =>
            {
                Answer::Rejected
            }
            Ok(Err(_)) | Err(_) => Answer::Unknown,
        };
        self.log.answered(vote.number, answer);
    }

    /// One stream of a few messages. Sometimes the client waits for its answers before it goes on, so that its votes
    /// are sent after others were acknowledged.
    async fn stream(&self, channel: Channel, rng: &mut StdRng, stop: &CancellationToken) {
        let id = self.log.stream();
        let mut left = rng.random_range(1..12);
        let (send, messages) = mpsc::channel(left);
        let mut send = Some(send);
        let opening = IngestServiceClient::new(channel);
        let opened = timeout(ATTEMPT, async move {
            let mut opening = opening;
            opening.stream_votes(ReceiverStream::new(messages)).await
        });
        let Ok(Ok(answers)) = opened.await else { return };
        let mut answers = answers.into_inner();
        let mut waiting = VecDeque::new();
        let (mut through, mut rejections) = (0, BTreeMap::new());
        let (mut next_at, mut answered_first) = (Instant::now(), false);
        let give_up_at = Instant::now() + ATTEMPT * 2;
        loop {
            if left == 0 || stop.is_cancelled() {
                send = None;
            }
            tokio::select! {
                answer = answers.next() => {
                    let Some(Ok(answer)) = answer else { break };
                    rejections.extend(answer.rejections.iter().map(|rejection| (rejection.index, rejection.code())));
                    for index in through..answer.durable_through {
                        let answer = match rejections.remove(&index) {
                            None => Answer::Durable,
                            Some(RejectionCode::OutcomeUnknown) => Answer::Unknown,
                            Some(_) => Answer::Rejected,
                        };
                        if let Some(vote) = waiting.pop_front() {
                            self.log.answered(vote, answer);
                        }
                    }
                    through = answer.durable_through;
                }
                () = sleep_until(next_at), if send.is_some() && (!answered_first || waiting.is_empty()) => {
                    let mut message = VotesMessage::default();
                    for _ in 0..rng.random_range(1..6) {
                        let Some(vote) = self.vote(rng, id) else { break };
                        message.push(&vote.poll, &vote.user, &vote.option);
                        waiting.push_back(vote.number);
                    }
                    left -= 1;
                    // The channel has room for every message. If the stream is broken, the answers say so.
                    if send.as_ref().is_none_or(|send| send.try_send(message).is_err()) {
                        break;
                    }
                    next_at = Instant::now() + Duration::from_millis(rng.random_range(0..120));
                    answered_first = rng.random_bool(0.4);
                }
                () = sleep_until(give_up_at) => break,
            }
        }
        waiting.into_iter().for_each(|vote| self.log.answered(vote, Answer::Unknown));
    }
}

struct Vote {
    number: usize,
    poll: String,
    user: String,
    option: String,
}

/// Clients that vote.
pub struct Voters {
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Voters {
    /// Starts this many.
    pub fn start(election: &Arc<Election>, clients: u64, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let clients = (0..clients).map(|client| election.clone().client(seed + client, stop.clone())).collect();
        Self { stop, clients }
    }

    /// Stops the clients, and waits until each has its answers.
    ///
    /// # Errors
    ///
    /// If one fails, or does not end.
    pub async fn finish(mut self) -> Result<(), String> {
        self.stop.cancel();
        while let Some(ended) = timeout(PATIENCE, self.clients.join_next()).await.map_err(|_| "a client never ends")? {
            ended.map_err(|error| format!("a client failed: {error}"))?;
        }
        Ok(())
    }
}

/// Waits until a condition is true.
///
/// # Errors
///
/// If it does not become true in time.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            return Err(format!("did not happen in time: {what}"));
        }
        sleep(AGAIN).await;
    }
    Ok(())
}

/// Chooses one at random.
pub fn pick<'a, T>(rng: &mut StdRng, of: &'a [T]) -> &'a T {
    of.choose(rng).expect("there is something to pick from")
}
