//! Stored polls: their items, and the condition of each change.
//!
//! Owns the encoding of the table of polls. Must never change what is fixed at creation. Must never store a poll whose
//! final result would not fit into its item.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use aws_sdk_dynamodb::{
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnConsumedCapacity, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use votestream_core::{
    Closing, KeyId, Poll, PollId, PollOption, PollSource, Timestamp, Visibility,
    model::poll::FinalResult,
    port::{Created, PollStore, PortError},
};

use super::{
    DynamoStore, Inner,
    item::{Damaged, ITEM_BYTES_MAX, Item, Reader, as_number, number, text, time},
    meter::Kind,
    retry::repeat_refused,
};
use crate::client::port_error;

/// Partition key.
pub(super) const POLL_ID: &str = "poll_id";
const TITLE: &str = "title";
const OPTIONS: &str = "options";
const OPTION_ID: &str = "id";
const OPENS_AT: &str = "opens_at";
const CLOSES_AT: &str = "closes_at";
const CLOSING: &str = "closing";
const SOURCE: &str = "source";
const EXPECTED_PEAK: &str = "expected_peak";
const BUCKETS: &str = "buckets";
const NEEDS_RECOUNT: &str = "needs_recount";
const FINAL_VOTES: &str = "final_votes";
const FINALIZED_AT: &str = "finalized_at";
const VISIBILITY: &str = "visibility";
const RELEASED_AT: &str = "released_at";
const PSEUDONYM_KEY: &str = "pseudonym_key";

/// Bytes of an option besides its texts: its map, its names, and its number of votes in the final result.
const OPTION_BYTES: usize = 64;
/// Bytes of everything else except the poll's own texts.
const POLL_BYTES: usize = 1_024;
/// Most pages of a scan, 1 MB each. A table of this size is scanned, but slowly.
const PAGES_MAX: usize = 1_000;

const fn source_name(source: PollSource) -> &'static str {
    match source {
        PollSource::Ingest => "INGEST",
        PollSource::Stream => "STREAM",
    }
}

fn source_of(name: &str) -> Option<PollSource> {
    [PollSource::Ingest, PollSource::Stream].into_iter().find(|source| source_name(*source) == name)
}

const fn closing_name(closing: Closing) -> &'static str {
    match closing {
        Closing::No => "NO",
        Closing::Asked => "ASKED",
        Closing::Done => "DONE",
    }
}

fn closing_of(name: &str) -> Option<Closing> {
    [Closing::No, Closing::Asked, Closing::Done].into_iter().find(|closing| closing_name(*closing) == name)
}

const fn visibility_name(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Live => "LIVE",
        Visibility::WhenFinal => "WHEN_FINAL",
        Visibility::OnRelease => "ON_RELEASE",
    }
}

fn visibility_of(name: &str) -> Option<Visibility> {
    let all = [Visibility::Live, Visibility::WhenFinal, Visibility::OnRelease];
    all.into_iter().find(|visibility| visibility_name(*visibility) == name)
}

fn encode_votes(result: &FinalResult) -> AttributeValue {
    AttributeValue::L(result.votes.iter().map(number).collect())
}

