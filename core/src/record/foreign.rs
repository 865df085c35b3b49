//! Records of other producers: plain JSON votes, and aggregates of them as the Kinesis Producer Library writes.
//!
//! Owns what such a record may look like. Such votes have no producer id: their position in the stream is their
//! identity, and their arrival there is their `accepted_at`. Must never panic, nor allocate more than in proportion to
//! the record, on any input: this code reads what anybody with write access to the stream has sent.

mod aggregate;
mod json;

use std::{collections::HashMap, sync::Arc};

pub use aggregate::{MAGIC as AGGREGATE_MAGIC, decode as decode_aggregate, key_hash};
pub use json::{JsonText, JsonVote};

use crate::{
    HashRanges, PollId, Timestamp,
    model::poll::{InvalidField, check_option_id, check_user_id},
    record::batch::{Batch, BatchId},
};

/// Largest record that Kinesis takes (Amazon Kinesis Data Streams Developer Guide, "Quotas and limits").
pub const RECORD_BYTES_MAX: usize = 10 << 20;
/// Most votes of an aggregate. The shortest vote takes 43 bytes in it, so no record of votes holds more.
pub const VOTES_MAX: usize = RECORD_BYTES_MAX / 40;

/// Why a record of another producer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is larger than any record of the stream can be.
    #[error("{0} bytes are more than the {RECORD_BYTES_MAX} that a record may have")]
    TooLarge(usize),
    /// It is not JSON, or not an object; says where.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// A field of a vote is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field of a vote has the wrong type.
    #[error("{0} must be a string or a whole number of up to 64 bits")]
    Type(&'static str),
    /// A field of a vote breaks a limit.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// The digest of an aggregate does not match its content.
    #[error("the MD5 digest does not match the content")]
    Digest,
    /// The content of an aggregate is not the expected protobuf message; names the part.
    #[error("{0} is invalid")]
    Aggregate(&'static str),
}

/// The votes of one record, in columns: the vote at index i of the record is at index i of each column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignVotes {
    dictionary: Vec<(PollId, Arc<str>)>,
    choices: Vec<u32>,
    user_block: String,
    user_ends: Vec<u32>,
    /// Per vote, the hash that must be in the shard's range. Empty for a plain record, which is in the right shard by
    /// itself.
    hashes: Vec<u128>,
    /// Indices of the parts of the record that cannot be read, ascending; the columns hold placeholders there.
    unreadable: Vec<u32>,
}

impl ForeignVotes {
    /// Number of votes. Those that cannot be read count, too.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether there is no vote.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Hashes of the partition keys, one per vote; empty for a plain record.
    pub fn hashes(&self) -> &[u128] {
        &self.hashes
    }

    /// Indices of the votes that cannot be read, ascending.
    pub fn unreadable(&self) -> &[u32] {
        &self.unreadable
    }

    /// The votes as a batch, accepted when the record arrived. Nobody may use the identity of this batch. Where a vote
    /// cannot be read, its user id is empty and its choice means nothing; if no vote can be read, the choices are not
    /// even valid.
    pub(crate) fn into_parts(self, arrived_at: Timestamp) -> (Batch, Vec<u128>, Vec<u32>) {
        let accepted_at = vec![arrived_at; self.choices.len()];
        let batch = Batch {
            id: BatchId { producer: 0, number: 0 },
            ranges: HashRanges::default(),
            trace_context: String::new(),
            dictionary: self.dictionary,
            choices: self.choices,
            accepted_at,
            user_block: self.user_block,
            user_ends: self.user_ends,
        };
        (batch, self.hashes, self.unreadable)
    }
}

/// Collects the votes of one record.
#[derive(Default)]
struct Builder {
    votes: ForeignVotes,
    entries: HashMap<(PollId, Arc<str>), u32>,
}

impl Builder {
    /// Appends a vote, or a placeholder if its fields break a limit.
    fn push(&mut self, vote: Result<JsonVote<'_>, DecodeError>) -> Result<(), DecodeError> {
        let entered = vote.and_then(|vote| self.enter(&vote));
        if entered.is_err() {
            self.votes.unreadable.push(self.votes.choices.len() as u32);
            self.votes.choices.push(0);
        }
        self.votes.user_ends.push(self.votes.user_block.len() as u32);
        entered
    }

    fn enter(&mut self, vote: &JsonVote<'_>) -> Result<(), DecodeError> {
        let user_id = check_user_id(vote.user_id.as_bytes())?;
        let option_id = check_option_id(vote.option_id.as_bytes())?;
        let key = (PollId::new(&vote.poll_id)?, Arc::<str>::from(option_id));
        let next = self.votes.dictionary.len() as u32;
        let entry = *self.entries.entry(key).or_insert_with_key(|key| {
            self.votes.dictionary.push(key.clone());
            next
        });
        self.votes.choices.push(entry);
        self.votes.user_block.push_str(user_id);
        Ok(())
    }
}

