//! The shard map.
//!
//! Reads it from Kinesis. Must never invent a shard, and never leave out a shard in which a record was stored.

use std::time::Duration;

use aws_sdk_kinesis::{Client, types::Shard as KinesisShard};
use votestream_core::{
    HashRange, ShardId,
    port::{PortError, Shard},
};

use super::{Attempts, address::StreamAddress, limits::LIST_SHARDS_PAGE};
use crate::client::{Failure, Verdict};

/// Most pages. No account may have nearly as many shards.
const PAGES_MAX: usize = 100;
/// How often, and after which pause, the map is read again because a shard that is known to exist is not in it.
pub(super) const MISSING_SHARD_READS: Attempts = Attempts { times: 10, pause: Duration::from_millis(200) };

/// Whether the stream has forgotten a shard: one that was closed is no longer listed once its records have all left the
/// retention (ListShards: "does not list expired shards"). An answer that the shard does not exist proves this only
/// together with a list, since the stream itself may be missing.
pub(super) async fn is_gone(client: &Client, stream: &StreamAddress, shard: &ShardId) -> Result<bool, PortError> {
    let listed = list(client, stream).await?;
    Ok(listed.iter().all(|listed| listed.id != *shard))
}

/// All shards, in the order of their creation.
pub(super) async fn list(client: &Client, stream: &StreamAddress) -> Result<Vec<Shard>, Failure> {
    let failed = |text| Failure::new(Verdict::Permanent, text);
    let what = format!("ListShards of {stream}");
    let mut shards = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let request = client.list_shards().max_results(LIST_SHARDS_PAGE);
        let request = match token {
            None => request.set_stream_name(stream.name()).set_stream_arn(stream.arn()),
            Some(token) => request.next_token(token),
        };
        let output = request.send().await.map_err(|error| Failure::of(&what, &error))?;
        for shard in output.shards() {
            shards.push(convert(shard).ok_or_else(|| failed(format!("{what}: {shard:?}")))?);
        }
        token = output.next_token;
        if token.is_none() {
            // The numbers in shard names only grow.
            shards.sort_unstable_by(|a: &Shard, b| a.id.cmp(&b.id));
            return Ok(shards);
        }
    }
    Err(failed(format!("{what}: more than {PAGES_MAX} pages")))
}

fn convert(shard: &KinesisShard) -> Option<Shard> {
    let range = shard.hash_key_range()?;
    let numbers = shard.sequence_number_range()?;
    let ends_at = numbers.ending_sequence_number();
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    Some(Shard {
        id: ShardId::new(shard.shard_id()),
        range: HashRange { start: range.starting_hash_key().parse().ok()?, end: range.ending_hash_key().parse().ok()? },
        parents: parents.into_iter().flatten().map(ShardId::new).collect(),
        open: ends_at.is_none(),
        ends_at: ends_at.and_then(|number| number.parse().ok()),
    })
}
