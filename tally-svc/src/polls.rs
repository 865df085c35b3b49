//! `PollService`: creates, lists and closes polls.
//!
//! Must never overwrite a poll. Must never move `closes_at` to a later time: votes are judged by the stored poll.

use std::{sync::Arc, time::Duration};

use http::Extensions;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};
use votestream_core::{
    Closing, KeyId, Poll, PollId, PollOption, PollSource, TimeBounds, Timestamp, Visibility,
    model::poll::InvalidField,
    port::{Created, Ports},
};
use votestream_proto::v1::{self, poll_service_server::PollService};
use votestream_server::{AuditLog, Caller, identity::Action};

use crate::{
    acts,
    convert::{self, poll_id_of, timestamp_of},
    finalizer::Finalizer,
    snapshot::Snapshots,
    status::CallError,
};

/// How far in the future a poll may close.
const CLOSES_WITHIN: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Default of `expected_peak`, in votes per second.
const EXPECTED_PEAK: u64 = 1_000;
/// Polls of a page if the request names no size.
const PAGE_SIZE: usize = 100;
/// Most polls of a page.
const PAGE_SIZE_MAX: usize = 1_000;
/// Largest page, in bytes. Well below the 4 MiB that gRPC clients accept by default. One poll takes at most 650 KB.
const PAGE_BYTES_MAX: usize = 2 << 20;
/// Most polls that a call looks at, to find those that its caller may read.
const PASSED_MAX: usize = 4_096;
/// Polls of one call to the store: at most 5 MB.
const READ_AT_ONCE: usize = 8;
/// Most polls in memory for calls that read them. The largest polls take 2 MB each while they are read, converted to a
/// message and written, and a client may ask for them without reading the answers.
const READ_MAX: usize = 32;
/// Number of polls for which a page counts: the polls that are read at once, and the page itself.
const PAGE_COUNTS_FOR: u32 = 12;

/// The service.
pub(crate) struct Polls {
    ports: Ports,
    bounds: TimeBounds,
    /// See [`crate::TallyConfig::pseudonym_key`].
    pseudonym_key: Option<KeyId>,
    finalizer: Arc<Finalizer>,
    snapshots: Arc<Snapshots>,
    audit: AuditLog,
    /// See [`READ_MAX`].
    reads: Semaphore,
}

impl Polls {
    pub(crate) fn new(
        ports: Ports,
        bounds: TimeBounds,
        pseudonym_key: Option<KeyId>,
        finalizer: Arc<Finalizer>,
        snapshots: Arc<Snapshots>,
    ) -> Self {
        let (audit, reads) = (AuditLog::default(), Semaphore::new(READ_MAX));
        Self { ports, bounds, pseudonym_key, finalizer, snapshots, audit, reads }
    }

    /// Notes in this log who creates and closes polls.
    pub(crate) fn audited(self, audit: AuditLog) -> Self {
        Self { audit, ..self }
    }

