//! Which messages are under way, and which votes of them are settled.
//!
//! Owns the count of votes: a vote that is sent again is not sent twice here. Must never believe a service that claims more than
//! was sent, nor settle a vote twice.

use std::collections::VecDeque;

use tokio::time::Instant;
use votestream_proto::{
    ReceivedVotes, VotesMessage,
    v1::{Rejection, RejectionCode, StreamVotesResponse},
};

use super::{Observer, StreamOptions};

/// A message that was not settled as a whole when its stream ended.
pub(super) struct Rest<T> {
    /// Its votes that are not settled, if they are kept to be sent again.
    pub(super) message: VotesMessage,
    /// How many.
    pub(super) votes: u64,
    /// Votes before them, which are settled.
    pub(super) before: u64,
    pub(super) since: Instant,
    pub(super) tag: T,
    /// Whether it was sent once.
    pub(super) sent: bool,
    /// Whether it was sent over a stream that broke, so that its votes may have been stored.
    pub(super) may_be_stored: bool,
}

struct Pending<T> {
    /// Index of its first vote among those of the stream.
    first: u64,
    rest: Rest<T>,
    bytes: usize,
}

/// Messages that were sent over one stream after the other.
pub(super) struct Ledger<T> {
    options: StreamOptions,
    /// Votes that were sent over this stream.
    sent: u64,
    /// Votes that this stream has settled.
    settled: u64,
    /// Votes that were sent first over streams before, and over this one.
    sent_in_all: u64,
    settled_before: u64,
    /// Of the messages that are pending.
    bytes: usize,
    pending: VecDeque<Pending<T>>,
}

impl<T> Ledger<T> {
    pub(super) fn new(options: StreamOptions) -> Self {
        let pending = VecDeque::new();
        Self { options, sent: 0, settled: 0, sent_in_all: 0, settled_before: 0, bytes: 0, pending }
    }

    /// Enters a message, and returns what to send of it.
    pub(super) fn send(&mut self, mut rest: Rest<T>) -> VotesMessage {
        if !rest.sent {
            rest.sent = true;
            self.sent_in_all += rest.votes;
        }
        let (first, bytes) = (self.sent, rest.message.wire_len());
        let message = if self.options.resume {
            rest.message = std::mem::take(&mut rest.message).shared();
            rest.message.clone()
        } else {
            std::mem::take(&mut rest.message)
        };
        self.sent += rest.votes;
        self.bytes += bytes;
        self.pending.push_back(Pending { first, rest, bytes });
        message
    }

    /// Takes in what the service has answered.
    pub(super) fn answered(&mut self, response: StreamVotesResponse, now: Instant, observer: &mut impl Observer<T>) {
        let before = self.settled;
        // A service that claims more than was sent must not make us claim it too.
        self.settled = before.max(response.durable_through.min(self.sent));
        let mut rejections = response.rejections;
        rejections.sort_by_key(|rejection| rejection.index);
        let mut named = None;
        for mut rejection in rejections {
            // A vote that was settled before, is not settled now, or is named twice has another outcome already, or none yet.
            let is_news = (before..self.settled).contains(&rejection.index) && named != Some(rejection.index);
            named = Some(rejection.index);
            let after = self.pending.partition_point(|pending| pending.first <= rejection.index);
            let pending = after.checked_sub(1).and_then(|at| self.pending.get(at)).filter(|_| is_news);
            let place = pending.map(|Pending { first, rest, .. }| (&rest.tag, rest.before + (rejection.index - first)));
            if pending.is_some_and(|pending| pending.rest.may_be_stored) {
                doubt(&mut rejection);
            }
            observer.rejected(place, rejection);
        }
        while let Some(pending) =
            self.pending.pop_front_if(|pending| pending.first + pending.rest.votes <= self.settled)
        {
            let Pending { rest, bytes, .. } = pending;
            self.bytes -= bytes;
            observer.settled(rest.tag, rest.before + rest.votes, now.saturating_duration_since(rest.since));
        }
    }

