//! The auditor for clients that see only the API: decides which results are allowed, only from their requests and
//! answers.
//!
//! Owns the log of what clients sent and which answers they got, and the verdict. Every vote has its own option, so the
//! sums per option distinguish the votes. In `submitted`, acknowledged votes count exactly once, refused votes never,
//! others at most once. `counted`, the recount and the final result must be equal, and hold one vote per user: a vote
//! that no later vote of the user should have replaced. Must never look into an engine.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// The answer to a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The vote is durable.
    Durable,
    /// The vote was certainly not stored.
    Rejected,
    /// The outcome is unknown: the service said so, or the connection broke.
    Unknown,
}

/// What a client knows about a vote.
#[derive(Clone, Debug)]
pub struct SentVote {
    /// The poll.
    pub poll: String,
    /// The user.
    pub user: String,
    /// Number of the option. No other vote of the poll has it. `None` means an option that the poll does not have.
    pub option: Option<usize>,
    /// Number of the stream. Votes of one stream keep their order.
    pub stream: u64,
    /// When it was sent, in the real-time order of all events of the log.
    pub sent_at: u64,
    /// The answer, and when it came.
    pub answer: Option<(Answer, u64)>,
}

impl SentVote {
    fn told(&self) -> Answer {
        self.answer.map_or(Answer::Unknown, |(answer, _)| answer)
    }
}

/// All votes of a run, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct Log {
    votes: Mutex<Vec<SentVote>>,
    /// Counts sends and answers. This gives their real-time order.
    step: AtomicU64,
    streams: AtomicU64,
}

impl Log {
    fn step(&self) -> u64 {
        self.step.fetch_add(1, Ordering::SeqCst)
    }

    /// Returns the number of a new stream.
    pub fn stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes a vote, before it is sent. Returns its number.
    pub fn sent(&self, poll: &str, user: &str, option: Option<usize>, stream: u64) -> usize {
        let mut votes = self.votes.lock();
        let sent_at = self.step();
        votes.push(SentVote { poll: poll.into(), user: user.into(), option, stream, sent_at, answer: None });
        votes.len() - 1
    }

    /// Notes an answer, after it was received. The first one stays.
    pub fn answered(&self, vote: usize, answer: Answer) {
        let at = self.step();
        self.votes.lock()[vote].answer.get_or_insert((answer, at));
    }

    /// Number of votes with this answer so far.
    pub fn count(&self, answer: Answer) -> u64 {
        let of_answer = |vote: &&SentVote| vote.answer.is_some_and(|(told, _)| told == answer);
        self.votes.lock().iter().filter(of_answer).count() as u64
    }

    /// Number of votes that wait for their answer.
    pub fn waiting(&self) -> usize {
        self.votes.lock().iter().filter(|vote| vote.answer.is_none()).count()
    }

    /// The votes of a poll so far.
    pub fn of_poll(&self, poll: &str) -> Vec<SentVote> {
        self.votes.lock().iter().filter(|vote| vote.poll == poll).cloned().collect()
    }

    /// Number of votes that were sent.
    pub fn len(&self) -> usize {
        self.votes.lock().len()
    }

    /// Whether no vote was sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The votes by which to judge a copy of a poll, from the log before the copy began and after it was complete. Votes
/// that were acknowledged before it began must be in it. For all later votes the outcome counts as unknown.
pub fn as_copied(before: &[SentVote], after: Vec<SentVote>) -> Vec<SentVote> {
    let mut known = before.iter();
    let copied = after.into_iter().map(|vote| {
        let at_begin = known.next().and_then(|vote| vote.answer);
        let answer = match (at_begin, vote.answer) {
            (Some((Answer::Durable, at)), _) => Some((Answer::Durable, at)),
            (_, Some((Answer::Rejected, at))) => Some((Answer::Rejected, at)),
            (_, _) => None,
        };
        SentVote { answer, ..vote }
    });
    copied.collect()
}

/// What the API shows for a poll that no longer changes. Each list has one number per option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Interim results.
    pub submitted: Vec<u64>,
    /// Interim results.
    pub counted: Vec<u64>,
    /// The recount of the stored votes.
    pub recounted: Vec<u64>,
    /// The final result when it was first seen.
    pub first_final: Vec<u64>,
    /// The final result in the end.
    pub last_final: Vec<u64>,
}