    /// Waits in turn until this many polls may be read. The semaphore is never closed.
    async fn turn(&self, polls: u32) -> Result<SemaphorePermit<'_>, CallError> {
        self.reads.acquire_many(polls).await.map_err(|_| CallError::Internal)
    }

    /// Checks that whoever makes a request may create some poll. The log knows if not.
    pub(crate) fn allow_creating(&self, extensions: &Extensions) -> Result<(), Status> {
        let allowed = Caller::of(extensions).require_some(Action::Manage).map_err(Status::from);
        allowed.inspect_err(|status| self.audit.refused(extensions, acts::CREATE, None, status))
    }

    async fn create(&self, request: v1::CreatePollRequest) -> Result<Poll, CallError> {
        let now = self.ports.clock.now();
        let definition = Definition::of(request)?;
        // Look for a stored poll first: checks against the present time must not refuse a repeated call.
        let stored = self.ports.polls.get(&definition.id).await?;
        let earliest = definition.earliest(now, &self.bounds);
        let default_opening = stored.as_ref().map_or(earliest, |stored| stored.opens_at);
        let opens_by_default = definition.opens_at.is_none();
        let opens = definition.opens_at.unwrap_or(default_opening);
        if let Some(stored) = stored {
            // A poll that was closed early may even close before it opens. The repeated definition must be compared
            // without this.
            return self.same(definition.repeated(opens)?, opens_by_default, stored);
        }
        definition.check(opens, now, &self.bounds)?;
        self.check_clock()?;
        let poll = definition.poll(opens)?.with_pseudonym_key(self.pseudonym_key);
        match self.ports.polls.create(&poll).await? {
            Created::New => {
                self.stored(&poll);
                Ok(poll)
            }
            Created::Existing(stored) => self.same(poll, opens_by_default, *stored),
        }
    }

    /// The stored poll, if the request defines the same one.
    fn same(&self, mut poll: Poll, opens_by_default: bool, stored: Poll) -> Result<Poll, CallError> {
        if opens_by_default {
            poll.opens_at = stored.opens_at;
        }
        // Only ClosePoll moves `closes_at`, to an earlier time.
        let maybe_closed = stored.closes_at < poll.closes_at && stored.closing == Closing::Done;
        if !poll.same_definition(&stored) || !(poll.closes_at == stored.closes_at || maybe_closed) {
            return Err(CallError::OtherDefinition(stored.id));
        }
        self.stored(&stored);
        Ok(stored)
    }

    async fn get(&self, id: &str) -> Result<Poll, CallError> {
        let id = poll_id_of(id)?;
        self.ports.polls.get(&id).await?.ok_or(CallError::PollNotFound(id))
    }

    async fn close(&self, id: &str) -> Result<Poll, CallError> {
        let id = poll_id_of(id)?;
        let asked = self.ports.polls.begin_close(&id).await?.ok_or_else(|| CallError::PollNotFound(id.clone()))?;
        // If this process ends here, the finalizer of any process completes the call.
        self.stored(&asked);
        let closes_at = self.ports.clock.now().plus(self.bounds.settle_margin());
        self.check_clock()?;
        let poll = self.ports.polls.close(&id, closes_at).await?.ok_or(CallError::PollNotFound(id))?;
        self.stored(&poll);
        Ok(poll)
    }

    /// A page of the polls that the caller may read. It may be shorter than asked for, or empty, and still not be the last.
    async fn list(&self, caller: &Caller, request: v1::ListPollsRequest) -> Result<v1::ListPollsResponse, CallError> {
        use prost::Message;

        let size = match request.page_size as usize {
            0 => PAGE_SIZE,
            size => size.min(PAGE_SIZE_MAX),
        };
        let mut after = match request.page_token.as_str() {
            "" => None,
            token => {
                Some(PollId::new(token).map_err(|_| CallError::field("page_token", "is not one of this service"))?)
            }
        };
        let (mut polls, mut bytes, mut passed) = (Vec::new(), 0, 0);
        let now = self.ports.clock.now();
        loop {
            // Read one more than needed, to know whether there is a next page.
            let limit = READ_AT_ONCE.min(size - polls.len() + 1);
            let read = self.ports.polls.list(after.as_ref(), limit).await?;
            let more = read.len() >= limit;
            for stored in read {
                passed += 1;
                if !caller.may(Action::Read, stored.id.as_str().as_bytes()) {
                    after = Some(stored.id);
                    continue;
                }
                let poll = convert::poll(&stored, now);
                bytes += poll.encoded_len();
                if polls.len() == size || (bytes > PAGE_BYTES_MAX && !polls.is_empty()) {
                    let next_page_token = after.map_or_else(String::new, |id| id.to_string());
                    return Ok(v1::ListPollsResponse { polls, next_page_token });
                }
                polls.push(poll);
                after = Some(stored.id);
            }
            if !more {
                after = None;
            }
            if !more || passed >= PASSED_MAX {
                let next_page_token = after.map_or_else(String::new, |id| id.to_string());
                return Ok(v1::ListPollsResponse { polls, next_page_token });
            }
        }
    }

    /// Tells the rest of the process about the stored poll.
    fn stored(&self, poll: &Poll) {
        self.finalizer.note(poll);
        self.snapshots.forget(&poll.id);
    }

    /// Refuses the call if the engines contradict this clock: then it must not set times of polls.
    fn check_clock(&self) -> Result<(), CallError> {
        if self.ports.clock.is_trusted() { Ok(()) } else { Err(CallError::ClockNotTrusted) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.ports.clock.now()
    }
}

/// A request for a poll with readable fields.
struct Definition {
    id: PollId,
    title: String,
    options: Vec<PollOption>,
    opens_at: Option<Timestamp>,
    closes_at: Timestamp,
    source: PollSource,
    expected_peak: u64,
    visibility: Visibility,
}