    /// Forgets the stream, and hands out what it has not settled, which may have been stored or not.
    pub(super) fn take(&mut self, may_be_stored: bool) -> VecDeque<Rest<T>> {
        self.settled_before += self.settled;
        let settled = self.settled;
        (self.sent, self.settled, self.bytes) = (0, 0, 0);
        let rest = |pending: Pending<T>| {
            let done = settled.saturating_sub(pending.first);
            let Rest { message, votes, before, .. } = pending.rest;
            Rest {
                message: message.without_first(done),
                votes: votes - done,
                before: before + done,
                may_be_stored: pending.rest.may_be_stored || may_be_stored,
                ..pending.rest
            }
        };
        self.pending.drain(..).map(rest).collect()
    }

    /// Votes that were ever sent.
    pub(super) fn sent_in_all(&self) -> u64 {
        self.sent_in_all
    }

    /// Votes that were ever settled.
    pub(super) fn settled_in_all(&self) -> u64 {
        self.settled_before + self.settled
    }

    /// Whether the stream has settled everything.
    pub(super) fn is_settled(&self) -> bool {
        self.settled == self.sent
    }

    /// Whether another message may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.sent - self.settled < self.options.unsettled_votes_max && self.bytes < self.options.unsettled_bytes_max
    }
}

/// A vote that was sent before may have been stored then, whatever has become of its copy: unless it could not have been
/// accepted at that time either.
fn doubt(rejection: &mut Rejection) {
    match rejection.code() {
        RejectionCode::Malformed
        | RejectionCode::PollNotFound
        | RejectionCode::OptionNotFound
        | RejectionCode::PollNotOpen
        | RejectionCode::WrongSource
        | RejectionCode::OutcomeUnknown => {}
        // Rights may have changed since.
        RejectionCode::PollClosed
        | RejectionCode::NotAllowed
        | RejectionCode::Unavailable
        | RejectionCode::Unspecified => {
            rejection.set_code(RejectionCode::OutcomeUnknown);
            rejection
                .reason
                .insert_str(0, "the connection broke before the vote was answered, and its copy was refused: ");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Seen {
        rejected: Vec<Option<(&'static str, u64)>>,
        settled: Vec<(&'static str, u64)>,
    }

    impl Observer<&'static str> for Seen {
        fn rejected(&mut self, place: Option<(&&'static str, u64)>, _rejection: Rejection) {
            self.rejected.push(place.map(|(tag, at)| (*tag, at)));
        }

        fn settled(&mut self, tag: &'static str, votes: u64, _latency: Duration) {
            self.settled.push((tag, votes));
        }
    }

    #[derive(Default)]
    struct Codes(Vec<RejectionCode>);

    impl Observer<&'static str> for Codes {
        fn rejected(&mut self, _place: Option<(&&'static str, u64)>, rejection: Rejection) {
            self.0.push(rejection.code());
        }

        fn settled(&mut self, _tag: &'static str, _votes: u64, _latency: Duration) {}
    }

    fn rest(tag: &'static str, votes: u64) -> Rest<&'static str> {
        let mut message = VotesMessage::default();
        (0..votes).for_each(|at| message.push("p", &format!("{tag}{at}"), "o"));
        Rest { message, votes, before: 0, since: Instant::now(), tag, sent: false, may_be_stored: false }
    }

    fn answer(durable_through: u64, rejected: &[u64]) -> StreamVotesResponse {
        let rejections = rejected.iter().map(|&index| Rejection { index, ..Rejection::default() }).collect();
        StreamVotesResponse { durable_through, rejections }
    }

    fn ledger(messages: [(&'static str, u64); 3]) -> Ledger<&'static str> {
        let mut ledger = Ledger::new(StreamOptions::default());
        for (tag, votes) in messages {
            ledger.send(rest(tag, votes));
        }
        ledger
    }

    #[test]
    fn rejections_find_their_message_and_only_whole_messages_are_settled() {
        let mut ledger = ledger([("a", 3), ("b", 2), ("c", 4)]);
        let (mut seen, now) = (Seen::default(), Instant::now());
        ledger.answered(answer(6, &[4, 0, 5]), now, &mut seen);
        assert_eq!(seen.rejected, [Some(("a", 0)), Some(("b", 1)), Some(("c", 0))]);
        assert_eq!(seen.settled, [("a", 3), ("b", 2)]);
        ledger.answered(answer(99, &[1, 5, 40]), now, &mut seen);
        assert_eq!(seen.rejected[3..], [None, None, None]);
        assert_eq!(seen.settled[2..], [("c", 4)]);
        assert!(ledger.settled_in_all() == 9 && ledger.is_settled() && ledger.bytes == 0);
    }

    #[test]
    fn a_vote_has_one_outcome_whatever_the_service_says() {
        let mut ledger = ledger([("a", 2), ("b", 2), ("c", 2)]);
        let (mut seen, now) = (Seen::default(), Instant::now());
        // Named twice, and named before it is settled.
        ledger.answered(answer(1, &[0, 0, 3]), now, &mut seen);
        assert_eq!(seen.rejected, [Some(("a", 0)), None, None]);
        ledger.answered(answer(0, &[]), now, &mut seen);
        assert_eq!(ledger.settled_in_all(), 1);
        ledger.answered(answer(4, &[3]), now, &mut seen);
        assert_eq!(seen.rejected[3..], [Some(("b", 1))]);
    }

    #[test]
    fn what_is_sent_again_keeps_its_places_and_is_counted_once() {
        let mut ledger = ledger([("a", 3), ("b", 4), ("c", 2)]);
        let (mut seen, now) = (Seen::default(), Instant::now());
        ledger.answered(answer(5, &[4]), now, &mut seen);
        let left = ledger.take(false);
        let shape: Vec<_> = left.iter().map(|rest| (rest.tag, rest.before, rest.votes)).collect();
        assert_eq!(shape, [("b", 2, 2), ("c", 0, 2)]);
        let mut sent = Vec::new();
        for rest in left {
            sent.push(ledger.send(rest));
        }
        let users: Vec<_> = sent.iter().flat_map(ReceivedVotes::votes).map(|vote| vote.unwrap().user_id).collect();
        assert_eq!(users, [b"b2", b"b3", b"c0", b"c1"]);
        assert_eq!((ledger.sent_in_all(), ledger.settled_in_all()), (9, 5));
        ledger.answered(answer(4, &[1, 2]), now, &mut seen);
        assert_eq!(seen.rejected, [Some(("b", 1)), Some(("b", 3)), Some(("c", 0))]);
        assert_eq!(seen.settled, [("a", 3), ("b", 4), ("c", 2)]);
        assert_eq!((ledger.sent_in_all(), ledger.settled_in_all()), (9, 9));
    }

    #[test]
    fn a_copy_that_is_refused_says_nothing_about_the_first() {
        for (code, known) in [
            (RejectionCode::OptionNotFound, true),
            (RejectionCode::PollClosed, false),
            (RejectionCode::Unavailable, false),
        ] {
            for may_be_stored in [false, true] {
                let mut ledger = Ledger::new(StreamOptions::default());
                ledger.send(Rest { may_be_stored, ..rest("a", 1) });
                let mut codes = Codes::default();
                let rejections = vec![Rejection { index: 0, code: code.into(), reason: String::new() }];
                ledger.answered(StreamVotesResponse { durable_through: 1, rejections }, Instant::now(), &mut codes);
                let expected = if known || !may_be_stored { code } else { RejectionCode::OutcomeUnknown };
                assert_eq!(codes.0, [expected]);
            }
        }
    }

    #[test]
    fn votes_and_bytes_are_bounded() {
        let options = StreamOptions { unsettled_votes_max: 5, unsettled_bytes_max: 60, ..StreamOptions::default() };
        let mut ledger = Ledger::new(options);
        ledger.send(rest("a", 4));
        assert!(ledger.has_room());
        ledger.send(rest("b", 1));
        assert!(!ledger.has_room());
        ledger.answered(answer(4, &[]), Instant::now(), &mut Seen::default());
        let mut long = rest("c", 1);
        long.message.push("p", &"u".repeat(60), "o");
        assert!(ledger.has_room());
        ledger.send(long);
        assert!(!ledger.has_room());
    }
}
