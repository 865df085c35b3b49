//! Writes votes: 25 statements per call, each on the condition that the user's stored vote is earlier.
//!
//! For a voter who is not remembered, an INSERT is tried first, as if they had not voted; it costs one write unit. For
//! a remembered voter, the stored vote is read (100 keys per call). Then either the stored vote already decides, or it
//! is replaced on the condition that it has not changed since. If a condition fails, the vote is read again. Outcomes
//! must come only from a write that took place or from a consistent read. The item that a failed statement may or may
//! not return must never be relied on.

use std::collections::{HashMap, HashSet};

use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::SemaphorePermit;
use votestream_core::{
    observe::metrics,
    port::{PortError, VoteOutcome, VoteWrite},
};

use super::{CALLS_IN_FLIGHT, Damaged, Inner, Item, POLL_BUCKET, Reader, StoredVote, USER_ID, Write, partition_key};
use crate::{
    client::{Failure, Verdict},
    dynamodb::{
        meter::Kind,
        retry::{Retries, is_throttle, repeat_refused},
    },
};

/// Most statements per call (Amazon DynamoDB API Reference, `BatchExecuteStatement`).
const STATEMENTS_MAX: usize = 25;
/// Most keys per call (Amazon DynamoDB API Reference, `BatchGetItem`). One read is enough for exactly four full calls
/// of statements.
const KEYS_MAX: usize = 100;
const _: () = assert!(KEYS_MAX.is_multiple_of(STATEMENTS_MAX), "a full read makes full writes");
/// How often votes are read and decided again. A condition fails only if another process wrote in between. That happens
/// at a take-over, and then once or twice.
const ROUNDS_MAX: u32 = 20;

/// The result of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    Done,
    /// Its condition failed: there is already a vote, or the vote is not the one that was read.
    Refused,
}

/// Partition and sort key.
type VoteKey = (String, String);

fn key_of_vote(vote: &VoteWrite<'_>) -> VoteKey {
    (partition_key(&vote.poll_id, vote.bucket), vote.user_id.to_string())
}

/// The key of an item. The item may hold only the key.
fn key_of(item: &Item) -> Result<VoteKey, Damaged> {
    let item = Reader(item);
    Ok((item.text(POLL_BUCKET)?.to_owned(), item.text(USER_ID)?.to_owned()))
}

/// Outcomes of the votes of one call, with their index in it.
type Settled = Vec<(usize, VoteOutcome)>;