impl Definition {
    fn of(request: v1::CreatePollRequest) -> Result<Self, CallError> {
        let id = poll_id_of(&request.poll_id)?;
        let source = source_of(request.source)?;
        let visibility = visibility_of(request.visibility)?;
        let closes_at = request.closes_at.as_ref().ok_or_else(|| CallError::field("closes_at", "is missing"))?;
        let closes_at = timestamp_of("closes_at", closes_at)?;
        let opens_at = request.opens_at.as_ref().map(|at| timestamp_of("opens_at", at)).transpose()?;
        let options = request.options.into_iter();
        let options = options.map(|option| PollOption { id: option.option_id.into(), title: option.title }).collect();
        let expected_peak = if request.expected_peak == 0 { EXPECTED_PEAK } else { request.expected_peak };
        Ok(Self { id, title: request.title, options, opens_at, closes_at, source, expected_peak, visibility })
    }

    /// The earliest moment at which a new poll may open.
    fn earliest(&self, now: Timestamp, bounds: &TimeBounds) -> Timestamp {
        match self.source {
            PollSource::Ingest => now,
            PollSource::Stream => now.plus(bounds.close_margin()),
        }
    }

    /// Whether a new poll may have these times at this moment.
    fn check(&self, opens: Timestamp, now: Timestamp, bounds: &TimeBounds) -> Result<(), CallError> {
        if self.closes_at <= now {
            return Err(CallError::field("closes_at", "must be in the future"));
        }
        if self.closes_at > now.plus(CLOSES_WITHIN) {
            return Err(CallError::field("closes_at", "must be within the next 366 days"));
        }
        if self.source == PollSource::Stream && opens < self.earliest(now, bounds) {
            let margin = bounds.close_margin().as_millis();
            let reason = format!("must be at least {margin} ms ahead for a poll that takes its votes from the stream");
            return Err(CallError::field("opens_at", reason));
        }
        Ok(())
    }

    fn poll(self, opens: Timestamp) -> Result<Poll, InvalidField> {
        let Self { id, title, options, closes_at, source, expected_peak, visibility, .. } = self;
        let poll = Poll::new(id, title, options, opens, closes_at, source, expected_peak)?;
        Ok(poll.with_visibility(visibility))
    }

    /// The poll of a repeated request, to compare it with the stored one. Does not check the times again: they were
    /// allowed when the poll was created.
    fn repeated(self, opens: Timestamp) -> Result<Poll, InvalidField> {
        let Self { id, title, options, closes_at, source, expected_peak, visibility, .. } = self;
        let poll = Poll::defined(id, title, options, opens, closes_at, source, expected_peak)?;
        Ok(poll.with_visibility(visibility))
    }
}

/// The poll that a request of `CreatePoll` defines, if no poll with its id is stored.
///
/// # Errors
///
/// The status for the caller, if the request does not define a valid poll.
pub fn new_poll(request: v1::CreatePollRequest, now: Timestamp, bounds: &TimeBounds) -> Result<Poll, Status> {
    let define = || {
        let definition = Definition::of(request)?;
        let opens = definition.opens_at.unwrap_or_else(|| definition.earliest(now, bounds));
        definition.check(opens, now, bounds)?;
        Ok::<_, CallError>(definition.poll(opens)?)
    };
    Ok(define()?)
}

fn source_of(source: i32) -> Result<PollSource, CallError> {
    match v1::PollSource::try_from(source) {
        Ok(v1::PollSource::Unspecified | v1::PollSource::Ingest) => Ok(PollSource::Ingest),
        Ok(v1::PollSource::Stream) => Ok(PollSource::Stream),
        Err(_) => Err(CallError::field("source", "is not one of INGEST and STREAM")),
    }
}

fn visibility_of(visibility: i32) -> Result<Visibility, CallError> {
    match v1::PollVisibility::try_from(visibility) {
        Ok(v1::PollVisibility::Unspecified | v1::PollVisibility::Live) => Ok(Visibility::Live),
        Ok(v1::PollVisibility::WhenFinal) => Ok(Visibility::WhenFinal),
        Ok(v1::PollVisibility::OnRelease) => Ok(Visibility::OnRelease),
        Err(_) => Err(CallError::field("visibility", "is not one of LIVE, WHEN_FINAL and ON_RELEASE")),
    }
}