fn encode(poll: &Poll) -> Result<Item, PortError> {
    // Every field is named, so that a new one cannot be forgotten here.
    let Poll {
        id,
        title,
        options,
        opens_at,
        closes_at,
        closing,
        source,
        expected_peak,
        buckets,
        visibility,
        released_at,
        pseudonym_key,
        needs_recount,
        final_result,
    } = poll;
    let texts: usize = options.iter().map(|option| option.id.len() + option.title.len() + OPTION_BYTES).sum();
    let len = POLL_BYTES + id.as_str().len() + title.len() + texts;
    if len > ITEM_BYTES_MAX {
        return Err(PortError::permanent(format!("poll {id} takes {len} bytes, an item holds {ITEM_BYTES_MAX}")));
    }
    let option = |option: &PollOption| {
        let fields = [(OPTION_ID.to_owned(), text(&option.id)), (TITLE.to_owned(), text(&option.title))];
        AttributeValue::M(HashMap::from(fields))
    };
    let mut item = Item::from([
        (POLL_ID.to_owned(), text(id.as_str())),
        (TITLE.to_owned(), text(title)),
        (OPTIONS.to_owned(), AttributeValue::L(options.iter().map(option).collect())),
        (OPENS_AT.to_owned(), time(*opens_at)),
        (CLOSES_AT.to_owned(), time(*closes_at)),
        (CLOSING.to_owned(), text(closing_name(*closing))),
        (SOURCE.to_owned(), text(source_name(*source))),
        (EXPECTED_PEAK.to_owned(), number(expected_peak)),
        (BUCKETS.to_owned(), number(buckets)),
        (NEEDS_RECOUNT.to_owned(), AttributeValue::Bool(*needs_recount)),
    ]);
    if let Some(result) = final_result {
        item.insert(FINAL_VOTES.to_owned(), encode_votes(result));
        item.insert(FINALIZED_AT.to_owned(), time(result.finalized_at));
    }
    // A poll with none of these is stored as it was before there were any.
    if *visibility != Visibility::Live {
        item.insert(VISIBILITY.to_owned(), text(visibility_name(*visibility)));
    }
    if let Some(at) = released_at {
        item.insert(RELEASED_AT.to_owned(), time(*at));
    }
    if let Some(key) = pseudonym_key {
        item.insert(PSEUDONYM_KEY.to_owned(), text(&key.to_string()));
    }
    Ok(item)
}

fn decode(item: &Item) -> Result<Poll, Damaged> {
    let reader = Reader(item);
    let option = |value: &AttributeValue| {
        let option = Reader(value.as_m().ok()?);
        Some(PollOption { id: option.text(OPTION_ID).ok()?.into(), title: option.text(TITLE).ok()?.to_owned() })
    };
    let final_result = match reader.has(FINAL_VOTES) {
        false => None,
        true => {
            Some(FinalResult { votes: reader.list(FINAL_VOTES, as_number)?, finalized_at: reader.time(FINALIZED_AT)? })
        }
    };
    let visibility = reader.optional_text(VISIBILITY)?.map(visibility_of);
    let pseudonym_key = reader.optional_text(PSEUDONYM_KEY)?.map(str::parse::<KeyId>).transpose();
    Ok(Poll {
        id: PollId::new(reader.text(POLL_ID)?).map_err(|_| Damaged::at(POLL_ID))?,
        title: reader.text(TITLE)?.to_owned(),
        options: reader.list(OPTIONS, option)?,
        opens_at: reader.time(OPENS_AT)?,
        closes_at: reader.time(CLOSES_AT)?,
        closing: closing_of(reader.text(CLOSING)?).ok_or_else(|| Damaged::at(CLOSING))?,
        source: source_of(reader.text(SOURCE)?).ok_or_else(|| Damaged::at(SOURCE))?,
        expected_peak: reader.number(EXPECTED_PEAK)?,
        buckets: reader.number(BUCKETS)?,
        visibility: visibility.unwrap_or(Some(Visibility::Live)).ok_or_else(|| Damaged::at(VISIBILITY))?,
        released_at: reader.has(RELEASED_AT).then(|| reader.time(RELEASED_AT)).transpose()?,
        pseudonym_key: pseudonym_key.map_err(|_| Damaged::at(PSEUDONYM_KEY))?,
        needs_recount: reader.bool(NEEDS_RECOUNT)?,
        final_result,
    })
}

impl Inner {
    fn stored_poll(&self, item: Option<&Item>) -> Result<Option<Poll>, PortError> {
        item.map(decode).transpose().map_err(|damaged| damaged.in_table(&self.tables.polls))
    }