impl Inner {
    pub(super) async fn write_votes(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
        let remembered = |index: &usize| {
            let vote = &votes[*index];
            self.voters.contains(vote.poll_id.as_str(), &vote.user_id)
        };
        let (mut known, new): (Vec<_>, Vec<_>) = (0..votes.len()).partition(remembered);
        let mut settled = Settled::with_capacity(votes.len());
        // Collected first, because the compiler cannot prove that a stream over the closure is `Send`.
        let inserts: Vec<_> = new.chunks(STATEMENTS_MAX).map(|chunk| self.insert_new(votes, chunk)).collect();
        let mut inserts = stream::iter(inserts).buffer_unordered(CALLS_IN_FLIGHT);
        while let Some((inserted, refused)) = inserts.try_next().await? {
            settled.extend(inserted.into_iter().map(|index| (index, VoteOutcome::Inserted)));
            known.extend(refused);
        }
        let changes: Vec<_> = known.chunks(KEYS_MAX).map(|chunk| self.change_known(votes, chunk)).collect();
        let mut changes = stream::iter(changes).buffer_unordered(CALLS_IN_FLIGHT);
        while let Some(changed) = changes.try_next().await? {
            settled.extend(changed);
        }
        for vote in votes {
            self.voters.insert(vote.poll_id.as_str(), &vote.user_id);
        }
        // Each vote has exactly one outcome: every index is either inserted or decided.
        settled.sort_unstable_by_key(|(index, _)| *index);
        Ok(settled.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Stores votes of users who seem to have none. Returns the votes that were stored, and those whose user already
    /// has a vote.
    async fn insert_new(
        &self,
        votes: &[VoteWrite<'_>],
        chunk: &[usize],
    ) -> Result<(Vec<usize>, Vec<usize>), PortError> {
        let writes: Vec<_> = chunk.iter().map(|&index| Write::Insert(&votes[index])).collect();
        let ran = self.execute(&writes).await?;
        let (done, refused): (Vec<_>, Vec<_>) = chunk.iter().copied().zip(ran).partition(|(_, ran)| *ran == Ran::Done);
        let indices = |pairs: Vec<(usize, Ran)>| pairs.into_iter().map(|(index, _)| index).collect();
        Ok((indices(done), indices(refused)))
    }

    /// Stores votes of users who seem to have one, if the new vote is later.
    async fn change_known(&self, votes: &[VoteWrite<'_>], chunk: &[usize]) -> Result<Settled, PortError> {
        let mut settled = Settled::with_capacity(chunk.len());
        let mut open = chunk.to_vec();
        for _ in 0..ROUNDS_MAX {
            if open.is_empty() {
                return Ok(settled);
            }
            let stored = self.read_votes(votes, &open).await?;
            let mut writes = Vec::with_capacity(open.len());
            for index in std::mem::take(&mut open) {
                let vote = &votes[index];
                match stored.get(&key_of_vote(vote)) {
                    // The voter was remembered by mistake, or mistaken for another one.
                    None => writes.push((index, VoteOutcome::Inserted, Write::Insert(vote))),
                    Some(stored) => match stored.judge(vote.position) {
                        Ok(outcome) => settled.push((index, outcome)),
                        Err(outcome) => writes.push((index, outcome, Write::Replace(vote, stored))),
                    },
                }
            }
            let mut writes = writes.into_iter();
            loop {
                let (decided, statements): (Settled, Vec<_>) = (writes.by_ref().take(STATEMENTS_MAX))
                    .map(|(index, outcome, write)| ((index, outcome), write))
                    .unzip();
                if statements.is_empty() {
                    break;
                }
                for (decided, ran) in decided.into_iter().zip(self.execute(&statements).await?) {
                    match ran {
                        Ran::Done => settled.push(decided),
                        Ran::Refused => open.push(decided.0),
                    }
                }
            }
        }
        if open.is_empty() {
            return Ok(settled);
        }
        Err(PortError::unknown(format!(
            "{} votes changed during each of {ROUNDS_MAX} attempts to write them",
            open.len()
        )))
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, PortError> {
        // The semaphore is never closed.
        self.calls.acquire().await.map_err(|closed| PortError::refused(closed.to_string()))
    }

    /// Reads the stored votes of these users, by partition and sort key.
    async fn read_votes(
        &self,
        votes: &[VoteWrite<'_>],
        indices: &[usize],
    ) -> Result<HashMap<VoteKey, StoredVote>, PortError> {
        let damaged = |damaged: Damaged| damaged.in_table(&self.tables.votes);
        let mut found = HashMap::with_capacity(indices.len());
        let mut open = indices.to_vec();
        let mut retries = Retries::new();
        loop {
            let answer = {
                let _permit = self.permit().await?;
                repeat_refused(&self.meters.votes, || {
                    let body = self.statements.read(open.iter().map(|&at| &votes[at]));
                    self.client.batch_get_item().customize().mutate_request(body.replace()).send()
                })
                .await
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    // A read changes nothing. Only this one is repeated, not the window.
                    let failure = Failure::of("read votes", &error);
                    if failure.verdict == Verdict::Permanent || !retries.pause().await {
                        return Err(failure.into());
                    }
                    continue;
                }
            };
            self.meters.votes.consumed(Kind::Read, answer.consumed_capacity());
            for item in answer.responses.iter().flat_map(|tables| tables.values()).flatten() {
                let vote = StoredVote::decode(item).map_err(damaged)?;
                found.insert(key_of(item).map_err(damaged)?, vote);
            }
            // Keys that were throttled, or that did not fit into the answer.
            let left = answer.unprocessed_keys.iter().flat_map(|tables| tables.values()).flat_map(|left| &left.keys);
            let left = left.map(|key| key_of(key).map_err(damaged)).collect::<Result<HashSet<_>, _>>()?;
            if left.is_empty() {
                return Ok(found);
            }
            open.retain(|&at| left.contains(&key_of_vote(&votes[at])));
            if open.is_empty() {
                return Err(PortError::unknown("read votes: keys were left that nobody asked for"));
            }
            self.meters.votes.throttled(open.len());
            if !retries.pause().await {
                return Err(PortError::refused(format!("read votes: {} keys stay throttled", open.len())));
            }
        }
    }

    /// Runs at most 25 statements in one call. Repeats only the statements that were throttled or whose outcome is unknown:
    /// the window has thousands of others. A statement may be repeated although it took effect, because then its condition
    /// fails, and a read finds the vote. Returns one answer per statement, in order.
    async fn execute(&self, writes: &[Write<'_>]) -> Result<Vec<Ran>, PortError> {
        let mut ran = vec![Ran::Done; writes.len()];
        let mut open: Vec<usize> = (0..writes.len()).collect();
        let mut retries = Retries::new();
        // Whether a statement that fails in the end may have taken effect all the same.
        let mut doubtful = false;
        loop {
            self.budget.spend(open.len()).await;
            // Made again for each attempt: most calls need one attempt, and keeping a copy would cost as much.
            let body = self.statements.execute(open.iter().map(|&at| &writes[at]));
            let result = {
                let _permit = self.permit().await?;
                self.meters.votes.request();
                let call = self.client.batch_execute_statement().customize();
                call.mutate_request(body.replace()).send().await
            };
            let mut failed = None;
            let again = match result {
                Ok(answer) if answer.responses().len() == open.len() => {
                    self.meters.votes.consumed(Kind::Write, answer.consumed_capacity());
                    let again = self.read_answers(&open, answer.responses(), &mut ran)?;
                    // Among them may be an internal error, of which nobody knows whether it took effect.
                    doubtful |= !again.is_empty();
                    // If every statement of a batch failed, the answer names no units.
                    if answer.consumed_capacity().is_empty() {
                        self.meters.votes.unreported(open.len() - again.len());
                    }
                    self.throttled(again.len());
                    again
                }
                Ok(answer) => {
                    let (got, want) = (answer.responses().len(), open.len());
                    failed = Some(format!("write votes: {got} answers to {want} statements"));
                    doubtful = true;
                    open
                }
                Err(error) => {
                    let failure = Failure::of("write votes", &error);
                    if error.code().is_some_and(is_throttle) {
                        self.throttled(open.len());
                    } else if failure.verdict == Verdict::Permanent {
                        return Err(failure.into());
                    }
                    doubtful |= failure.verdict == Verdict::Unknown;
                    failed = Some(failure.message);
                    open
                }
            };
            if again.is_empty() {
                return Ok(ran);
            }
            if !retries.pause().await {
                let failed = failed.unwrap_or_else(|| "write votes: throttled".into());
                let failed = format!("{failed}; {} statements are not stored", again.len());
                // The other votes of the batch are stored, if there are others.
                let unknown = doubtful || again.len() < writes.len();
                return Err(if unknown { PortError::unknown(failed) } else { PortError::refused(failed) });
            }
            open = again;
        }
    }

    fn throttled(&self, statements: usize) {
        self.meters.votes.throttled(statements);
        self.budget.give_back(statements);
    }

    /// Reads the answers to the statements `open`, one for each, and returns the statements that must be tried again.
    fn read_answers(
        &self,
        open: &[usize],
        answers: &[aws_sdk_dynamodb::types::BatchStatementResponse],
        ran: &mut [Ran],
    ) -> Result<Vec<usize>, PortError> {
        let mut again = Vec::new();
        let mut failed = None;
        for (&at, answer) in open.iter().zip(answers) {
            let Some(error) = answer.error() else {
                ran[at] = Ran::Done;
                continue;
            };
            match error.code().map(|code| code.as_str()) {
                Some("DuplicateItem" | "ConditionalCheckFailed") => ran[at] = Ran::Refused,
                // The write may have taken place in spite of an internal error. The condition of the next attempt finds
                // out.
                Some("InternalServerError" | "TransactionConflict") => again.push(at),
                Some("AccessDenied") => {
                    metrics::engine_unauthorized();
                    again.push(at);
                }
                Some(code) if is_throttle(code) => again.push(at),
                code => {
                    failed = Some(format!("{}: {}", code.unwrap_or("no code"), error.message().unwrap_or_default()))
                }
            }
        }
        match failed {
            None => Ok(again),
            Some(failed) => Err(PortError::permanent(format!("write votes: {failed}"))),
        }
    }
}