#[tonic::async_trait]
impl PollService for Polls {
    async fn create_poll(
        &self,
        request: Request<v1::CreatePollRequest>,
    ) -> Result<Response<v1::CreatePollResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let id = request.poll_id.clone();
        acts::allow(&self.audit, &extensions, acts::CREATE, &id)?;
        let asked = acts::definition(&request);
        let work = async { Ok(convert::poll(&self.create(request).await?, self.now())) };
        let poll = acts::run(&self.audit, &extensions, acts::CREATE, &id, || asked, work, acts::poll).await?;
        Ok(Response::new(v1::CreatePollResponse { poll: Some(poll) }))
    }

    async fn get_poll(&self, request: Request<v1::GetPollRequest>) -> Result<Response<v1::GetPollResponse>, Status> {
        Caller::of(request.extensions()).require(Action::Read, &request.get_ref().poll_id)?;
        let _turn = self.turn(1).await?;
        let poll = self.get(&request.into_inner().poll_id).await?;
        Ok(Response::new(v1::GetPollResponse { poll: Some(convert::poll(&poll, self.now())) }))
    }

    async fn list_polls(
        &self,
        request: Request<v1::ListPollsRequest>,
    ) -> Result<Response<v1::ListPollsResponse>, Status> {
        let _turn = self.turn(PAGE_COUNTS_FOR).await?;
        let caller = Caller::of(request.extensions());
        Ok(Response::new(self.list(&caller, request.into_inner()).await?))
    }

    async fn close_poll(
        &self,
        request: Request<v1::ClosePollRequest>,
    ) -> Result<Response<v1::ClosePollResponse>, Status> {
        let (_, extensions, v1::ClosePollRequest { poll_id: id }) = request.into_parts();
        acts::allow(&self.audit, &extensions, acts::CLOSE, &id)?;
        let work = async { Ok(convert::poll(&self.close(&id).await?, self.now())) };
        let poll = acts::run(&self.audit, &extensions, acts::CLOSE, &id, || Value::Null, work, acts::poll).await?;
        Ok(Response::new(v1::ClosePollResponse { poll: Some(poll) }))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use votestream_testkit::memory::Memory;

    use super::*;
    use crate::{convert::timestamp, testing::memory};

    const NOW: i64 = 1_000_000;
    const DAY: i64 = 86_400_000;
    const KEY: KeyId = KeyId([7; 8]);

    fn service() -> (Memory, Polls) {
        let memory = memory();
        memory.set_now(NOW);
        let (ports, bounds) = (memory.ports(), TimeBounds::ONE_MACHINE);
        let finalizer = Arc::new(Finalizer::new(ports.clone(), bounds));
        let snapshots = Arc::new(Snapshots::new(ports.clone(), bounds, Duration::from_millis(100)));
        (memory, Polls::new(ports, bounds, Some(KEY), finalizer, snapshots))
    }

    fn request(id: &str) -> v1::CreatePollRequest {
        let option = |id: &str| v1::PollOption { option_id: id.into(), title: String::new() };
        v1::CreatePollRequest {
            poll_id: id.into(),
            title: "Who wins?".into(),
            options: vec![option("x"), option("y")],
            closes_at: Some(timestamp(Timestamp(NOW + DAY))),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn every_limit_is_named() {
        let (_, polls) = service();
        let stream = i32::from(v1::PollSource::Stream);
        let at = |ms| Some(timestamp(Timestamp(ms)));
        type Change = Box<dyn Fn(&mut v1::CreatePollRequest)>;
        let rows: Vec<(Change, &str)> = vec![
            (Box::new(|r| r.poll_id.clear()), "poll_id is empty"),
            (Box::new(|r| r.poll_id = "p".repeat(65)), "poll_id is 65 bytes long, the limit is 64"),
            (Box::new(|r| r.poll_id = "a b".into()), "poll_id may hold ASCII"),
            (Box::new(|r| r.title = "t".repeat(513)), "title is 513 bytes long, the limit is 512"),
            (Box::new(|r| r.options.clear()), "options holds 0 entries"),
            (Box::new(|r| r.options = vec![r.options[0].clone(); 2]), "options names \"x\" twice"),
            (Box::new(|r| r.options[1].option_id.clear()), "option_id is empty"),
            (Box::new(|r| r.options[1].title = "t".repeat(513)), "options.title is 513 bytes long"),
            (Box::new(|r| r.poll_id = "..".into()), "poll_id must not be"),
            (Box::new(|r| r.title = "a\nb".into()), "title holds a control character"),
            (Box::new(|r| r.title = "a\u{202e}b".into()), "title holds a character that changes the direction"),
            (Box::new(|r| r.options[1].option_id = "x ".into()), "option_id starts or ends with white space"),
            (
                Box::new(|r| r.options[1].option_id = "x\u{200b}".into()),
                "option_id holds an invisible character, U+200B",
            ),
            (Box::new(|r| r.options[1].option_id = "\u{445}".into()), "options: \"x\" and"),
            (Box::new(|r| r.options[1].title = " ".into()), "options.title is blank"),
            (Box::new(|r| r.closes_at = None), "closes_at is missing"),
            (Box::new(move |r| r.closes_at = at(NOW)), "closes_at must be in the future"),
            (Box::new(move |r| r.closes_at = at(NOW + 366 * DAY + 1)), "closes_at must be within the next 366 days"),
            (Box::new(move |r| r.closes_at = at(-1)), "closes_at must lie between"),
            (Box::new(move |r| r.opens_at = at(-5_000)), "opens_at must lie between"),
            (Box::new(move |r| r.opens_at = at(NOW + DAY)), "closes_at must be later than opens_at"),
            (Box::new(|r| r.source = 17), "source is not one of"),
            (Box::new(|r| r.visibility = 17), "visibility is not one of"),
            (
                Box::new(move |r| {
                    r.source = stream;
                    r.opens_at = at(NOW + 2_499);
                }),
                "opens_at must be at least 2500 ms ahead",
            ),
        ];
        for (change, message) in rows {
            let mut request = request("p");
            change(&mut request);
            let status = polls.create_poll(Caller::everybody().asks(request)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert!(status.message().starts_with(message), "{message}: {status}");
        }
        let last = v1::CreatePollRequest { closes_at: at(NOW + 366 * DAY), ..request("p") };
        assert!(polls.create_poll(Caller::everybody().asks(last)).await.is_ok());
    }

    #[tokio::test]
    async fn creating_again_changes_nothing() {
        let (memory, polls) = service();
        let first = polls.create(request("p")).await.unwrap();
        assert_eq!((first.opens_at, first.expected_peak), (Timestamp(NOW), EXPECTED_PEAK));
        memory.set_now(NOW + 5_000);
        assert_eq!(polls.create(request("p")).await.unwrap(), first);

        let closes = |ms| v1::CreatePollRequest { closes_at: Some(timestamp(Timestamp(ms))), ..request("p") };
        let other = [
            v1::CreatePollRequest { title: "Who loses?".into(), ..request("p") },
            v1::CreatePollRequest { expected_peak: 7, ..request("p") },
            v1::CreatePollRequest { visibility: v1::PollVisibility::WhenFinal.into(), ..request("p") },
            v1::CreatePollRequest { opens_at: Some(timestamp(Timestamp(NOW + 1))), ..request("p") },
            closes(NOW + DAY + 1),
            closes(NOW + DAY - 1),
        ];
        for request in other {
            let status = polls.create_poll(Caller::everybody().asks(request)).await.unwrap_err();
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        }
        // Closed early, and closed again after its end.
        let closed = polls.close("p").await.unwrap();
        assert_eq!(polls.create(request("p")).await.unwrap(), closed);
        memory.set_now(NOW + 2 * DAY);
        assert_eq!(polls.create(request("p")).await.unwrap(), closed);
    }

    #[tokio::test]
    async fn a_poll_of_before_the_rules_can_be_created_again() {
        let (memory, polls) = service();
        let options = ["tea", "tea "].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
        let (id, closes) = (PollId::new("..").unwrap(), Timestamp(NOW + DAY));
        let old = Poll::defined(id, "a\nb".into(), options, Timestamp(NOW), closes, PollSource::Ingest, EXPECTED_PEAK);
        let old = old.unwrap();
        memory.ports().polls.create(&old).await.unwrap();
        let mut again = v1::CreatePollRequest { title: "a\nb".into(), ..request("..") };
        again.options[0].option_id = "tea".into();
        again.options[1].option_id = "tea ".into();
        assert_eq!(polls.create(again.clone()).await.unwrap(), old);
        assert_eq!(polls.get("..").await.unwrap(), old);
        again.poll_id = "new".into();
        let refused = polls.create_poll(Caller::everybody().asks(again)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn a_poll_keeps_the_key_that_it_was_created_with() {
        let (memory, mut polls) = service();
        let first = polls.create(request("p")).await.unwrap();
        assert_eq!(first.pseudonym_key, Some(KEY));
        for other in [None, Some(KeyId([8; 8]))] {
            polls.pseudonym_key = other;
            assert_eq!(polls.create(request("p")).await.unwrap(), first);
            assert_eq!(memory.ports().polls.get(&first.id).await.unwrap(), Some(first.clone()));
        }
        let got = polls.get_poll(Caller::everybody().asks(v1::GetPollRequest { poll_id: "p".into() })).await.unwrap();
        assert_eq!(got.into_inner().poll.unwrap().pseudonym_key_id, "0707070707070707");
        assert_eq!(polls.create(request("q")).await.unwrap().pseudonym_key, Some(KeyId([8; 8])));
    }

    #[tokio::test]
    async fn stream_polls_open_after_the_margin() {
        let (_, polls) = service();
        let stream = v1::CreatePollRequest { source: v1::PollSource::Stream.into(), ..request("s") };
        let poll = polls.create(stream).await.unwrap();
        assert_eq!((poll.opens_at, poll.source), (Timestamp(NOW + 2_500), PollSource::Stream));
        assert_eq!(poll.pseudonym_key, None, "other producers write its user ids");
    }

    #[tokio::test]
    async fn no_time_of_a_poll_comes_from_a_clock_that_is_not_trusted() {
        let (memory, polls) = service();
        memory.set_contradicted(true);
        let status = polls.create_poll(Caller::everybody().asks(request("p"))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        memory.set_contradicted(false);
        polls.create_poll(Caller::everybody().asks(request("p"))).await.unwrap();
        memory.set_contradicted(true);
        let close = || v1::ClosePollRequest { poll_id: "p".into() };
        assert_eq!(polls.close_poll(Caller::everybody().asks(close())).await.unwrap_err().code(), Code::Unavailable);
        // The poll accepts no more votes, and closes once the clock is trusted.
        assert_eq!(polls.get("p").await.unwrap().closing, Closing::Asked);
        memory.set_contradicted(false);
        polls.close_poll(Caller::everybody().asks(close())).await.unwrap();
        assert_eq!(polls.get("p").await.unwrap().closing, Closing::Done);
    }

    #[tokio::test]
    async fn closing_only_ever_moves_to_an_earlier_time() {
        let (memory, polls) = service();
        polls.create(request("p")).await.unwrap();
        assert_eq!(polls.close("p").await.unwrap().closes_at, Timestamp(NOW + 500));
        memory.set_now(NOW + 1_000);
        assert_eq!(polls.close("p").await.unwrap().closes_at, Timestamp(NOW + 500));
        let soon = v1::CreatePollRequest { closes_at: Some(timestamp(Timestamp(NOW + 1_200))), ..request("q") };
        polls.create(soon).await.unwrap();
        assert_eq!(polls.close("q").await.unwrap().closes_at, Timestamp(NOW + 1_200));
        let missing = polls.close_poll(Caller::everybody().asks(v1::ClosePollRequest { poll_id: "none".into() })).await;
        assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    }

    #[tokio::test]
    async fn pages_hold_every_poll_once() {
        let (_, polls) = service();
        for id in 0..250 {
            polls.create(request(&format!("{id:03}"))).await.unwrap();
        }
        for page_size in [0, 1, 99, 100, 125, 250, 4_000] {
            let (mut ids, mut page_token) = (Vec::new(), String::new());
            loop {
                let page =
                    polls.list(&Caller::everybody(), v1::ListPollsRequest { page_size, page_token }).await.unwrap();
                assert!(!page.polls.is_empty());
                ids.extend(page.polls.into_iter().map(|poll| poll.poll_id));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            assert_eq!(ids, (0..250).map(|id| format!("{id:03}")).collect::<Vec<_>>(), "{page_size}");
        }
        let bad = v1::ListPollsRequest { page_token: "no token".into(), page_size: 1 };
        assert_eq!(polls.list_polls(Caller::everybody().asks(bad)).await.unwrap_err().code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn pages_are_bounded_in_bytes() {
        let (_, polls) = service();
        let option = |id| v1::PollOption { option_id: format!("{id:0128}"), title: "t".repeat(512) };
        for id in 0..8 {
            let options = (0..1_000).map(option).collect();
            let request = v1::CreatePollRequest { options, ..request(&id.to_string()) };
            polls.create(request).await.unwrap();
        }
        let page = polls.list(&Caller::everybody(), v1::ListPollsRequest::default()).await.unwrap();
        assert_eq!((page.polls.len(), page.next_page_token.as_str()), (3, "2"));
    }
}
