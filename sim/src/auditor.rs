//! The auditor: from the clients' requests and answers alone, which stored facts are allowed?
//!
//! Acknowledged votes count exactly once in `submitted`, refused ones never, others at most once. `counted`, the recount and
//! the final result are one and the same, and hold one vote a user: one that no later vote of the user should have replaced.

use std::collections::{BTreeMap, BTreeSet};

use votestream_core::{Poll, port::Group};

use super::{
    clients::{Answer, SentVote},
    host::recount,
    world::State,
};

/// Judges a run that has come to rest. `finals` are the results as they were when they became final.
pub(super) fn judge(state: &State, votes: &[SentVote], finals: &BTreeMap<String, Vec<u64>>) -> Result<(), String> {
    for poll in state.polls.values() {
        let of_poll: Vec<&SentVote> = votes.iter().filter(|vote| vote.poll == poll.id).collect();
        judge_poll(state, poll, &of_poll, finals).map_err(|reason| format!("poll {}: {reason}", poll.id))?;
    }
    Ok(())
}

fn judge_poll(
    state: &State,
    poll: &Poll,
    votes: &[&SentVote],
    finals: &BTreeMap<String, Vec<u64>>,
) -> Result<(), String> {
    if poll.needs_recount {
        return Err("stored data contradicted itself".into());
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
        judge_user(&counted, &of_user).map_err(|reason| format!("{user}: {reason}"))
    })
}

fn judge_user(counted: &[i64], votes: &[&SentVote]) -> Result<(), String> {
    let winners: Vec<&&SentVote> = votes.iter().filter(|vote| counted[vote.option] != 0).collect();
    let durable = || votes.iter().filter(|vote| matches!(vote.answer, Some((Answer::Durable, _))));
    let winner = match winners[..] {
        [] if durable().next().is_none() => return Ok(()),
        [] => return Err("has acknowledged votes, and none is counted".into()),
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
    match sums.iter().position(|&sum| !(0..=1).contains(&sum)) {
        Some(option) => Err(format!("{} votes of option {option} by group {}", sums[option], group.as_str())),
        None => Ok(sums),
    }
}