    async fn read_poll(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let answer = repeat_refused(&self.meters.polls, || {
            self.client
                .get_item()
                .table_name(&self.tables.polls)
                .key(POLL_ID, text(id.as_str()))
                .consistent_read(true)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await
        .map_err(|error| port_error("read a poll", &error))?;
        self.meters.polls.consumed(Kind::Read, answer.consumed_capacity());
        self.stored_poll(answer.item())
    }

    /// Changes a poll if the condition holds. Returns the poll as it is stored then, changed or not; `None` if it does
    /// not exist.
    async fn change_poll(
        &self,
        id: &PollId,
        update: &str,
        condition: &str,
        names: &[&str],
        values: &[(&str, AttributeValue)],
    ) -> Result<Option<Poll>, PortError> {
        let names: HashMap<_, _> = names.iter().map(|name| (format!("#{name}"), (*name).to_owned())).collect();
        let values: HashMap<_, _> = values.iter().map(|(name, value)| (format!(":{name}"), value.clone())).collect();
        let result = repeat_refused(&self.meters.polls, || {
            self.client
                .update_item()
                .table_name(&self.tables.polls)
                .key(POLL_ID, text(id.as_str()))
                .update_expression(update)
                .condition_expression(condition)
                .set_expression_attribute_names(Some(names.clone()))
                .set_expression_attribute_values(Some(values.clone()))
                .return_values(ReturnValue::AllNew)
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await;
        match result {
            Ok(answer) => {
                self.meters.polls.consumed(Kind::Write, answer.consumed_capacity());
                self.stored_poll(answer.attributes())
            }
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(failed)) => {
                    self.meters.polls.unreported(1);
                    match failed.item() {
                        Some(item) if !item.is_empty() => self.stored_poll(Some(item)),
                        _ => self.read_poll(id).await,
                    }
                }
                _ => Err(port_error("change a poll", &error)),
            },
        }
    }
}

#[async_trait]
impl PollStore for DynamoStore {
    async fn create(&self, poll: &Poll) -> Result<Created, PortError> {
        let inner = &self.inner;
        let item = encode(poll)?;
        let result = repeat_refused(&inner.meters.polls, || {
            inner
                .client
                .put_item()
                .table_name(&inner.tables.polls)
                .set_item(Some(item.clone()))
                .condition_expression("attribute_not_exists(#poll_id)")
                .expression_attribute_names("#poll_id", POLL_ID)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
        })
        .await;
        if inner.meters.polls.conditional("create a poll", result.map(|answer| answer.consumed_capacity))? {
            return Ok(Created::New);
        }
        let existing = inner.read_poll(&poll.id).await?;
        // Polls are never deleted.
        let existing = existing.ok_or_else(|| PortError::refused(format!("poll {} was deleted", poll.id)))?;
        Ok(Created::Existing(Box::new(existing)))
    }

    async fn get(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        self.inner.read_poll(id).await
    }

    /// Scans the whole table, since its keys have no order, and keeps at most `limit` polls at a time. An event has a
    /// few polls; a table of many thousands would need an index.
    async fn list(&self, after: Option<&PollId>, limit: usize) -> Result<Vec<Poll>, PortError> {
        let inner = &self.inner;
        let mut first = BTreeMap::new();
        let mut start = None;
        for _ in 0..PAGES_MAX {
            let page = repeat_refused(&inner.meters.polls, || {
                let scan = inner.client.scan().table_name(&inner.tables.polls).consistent_read(true);
                let scan = match after {
                    None => scan,
                    Some(after) => scan
                        .filter_expression("#poll_id > :after")
                        .expression_attribute_names("#poll_id", POLL_ID)
                        .expression_attribute_values(":after", text(after.as_str())),
                };
                scan.return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .set_exclusive_start_key(start.clone())
                    .send()
            })
            .await
            .map_err(|error| port_error("list polls", &error))?;
            inner.meters.polls.consumed(Kind::Read, page.consumed_capacity());
            for item in page.items() {
                if let Some(poll) = inner.stored_poll(Some(item))? {
                    first.insert(poll.id.clone(), poll);
                }
                if first.len() > limit {
                    first.pop_last();
                }
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(first.into_values().collect());
            }
        }
        Err(PortError::permanent(format!("table {} is too large to list", inner.tables.polls)))
    }

    async fn begin_close(&self, id: &PollId) -> Result<Option<Poll>, PortError> {
        let values = [("no", text(closing_name(Closing::No))), ("asked", text(closing_name(Closing::Asked)))];
        let condition = "#closing = :no AND attribute_not_exists(#final_votes)";
        self.inner.change_poll(id, "SET #closing = :asked", condition, &[CLOSING, FINAL_VOTES], &values).await
    }

    async fn close(&self, id: &PollId, closes_at: Timestamp) -> Result<Option<Poll>, PortError> {
        let values = [
            ("closes_at", time(closes_at)),
            ("asked", text(closing_name(Closing::Asked))),
            ("done", text(closing_name(Closing::Done))),
        ];
        // DynamoDB expressions have no minimum function. So there are two writes, one that moves the time and one that
        // leaves it, and the condition of only one of them holds.
        let (names, settle) = ([CLOSES_AT, CLOSING], "SET #closes_at = :closes_at, #closing = :done");
        let earlier = "#closing = :asked AND #closes_at > :closes_at";
        let poll = self.inner.change_poll(id, settle, earlier, &names, &values).await?;
        if poll.as_ref().is_none_or(|poll| poll.closing != Closing::Asked) {
            return Ok(poll);
        }
        let (keep, not_earlier) = ("SET #closing = :done", "#closing = :asked AND #closes_at <= :closes_at");
        self.inner.change_poll(id, keep, not_earlier, &names, &values).await
    }

    async fn finish(&self, id: &PollId, result: &FinalResult) -> Result<Option<Poll>, PortError> {
        let values = [
            ("votes", encode_votes(result)),
            ("at", time(result.finalized_at)),
            ("no", AttributeValue::Bool(false)),
            ("asked", text(closing_name(Closing::Asked))),
        ];
        self.inner
            .change_poll(
                id,
                "SET #final_votes = :votes, #finalized_at = :at",
                "attribute_not_exists(#final_votes) AND #needs_recount = :no AND #closing <> :asked",
                &[FINAL_VOTES, FINALIZED_AT, NEEDS_RECOUNT, CLOSING],
                &values,
            )
            .await
    }

    async fn release(&self, id: &PollId, at: Timestamp) -> Result<Option<Poll>, PortError> {
        let values = [("at", time(at)), ("on_release", text(visibility_name(Visibility::OnRelease)))];
        let condition = "#visibility = :on_release AND attribute_not_exists(#released_at)";
        let names = [VISIBILITY, RELEASED_AT];
        self.inner.change_poll(id, "SET #released_at = :at", condition, &names, &values).await
    }

    async fn set_needs_recount(&self, id: &PollId, needed: bool) -> Result<(), PortError> {
        let values = [("needed", AttributeValue::Bool(needed))];
        let condition = "attribute_exists(#needs_recount)";
        self.inner.change_poll(id, "SET #needs_recount = :needed", condition, &[NEEDS_RECOUNT], &values).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            title in ".{0,60}", options in prop::collection::vec((".{1,30}", ".{0,30}"), 1..8),
            times: (i64, i64, i64), flags: (bool, bool, bool), expected_peak: u64, buckets: u32, votes: Vec<u64>,
            visibility in 0..3_usize, released in prop::option::of(any::<i64>()), key in prop::option::of(any::<[u8; 8]>()),
        ) {
            let option = |(id, title): (String, String)| PollOption { id: Arc::from(id), title };
            let poll = Poll {
                id: PollId::new("A-poll_1.~").unwrap(),
                title,
                options: options.into_iter().map(option).collect(),
                opens_at: Timestamp(times.0),
                closes_at: Timestamp(times.1),
                closing: if flags.1 { Closing::Asked } else { Closing::Done },
                source: if flags.0 { PollSource::Stream } else { PollSource::Ingest },
                expected_peak,
                buckets,
                visibility: [Visibility::Live, Visibility::WhenFinal, Visibility::OnRelease][visibility],
                released_at: released.map(Timestamp),
                pseudonym_key: key.map(KeyId),
                needs_recount: flags.1,
                final_result: flags.2.then_some(FinalResult { votes, finalized_at: Timestamp(times.2) }),
            };
            prop_assert_eq!(decode(&encode(&poll).unwrap()), Ok(poll));
        }
    }

    #[test]
    fn a_poll_that_does_not_fit_is_an_error() {
        let option = |at: usize| PollOption { id: format!("{at}").into(), title: "x".repeat(512) };
        let poll = |options: usize| {
            let options = (0..options).map(option).collect();
            let id = PollId::new("p").unwrap();
            Poll::new(id, String::new(), options, Timestamp(1), Timestamp(2), PollSource::Ingest, 1).unwrap()
        };
        assert!(encode(&poll(600)).is_ok());
        assert!(!encode(&poll(1_000)).unwrap_err().retryable);
    }
}
