//! Stored votes: their items, and recounts. `votes/write.rs` writes votes, `votes/body.rs` makes the bodies of
//! requests.
//!
//! Owns the encoding of the table of votes. An item always fits into one write unit; an assertion checks this.

mod body;
mod write;

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use async_trait::async_trait;
use aws_sdk_dynamodb::types::ReturnConsumedCapacity;
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;
use votestream_core::{
    Poll, PollId, Position,
    model::{
        limits::{OPTION_ID_BYTES_MAX, POLL_ID_BYTES_MAX, USER_ID_BYTES_MAX},
        poll::BUCKETS_MAX,
    },
    port::{PortError, VoteOutcome, VoteStore, VoteWrite},
};

use super::{
    DynamoStore, Inner,
    item::{Damaged, Item, Reader, text},
    meter::Kind,
    retry::repeat_refused,
};
use crate::client::port_error;

pub(super) use body::Statements;

/// Partition key: `poll_id#bucket`. No poll id holds a `#`.
pub(super) const POLL_BUCKET: &str = "poll_bucket";
/// Sort key.
pub(super) const USER_ID: &str = "user_id";
const OPTION: &str = "option";
const POSITION: &str = "position";
const PREVIOUS_OPTION: &str = "previous_option";
const ACCEPTED_AT: &str = "accepted_at";

/// Most calls on the table of votes that are in flight at the same time. With 25 statements and 5 ms per call this is
/// 300,000 votes/s.
pub(super) const CALLS_IN_FLIGHT: usize = 64;
/// Buckets that a recount reads at the same time. A page of 1 MB takes some 5 MB while it is counted; and most buckets of
/// a small poll are one short answer, so that the time of a recount is the number of answers, not of bytes.
const BUCKETS_IN_FLIGHT: usize = 16;

/// Bytes of one write unit (Amazon DynamoDB Developer Guide, "Read and write operations").
const WRITE_UNIT_BYTES: usize = 1_024;
/// Largest item. A number takes at most 21 bytes, a bucket 5 digits.
const VOTE_BYTES_MAX: usize = POLL_BUCKET.len()
    + USER_ID.len()
    + OPTION.len()
    + POSITION.len()
    + PREVIOUS_OPTION.len()
    + ACCEPTED_AT.len()
    + POLL_ID_BYTES_MAX
    + 6
    + USER_ID_BYTES_MAX
    + 2 * OPTION_ID_BYTES_MAX
    + 28
    + 21;
const _: () = assert!(VOTE_BYTES_MAX <= WRITE_UNIT_BYTES, "a vote costs one write unit");
const _: () = assert!(BUCKETS_MAX <= 100_000, "the number of a bucket has five digits at most");

/// What one statement does.
#[derive(Clone, Copy, Debug)]
enum Write<'a> {
    /// Stores a vote unless the user has one.
    Insert(&'a VoteWrite<'a>),
    /// Stores a vote, provided that the stored vote is still this one.
    Replace(&'a VoteWrite<'a>, &'a StoredVote),
}

fn partition_key(poll_id: &PollId, bucket: u32) -> String {
    format!("{poll_id}#{bucket}")
}

/// The stored vote of a user, as far as it decides about a new vote of the same user.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredVote {
    position: Position,
    option: Arc<str>,
    previous: Option<Arc<str>>,
}

impl StoredVote {
    fn decode(item: &Item) -> Result<Self, Damaged> {
        let item = Reader(item);
        Ok(Self {
            position: Position::from_bytes(item.bytes(POSITION)?),
            option: item.text(OPTION)?.into(),
            previous: item.optional_text(PREVIOUS_OPTION)?.map(Arc::from),
        })
    }

    /// The outcome of a vote at this position. `Err` means that the vote is later than the stored one and must still
    /// replace it.
    fn judge(&self, position: Position) -> Result<VoteOutcome, VoteOutcome> {
        match self.position.cmp(&position) {
            Ordering::Less => Err(VoteOutcome::Replaced { previous: self.option.clone() }),
            Ordering::Equal => Ok(VoteOutcome::AlreadyStored { previous: self.previous.clone() }),
            Ordering::Greater => Ok(VoteOutcome::Superseded),
        }
    }
}

impl Inner {
    /// Counts the votes of one bucket.
    async fn count_bucket(
        &self,
        poll: &Poll,
        indices: &HashMap<&str, usize>,
        bucket: u32,
    ) -> Result<Vec<u64>, PortError> {
        let mut counts = vec![0; poll.options.len()];
        let mut start = None;
        loop {
            let page = repeat_refused(&self.meters.votes, || {
                self.client
                    .query()
                    .table_name(&self.tables.votes)
                    .consistent_read(true)
                    .key_condition_expression("#key = :key")
                    .projection_expression("#option")
                    .expression_attribute_names("#key", POLL_BUCKET)
                    .expression_attribute_names("#option", OPTION)
                    .expression_attribute_values(":key", text(&partition_key(&poll.id, bucket)))
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .set_exclusive_start_key(start.clone())
                    .send()
            })
            .await
            .map_err(|error| port_error("recount", &error))?;
            self.meters.votes.consumed(Kind::Read, page.consumed_capacity());
            for item in page.items() {
                let option = Reader(item).text(OPTION).map_err(|damaged| damaged.in_table(&self.tables.votes))?;
                let index = indices.get(option).ok_or_else(|| {
                    PortError::permanent(format!("poll {} holds a vote for an unknown option {option:?}", poll.id))
                })?;
                counts[*index] += 1;
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(counts);
            }
        }
    }
}