impl Shown {
    /// Whether every acknowledged vote shows in the interim results, and every counted vote is submitted. Until then
    /// the results still change.
    pub fn has_come_to_rest(&self, votes: &[SentVote]) -> bool {
        let shown = |option: usize| self.submitted.get(option).is_some_and(|&times| times > 0);
        let acknowledged = votes.iter().filter(|vote| vote.told() == Answer::Durable);
        acknowledged.filter_map(|vote| vote.option).all(shown)
            && self.counted.iter().zip(&self.submitted).all(|(counted, submitted)| counted <= submitted)
            && self.counted == self.last_final
    }
}

/// Judges a poll.
///
/// # Errors
///
/// A text that says what is not allowed.
pub fn judge(votes: &[SentVote], shown: &Shown) -> Result<(), String> {
    if shown.counted != shown.recounted {
        return Err(format!("counted {:?} is not what is stored: {:?}", shown.counted, shown.recounted));
    }
    if shown.last_final != shown.recounted {
        return Err(format!("the final result {:?} is not the recount {:?}", shown.last_final, shown.recounted));
    }
    if shown.first_final != shown.last_final {
        return Err(format!("the final result changed from {:?} to {:?}", shown.first_final, shown.last_final));
    }
    let mut cast = vec![false; shown.submitted.len()];
    let mut users = BTreeMap::<&str, Vec<(&SentVote, usize)>>::new();
    for vote in votes {
        let Some(option) = vote.option else {
            if vote.told() == Answer::Durable {
                return Err(format!("acknowledged, but the poll has no such option: {vote:?}"));
            }
            continue;
        };
        let (Some(&times), Some(cast)) = (shown.submitted.get(option), cast.get_mut(option)) else {
            return Err(format!("the results have no option {option}"));
        };
        let allowed = match vote.told() {
            Answer::Durable => 1..=1,
            Answer::Rejected => 0..=0,
            Answer::Unknown => 0..=1,
        };
        if !allowed.contains(&times) {
            return Err(format!("submitted {times} times: {vote:?}"));
        }
        if std::mem::replace(cast, true) {
            return Err(format!("two votes have option {option}"));
        }
        users.entry(&vote.user).or_default().push((vote, option));
    }
    for (option, (&submitted, cast)) in shown.submitted.iter().zip(cast).enumerate() {
        if submitted != 0 && !cast {
            return Err(format!("option {option} was never cast"));
        }
        let counted = shown.counted.get(option).copied().unwrap_or_default();
        if counted > submitted {
            return Err(format!("option {option} is counted {counted} times and submitted {submitted} times"));
        }
    }
    users
        .into_iter()
        .try_for_each(|(user, votes)| judge_user(&shown.counted, &votes).map_err(|reason| format!("{user}: {reason}")))
}