/// Reads a record of another producer: an aggregate if it starts like one, else one plain JSON vote.
///
/// # Errors
///
/// If nothing of it can be read. If only some votes of an aggregate cannot be read, the answer marks them instead.
pub fn decode(record: &[u8]) -> Result<ForeignVotes, DecodeError> {
    if record.len() > RECORD_BYTES_MAX {
        return Err(DecodeError::TooLarge(record.len()));
    }
    if record.starts_with(&AGGREGATE_MAGIC) {
        return decode_aggregate(record);
    }
    let mut builder = Builder::default();
    builder.push(JsonVote::decode(record))?;
    Ok(builder.votes)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) use super::aggregate::tests::aggregate;

    /// A plain vote as a record.
    pub(crate) fn json(poll: &str, user: &str, option: &str) -> Vec<u8> {
        serde_json::json!({"cognitoid": user, "voteid": poll, "option": option}).to_string().into_bytes()
    }

    fn votes_of(votes: &ForeignVotes) -> Vec<(String, String, String)> {
        let unreadable = votes.unreadable.clone();
        let (batch, ..) = votes.clone().into_parts(Timestamp(7));
        assert!(batch.accepted_at.iter().all(|at| *at == Timestamp(7)));
        (0..batch.len())
            .filter(|index| !unreadable.contains(&(*index as u32)))
            .map(|index| {
                let (poll, option) = &batch.dictionary[batch.choices[index] as usize];
                (poll.to_string(), batch.user_id(index).to_owned(), option.to_string())
            })
            .collect()
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9]{1,12}", "[^\\p{Cc}]{1,20}"]
    }

    fn vote() -> impl Strategy<Value = (String, String, String)> {
        ("[A-Za-z0-9._~-]{1,20}", text(), text())
    }

    proptest! {
        #[test]
        fn a_plain_vote_is_read_as_written((poll, user, option) in vote()) {
            let votes = decode(&json(&poll, &user, &option)).unwrap();
            prop_assert!(votes.hashes().is_empty() && votes.unreadable().is_empty());
            prop_assert_eq!(votes_of(&votes), [(poll, user, option)]);
        }

        #[test]
        fn an_aggregate_is_read_as_written(
            votes in prop::collection::vec((vote(), prop::option::of(any::<u128>()), any::<bool>()), 0..20),
        ) {
            let parts: Vec<_> = votes.iter().map(|((poll, user, option), hash, good)| {
                let data = if *good { json(poll, user, option) } else { b"{\"cognitoid\": 1}".to_vec() };
                (user.as_str(), *hash, data)
            }).collect();
            let read = decode(&aggregate(&parts)).unwrap();
            prop_assert_eq!(read.len(), votes.len());
            let expected: Vec<u128> =
                votes.iter().map(|((_, user, _), hash, _)| hash.unwrap_or_else(|| key_hash(user.as_bytes()))).collect();
            prop_assert_eq!(read.hashes(), expected);
            let bad: Vec<u32> = (0..).zip(&votes).filter(|(_, vote)| !vote.2).map(|(index, _)| index).collect();
            prop_assert_eq!(read.unreadable(), bad);
            let good: Vec<_> = votes.into_iter().filter(|vote| vote.2).map(|vote| vote.0).collect();
            prop_assert_eq!(votes_of(&read), good);
        }

        #[test]
        fn any_bytes_are_an_error_or_valid_votes(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            kind in 0..3u8,
        ) {
            match kind {
                0 => {}
                1 => bytes.splice(..0, AGGREGATE_MAGIC).for_each(drop),
                // With the right digest, so that the message itself is looked at.
                _ => bytes = aggregate::tests::seal(&bytes),
            }
            if let Ok(votes) = decode(&bytes) {
                check(&votes)?;
            }
        }

        #[test]
        fn a_damaged_aggregate_is_an_error_or_valid_votes(
            votes in prop::collection::vec(vote(), 1..6),
            at: prop::sample::Index,
            byte: u8,
            reseal: bool,
        ) {
            let parts: Vec<_> =
                votes.iter().map(|(poll, user, option)| (user.as_str(), None, json(poll, user, option))).collect();
            let good = aggregate(&parts);
            let mut record = good.clone();
            let at = at.index(record.len());
            record[at] = byte;
            if reseal && record.starts_with(&AGGREGATE_MAGIC) {
                let message = record[AGGREGATE_MAGIC.len()..record.len() - 16].to_vec();
                record = aggregate::tests::seal(&message);
            }
            match decode(&record) {
                Ok(votes) => {
                    prop_assert!(reseal || record == good, "the digest covers every byte");
                    check(&votes)?;
                }
                Err(_) => prop_assert!(record != good),
            }
            prop_assert!(decode(&good[..at]).is_err());
        }
    }

    /// What every reader of the columns relies on.
    fn check(votes: &ForeignVotes) -> Result<(), TestCaseError> {
        prop_assert!(votes.hashes.is_empty() || votes.hashes.len() == votes.len());
        prop_assert_eq!(votes.user_ends.len(), votes.len());
        prop_assert!(votes.unreadable.is_sorted_by(|a, b| a < b));
        for (poll, user, option) in votes_of(votes) {
            prop_assert!(PollId::new(&poll).is_ok());
            prop_assert!(check_user_id(user.as_bytes()).is_ok());
            prop_assert!(check_option_id(option.as_bytes()).is_ok());
        }
        Ok(())
    }

    #[test]
    fn a_record_above_the_limit_is_refused_unread() {
        let record = vec![b' '; RECORD_BYTES_MAX + 1];
        assert_eq!(decode(&record), Err(DecodeError::TooLarge(RECORD_BYTES_MAX + 1)));
    }

    #[test]
    fn limits_of_ids_hold_for_other_producers_too() {
        let long = "u".repeat(257);
        for (poll, user, option, reason) in [
            ("p", "", "x", "user_id is empty"),
            ("p", &long, "x", "user_id is 257 bytes long, the limit is 256"),
            ("p", "u\u{7}", "x", "user_id holds a control character"),
            ("a b", "u", "x", "poll_id may hold ASCII letters, digits and \"-\", \"_\", \".\", \"~\" only"),
            ("p", "u", "", "option_id is empty"),
        ] {
            assert_eq!(decode(&json(poll, user, option)).unwrap_err().to_string(), reason);
        }
    }
}