#[async_trait]
impl VoteStore for DynamoStore {
    async fn write(&self, votes: &[VoteWrite<'_>]) -> Result<Vec<VoteOutcome>, PortError> {
        self.inner.write_votes(votes).await
    }

    async fn recount(&self, poll: &Poll) -> Result<Vec<u64>, PortError> {
        let inner = &self.inner;
        let indices: HashMap<&str, usize> =
            poll.options.iter().enumerate().map(|(index, option)| (&*option.id, index)).collect();
        let indices = &indices;
        let buckets = stream::iter((0..poll.buckets).map(|bucket| inner.count_bucket(poll, indices, bucket)));
        let sum = |mut sum: Vec<u64>, counts: Vec<u64>| async move {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            Ok(sum)
        };
        buckets.buffer_unordered(BUCKETS_IN_FLIGHT).try_fold(vec![0; poll.options.len()], sum).await
    }

    async fn recount_unless(&self, poll: &Poll, left: &CancellationToken) -> Result<Option<Vec<u64>>, PortError> {
        // If a request is given up, only the service goes on with it: it reads one page of one bucket.
        left.run_until_cancelled(self.recount(poll)).await.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use aws_sdk_dynamodb::types::AttributeValue;
    use proptest::prelude::*;
    use serde_json::Value;
    use votestream_core::{SequenceNumber, Timestamp};

    use super::*;
    use crate::dynamodb::item::{binary, number};

    fn sent(body: body::Body) -> Value {
        let mut request = aws_smithy_runtime_api::client::orchestrator::HttpRequest::empty();
        body.replace()(&mut request);
        let bytes = request.body().bytes().unwrap();
        assert_eq!(request.headers().get("content-length"), Some(&*bytes.len().to_string()));
        serde_json::from_slice(bytes).unwrap()
    }

    fn attribute(value: &Value) -> AttributeValue {
        let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
        let value = value.as_str().unwrap();
        match kind.as_str() {
            "S" => text(value),
            "N" => number(value),
            "B" => binary(aws_smithy_types::base64::decode(value).unwrap()),
            kind => panic!("no attribute is a {kind}"),
        }
    }

    /// The item that a statement stores: its parameters, in the order in which it names the attributes.
    fn stored(names: &[&str], write: &Write<'_>) -> Item {
        let body = sent(Statements::new("votes").execute([write].into_iter()));
        assert_eq!(body["ReturnConsumedCapacity"], "TOTAL");
        let [statement] = &body["Statements"].as_array().unwrap()[..] else { panic!("{body}") };
        let text = statement["Statement"].as_str().unwrap();
        let parameters = statement["Parameters"].as_array().unwrap();
        assert_eq!(text.matches('?').count(), parameters.len(), "{text}");
        names.iter().map(|name| (*name).to_owned()).zip(parameters.iter().map(attribute)).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            sequence: u64, index: u32, bucket: u32, user in ".{1,60}", option in ".{1,60}", previous in ".{1,60}",
        ) {
            let vote = VoteWrite {
                poll_id: Cow::Owned(PollId::new("p").unwrap()),
                bucket,
                user_id: user.into(),
                option_id: option.into(),
                position: Position { sequence: SequenceNumber::from_u64(sequence), index },
                accepted_at: Timestamp(5),
            };
            let item = stored(&[POLL_BUCKET, USER_ID, OPTION, POSITION, ACCEPTED_AT], &Write::Insert(&vote));
            let first = StoredVote { position: vote.position, option: vote.option_id.clone(), previous: None };
            prop_assert_eq!(StoredVote::decode(&item), Ok(first));

            let read = sent(Statements::new("votes").read([&vote, &vote].into_iter()));
            let keys = read["RequestItems"]["votes"]["Keys"].as_array().unwrap();
            prop_assert_eq!(keys.len(), 2);
            for (name, value) in keys[0].as_object().unwrap() {
                prop_assert_eq!(item.get(name), Some(&attribute(value)));
            }
            prop_assert_eq!(keys[0].as_object().unwrap().len(), 2);

            let older = StoredVote { position: Position::default(), option: previous.into(), previous: None };
            let names = [OPTION, POSITION, ACCEPTED_AT, PREVIOUS_OPTION, POLL_BUCKET, USER_ID];
            let item = stored(&names, &Write::Replace(&vote, &older));
            let second =
                StoredVote { position: vote.position, option: vote.option_id.clone(), previous: Some(older.option) };
            prop_assert_eq!(StoredVote::decode(&item), Ok(second));
            for (name, value) in keys[1].as_object().unwrap() {
                prop_assert_eq!(item.get(name), Some(&attribute(value)));
            }
        }

        #[test]
        fn damage_is_an_error(position in prop::collection::vec(any::<u8>(), 0..40)) {
            let len = position.len();
            let item =
                Item::from([(POSITION.to_owned(), binary(position)), (OPTION.to_owned(), number(1))]);
            prop_assert_eq!(StoredVote::decode(&item), Err(Damaged::at(if len == 28 { OPTION } else { POSITION })));
        }
    }
}