fn judge_user(counted: &[u64], votes: &[(&SentVote, usize)]) -> Result<(), String> {
    let winners: Vec<&SentVote> =
        votes.iter().filter(|(_, option)| counted[*option] != 0).map(|(vote, _)| *vote).collect();
    let durable = || votes.iter().map(|(vote, _)| *vote).filter(|vote| vote.told() == Answer::Durable);
    let winner = match winners[..] {
        [] => {
            return match durable().next() {
                None => Ok(()),
                Some(vote) => Err(format!("has acknowledged votes, but none is counted: {vote:?}")),
            };
        }
        [winner] => winner,
        _ => return Err(format!("is counted more than once: {winners:?}")),
    };
    for vote in durable() {
        let acknowledged_before =
            matches!(winner.answer, Some((Answer::Durable, answered_at)) if answered_at < vote.sent_at);
        let earlier_in_stream = winner.stream == vote.stream && winner.sent_at < vote.sent_at;
        if acknowledged_before || earlier_in_stream {
            return Err(format!("an older vote won: {winner:?} over {vote:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two votes of one user, the second sent after the first was acknowledged.
    fn two_votes(second: Answer) -> Vec<SentVote> {
        let log = Log::default();
        for (stream, answer) in [(0, Answer::Durable), (1, second)] {
            let vote = log.sent("p", "u", Some(stream), stream as u64);
            log.answered(vote, answer);
        }
        log.of_poll("p")
    }

    fn shown(submitted: [u64; 3], counted: [u64; 3]) -> Shown {
        let counted = counted.to_vec();
        Shown {
            submitted: submitted.to_vec(),
            recounted: counted.clone(),
            first_final: counted.clone(),
            last_final: counted.clone(),
            counted,
        }
    }

    #[test]
    fn what_is_allowed() {
        assert_eq!(judge(&two_votes(Answer::Durable), &shown([1, 1, 0], [0, 1, 0])), Ok(()));
        // A vote with an unknown outcome may count or not.
        assert_eq!(judge(&two_votes(Answer::Unknown), &shown([1, 1, 0], [0, 1, 0])), Ok(()));
        assert_eq!(judge(&two_votes(Answer::Unknown), &shown([1, 0, 0], [1, 0, 0])), Ok(()));
        assert_eq!(judge(&two_votes(Answer::Rejected), &shown([1, 0, 0], [1, 0, 0])), Ok(()));
    }

    #[test]
    fn a_copy_holds_what_was_acknowledged_before_it_began() {
        let after = two_votes(Answer::Durable);
        let waiting: Vec<_> = after.iter().map(|vote| SentVote { answer: None, ..vote.clone() }).collect();
        let before = [after[0].clone(), waiting[1].clone()];
        // The second vote was acknowledged while the copy was made, so it may be in the copy.
        let copied = as_copied(&before, after.clone());
        assert_eq!(judge(&copied, &shown([1, 0, 0], [1, 0, 0])), Ok(()));
        assert_eq!(judge(&copied, &shown([1, 1, 0], [0, 1, 0])), Ok(()));
        judge(&copied, &shown([0, 1, 0], [0, 1, 0])).unwrap_err();
        // A vote that was refused meanwhile is never in it.
        let copied = as_copied(&before, two_votes(Answer::Rejected));
        judge(&copied, &shown([1, 1, 0], [0, 1, 0])).unwrap_err();
    }

    #[test]
    fn what_is_not() {
        for (second, submitted, counted, reason) in [
            (Answer::Durable, [1, 0, 0], [1, 0, 0], "submitted 0 times"),
            (Answer::Durable, [1, 2, 0], [0, 1, 0], "submitted 2 times"),
            (Answer::Durable, [1, 1, 0], [1, 0, 0], "an older vote won"),
            (Answer::Durable, [1, 1, 0], [1, 1, 0], "counted more than once"),
            (Answer::Durable, [1, 1, 0], [0, 0, 0], "none is counted"),
            (Answer::Rejected, [1, 1, 0], [0, 1, 0], "submitted 1 times"),
            (Answer::Unknown, [1, 0, 0], [0, 1, 0], "is counted 1 times and submitted 0 times"),
            (Answer::Durable, [1, 1, 1], [0, 1, 0], "option 2 was never cast"),
        ] {
            let verdict = judge(&two_votes(second), &shown(submitted, counted));
            assert!(verdict.as_ref().is_err_and(|said| said.contains(reason)), "{verdict:?} instead of {reason}");
        }
        let good = shown([1, 1, 0], [0, 1, 0]);
        for bad in [
            Shown { recounted: vec![0, 2, 0], ..good.clone() },
            Shown { last_final: vec![0, 0, 0], ..good.clone() },
            Shown { first_final: vec![1, 0, 0], ..good.clone() },
        ] {
            judge(&two_votes(Answer::Durable), &bad).unwrap_err();
        }
    }
}
