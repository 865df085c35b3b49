//! The auditor: decides which stored facts are allowed, only from the clients' requests and answers.
//!
//! In `submitted`, acknowledged votes count exactly once, refused votes never, others at most once. `counted`, the
//! recount and the final result must be equal, and hold one vote per user: a vote that no later vote of the user should
//! have replaced.

use std::collections::{BTreeMap, BTreeSet};

use std::collections::HashMap;

use bytes::Bytes;
use votestream_core::{Poll, PollSource, port::Group};

use super::{
    clients::{Answer, SentVote},
    host::recount,
    world::{ForeignVote, State},
};

/// Judges a run after everything has settled. `finals` are the results at the moment they became final.
pub(super) fn judge(
    state: &State,
    votes: &[SentVote],
    foreign: &HashMap<Bytes, Vec<ForeignVote>>,
    finals: &BTreeMap<String, Vec<u64>>,
) -> Result<(), String> {
    for poll in state.polls.values() {
        let of_poll: Vec<&SentVote> = votes.iter().filter(|vote| vote.poll == poll.id).collect();
        let verdict = judge_facts(state, poll, finals).and_then(|facts| match poll.source {
            PollSource::Ingest => judge_poll(&facts, &of_poll),
            PollSource::Stream => judge_stream(state, poll, &facts, foreign),
        });
        verdict.map_err(|reason| format!("poll {}: {reason}", poll.id))?;
    }
    Ok(())
}

/// Sums per option.
struct Facts {
    submitted: Vec<i64>,
    counted: Vec<i64>,
}

/// Checks that hold for every poll: stored data never contradict each other.
fn judge_facts(state: &State, poll: &Poll, finals: &BTreeMap<String, Vec<u64>>) -> Result<Facts, String> {
    if poll.needs_recount {
        return Err("stored data contradict each other".into());
    }
    let submitted = sums(state, poll, Group::Tally)?;
    let counted = sums(state, poll, Group::Persist)?;
    let recounted = recount(state, poll);
    if counted.iter().map(|&count| count as u64).ne(recounted.iter().copied()) {
        return Err(format!("counted {counted:?} is not what is stored: {recounted:?}"));
    }
    let result = poll.final_result.as_ref().ok_or("there is no final result")?;
    if result.votes != recounted {
        return Err(format!("the final result {:?} is not the recount {recounted:?}", result.votes));
    }
    if finals.get(poll.id.as_str()) != Some(&result.votes) {
        return Err("the final result changed".into());
    }
    Ok(Facts { submitted, counted })
}

/// Judges a poll of other producers. Every vote that arrived in time and in its own shard is submitted, as often as it
/// is in the stream, and for each user the last one is counted.
fn judge_stream(
    state: &State,
    poll: &Poll,
    facts: &Facts,
    foreign: &HashMap<Bytes, Vec<ForeignVote>>,
) -> Result<(), String> {
    let mut submitted = vec![0; poll.options.len()];
    let mut last = BTreeMap::new();
    for (shard, records) in &state.shards {
        for stored in records {
            let arrived_at = stored.record.arrived_at;
            let votes = foreign.get(&stored.record.data).into_iter().flatten().enumerate();
            for (index, vote) in votes.filter(|(_, vote)| vote.poll == poll.id) {
                let is_open = poll.opens_at <= arrived_at && arrived_at < poll.closes_at;
                if is_open && vote.hash.is_none_or(|hash| shard.range.contains(hash)) {
                    submitted[vote.option] += 1;
                    let place = (stored.record.sequence, index, vote.option);
                    let users_last = last.entry(vote.user.as_str()).or_insert(place);
                    *users_last = place.max(*users_last);
                }
            }
        }
    }
    let mut counted = vec![0; poll.options.len()];
    last.values().for_each(|(.., option)| counted[*option] += 1);
    if submitted != facts.submitted {
        return Err(format!("submitted is {:?}, but the stream holds {submitted:?}", facts.submitted));
    }
    if counted != facts.counted {
        return Err(format!("counted is {:?}, but the last votes are {counted:?}", facts.counted));
    }
    Ok(())
}

/// Judges a poll of the ingest service: the answers to clients must be true.
fn judge_poll(Facts { submitted, counted }: &Facts, votes: &[&SentVote]) -> Result<(), String> {
    if let Some(option) = submitted.iter().chain(counted).position(|sum| !(0..=1).contains(sum)) {
        return Err(format!("option {option}: submitted {submitted:?}, counted {counted:?}"));
    }
    for vote in votes {
        let times = submitted[vote.option];
        let allowed = match vote.answer {
            Some((Answer::Durable, _)) => 1..=1,
            Some((Answer::Rejected, _)) => 0..=0,
            Some((Answer::Unknown, _)) | None => 0..=1,
        };
        if !allowed.contains(&times) {
            return Err(format!("submitted {times} times: {vote:?}"));
        }
        if counted[vote.option] > times {
            return Err(format!("counted, but not submitted: {vote:?}"));
        }
    }
    let cast: BTreeSet<usize> = votes.iter().map(|vote| vote.option).collect();
    if let Some(phantom) = (0..submitted.len()).find(|option| submitted[*option] != 0 && !cast.contains(option)) {
        return Err(format!("option {phantom} was never cast"));
    }
    let users: BTreeSet<&str> = votes.iter().map(|vote| vote.user.as_str()).collect();
    users.into_iter().try_for_each(|user| {
        let of_user: Vec<&SentVote> = votes.iter().copied().filter(|vote| vote.user == user).collect();
        judge_user(counted, &of_user).map_err(|reason| format!("{user}: {reason}"))
    })
}

fn judge_user(counted: &[i64], votes: &[&SentVote]) -> Result<(), String> {
    let winners: Vec<&&SentVote> = votes.iter().filter(|vote| counted[vote.option] != 0).collect();
    let durable = || votes.iter().filter(|vote| matches!(vote.answer, Some((Answer::Durable, _))));
    let winner = match winners[..] {
        [] if durable().next().is_none() => return Ok(()),
        [] => return Err("has acknowledged votes, but none is counted".into()),
        [winner] => winner,
        _ => return Err(format!("is counted more than once: {winners:?}")),
    };
    for vote in durable() {
        let acknowledged_before =
            matches!(winner.answer, Some((Answer::Durable, settled_at)) if settled_at < vote.sent_at);
        let earlier_in_stream = winner.stream == vote.stream && winner.sent_at < vote.sent_at;
        if acknowledged_before || earlier_in_stream {
            return Err(format!("an older vote won: {winner:?} over {vote:?}"));
        }
    }
    Ok(())
}

/// Sum per option of all rows of a group.
fn sums(state: &State, poll: &Poll, group: Group) -> Result<Vec<i64>, String> {
    let mut sums = vec![0; poll.options.len()];
    for ((id, of, _), tally) in &state.tallies {
        if *id == poll.id && *of == group {
            for (option, count) in &tally.counts {
                let at = poll.option_index(option).ok_or_else(|| format!("a tally of unknown option {option}"))?;
                sums[at] += count;
            }
        }
    }
    Ok(sums)
}
