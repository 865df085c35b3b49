//! The null Kinesis: accepts every record and forgets it. It shows prepared records round by round, each when it is
//! told to.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use serde::Deserialize;
use serde_json::{Value, json};
use votestream_core::{
    Clock, HashRange, PollId, Timestamp,
    clock::SystemClock,
    record::batch::{BatchId, OpenBatch},
    vote_hash,
};

use super::NullConfig;
use crate::votes;

/// Rounds of prepared records. All have votes of the same users, so from the second round on every vote is a changed
/// one.
pub(crate) const ROUNDS: usize = 3;
/// Votes in a prepared record: what a shard gets in one record at two thirds of its rate and 33 records a second.
pub(crate) const VOTES_PER_RECORD: usize = 1_000;
/// Most bytes of one answer. A shard delivers 2 MiB a second, and each group reads it twice a second.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Records of one shard, each in the form that an answer needs. All records of a round come after those of the round
/// before.
type Shard = Vec<String>;

pub(super) struct Kinesis {
    pub(super) calls: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) record_bytes: AtomicU64,
    ranges: Vec<HashRange>,
    prepared: Vec<Shard>,
    /// Number of prepared rounds.
    rounds: usize,
    /// Number of rounds that are shown.
    released: AtomicUsize,
    /// Records per second that a shard shows after the first release, instead of a whole round at once.
    pace: Option<f64>,
    /// When the first release was.
    begun: OnceLock<Instant>,
    seconds: Vec<Mutex<Second>>,
    /// Per shard, whether somebody reads it.
    read: Vec<AtomicBool>,
}

/// What one shard got within one second.
struct Second {
    since: Instant,
    records: u64,
    bytes: u64,
    most: (u64, u64),
}

#[derive(Deserialize)]
struct PutRecords<'a> {
    #[serde(borrow, rename = "Records")]
    records: Vec<PutRecord<'a>>,
}

#[derive(Deserialize)]
struct PutRecord<'a> {
    #[serde(borrow, rename = "Data")]
    data: std::borrow::Cow<'a, str>,
    #[serde(borrow, rename = "ExplicitHashKey")]
    hash: std::borrow::Cow<'a, str>,
    #[serde(borrow, rename = "PartitionKey")]
    key: std::borrow::Cow<'a, str>,
}

fn shard_name(at: usize) -> String {
    format!("shardId-{at:012}")
}

impl Kinesis {
    pub(super) fn new(config: &NullConfig) -> anyhow::Result<Self> {
        let &NullConfig { shards, votes, record_votes, rate, .. } = config;
        let ranges = HashRange::split_evenly(u32::try_from(shards)?);
        let rounds = if rate.is_some() { 1 } else { ROUNDS };
        let prepared =
            if votes == 0 { vec![Vec::new(); shards] } else { prepare(&ranges, votes, record_votes, rounds)? };
        let second = || Mutex::new(Second { since: Instant::now(), records: 0, bytes: 0, most: (0, 0) });
        Ok(Self {
            calls: AtomicU64::new(0),
            records: AtomicU64::new(0),
            record_bytes: AtomicU64::new(0),
            seconds: std::iter::repeat_with(second).take(shards).collect(),
            read: std::iter::repeat_with(|| AtomicBool::new(false)).take(shards).collect(),
            ranges,
            prepared,
            rounds,
            released: AtomicUsize::new(0),
            pace: rate.map(|rate| rate / (shards * record_votes) as f64),
            begun: OnceLock::new(),
        })
    }

    /// How many of a shard's records are shown.
    fn shown(&self, records: usize) -> usize {
        let Some(pace) = self.pace else {
            return records / self.rounds * self.released.load(Ordering::Relaxed).min(self.rounds);
        };
        let due = self.begun.get().map_or(0.0, |begun| begun.elapsed().as_secs_f64() * pace);
        records.min(due as usize)
    }

    pub(super) fn release(&self) {
        self.begun.get_or_init(Instant::now);
        self.released.fetch_add(1, Ordering::Relaxed);
    }

    /// Shards that somebody reads.
    pub(super) fn shards_read(&self) -> usize {
        self.read.iter().filter(|read| read.load(Ordering::Relaxed)).count()
    }

    /// Most records and bytes that one shard got within one second.
    pub(super) fn busiest_second(&self) -> (u64, u64) {
        let most = self.seconds.iter().map(|second| second.lock().most);
        most.fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)))
    }

    pub(super) fn answer(&self, operation: &str, body: &[u8]) -> anyhow::Result<Bytes> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if operation == "PutRecords" {
            return self.put(body);
        }
        let request: Value = serde_json::from_slice(body)?;
        let answer = match operation {
            "DescribeStreamSummary" => json!({ "StreamDescriptionSummary": {
                "StreamName": request["StreamName"], "StreamARN": "arn:aws:kinesis:us-east-1:0:stream/bench",
                "StreamStatus": "ACTIVE", "RetentionPeriodHours": 24, "StreamCreationTimestamp": 0,
                "EnhancedMonitoring": [], "OpenShardCount": self.ranges.len(),
            } }),
            "ListShards" => {
                let shard = |(at, range): (usize, &HashRange)| {
                    json!({
                        "ShardId": shard_name(at),
                        "HashKeyRange": {
                            "StartingHashKey": range.start.to_string(), "EndingHashKey": range.end.to_string(),
                        },
                        "SequenceNumberRange": { "StartingSequenceNumber": "0" },
                    })
                };
                json!({ "Shards": self.ranges.iter().enumerate().map(shard).collect::<Vec<_>>() })
            }
            "GetShardIterator" => {
                let shard = request["ShardId"].as_str().and_then(|name| name.strip_prefix("shardId-"));
                let shard: usize = shard.context("no shard")?.parse()?;
                let sequence = request["StartingSequenceNumber"].as_str().map_or(Ok(1), str::parse::<usize>)?;
                json!({ "ShardIterator": format!("{shard}:{}", sequence - 1) })
            }
            "GetRecords" => return self.get(request["ShardIterator"].as_str().context("no iterator")?),
            _ => anyhow::bail!("Kinesis has no {operation} here"),
        };
        Ok(answer.to_string().into())
    }

    fn get(&self, iterator: &str) -> anyhow::Result<Bytes> {
        let (shard, at) = iterator.split_once(':').context("not an iterator of ours")?;
        let (shard, at): (usize, usize) = (shard.parse()?, at.parse()?);
        let records = self.prepared.get(shard).context("no such shard")?;
        self.read[shard].store(true, Ordering::Relaxed);
        let shown = &records[..self.shown(records.len())];
        let (mut answer, mut end) = (String::from("{\"Records\":["), at);
        for record in shown.get(at..).unwrap_or_default() {
            if answer.len() + record.len() > ANSWER_BYTES_MAX / 3 * 4 {
                break;
            }
            if end > at {
                answer.push(',');
            }
            answer += record;
            end += 1;
        }
        let behind = if end < shown.len() { 1_000 } else { 0 };
        answer += &format!("],\"NextShardIterator\":\"{shard}:{end}\",\"MillisBehindLatest\":{behind}}}");
        Ok(answer.into())
    }

    fn put(&self, body: &[u8]) -> anyhow::Result<Bytes> {
        let request: PutRecords<'_> = serde_json::from_slice(body)?;
        let mut answers = Vec::with_capacity(request.records.len());
        for record in &request.records {
            let hash: u128 = record.hash.parse()?;
            let shard = self.ranges.iter().position(|range| range.contains(hash)).context("no shard for a hash")?;
            let padding = record.data.bytes().rev().take_while(|&byte| byte == b'=').count();
            let bytes = (record.data.len() / 4 * 3 - padding + record.key.len()) as u64;
            self.seconds[shard].lock().add(bytes);
            self.record_bytes.fetch_add(bytes, Ordering::Relaxed);
            let sequence = self.records.fetch_add(1, Ordering::Relaxed) + 1;
            answers.push(json!({ "SequenceNumber": sequence.to_string(), "ShardId": shard_name(shard) }));
        }
        Ok(json!({ "FailedRecordCount": 0, "Records": answers }).to_string().into())
    }
}

impl Second {
    fn add(&mut self, bytes: u64) {
        if self.since.elapsed() >= Duration::from_secs(1) {
            (self.since, self.records, self.bytes) = (Instant::now(), 0, 0);
        }
        self.records += 1;
        self.bytes += bytes;
        self.most = (self.most.0.max(self.records), self.most.1.max(self.bytes));
    }
}

/// The records of each shard. Every round has the same random users.
fn prepare(ranges: &[HashRange], votes: usize, record_votes: usize, rounds: usize) -> anyhow::Result<Vec<Shard>> {
    let mut rng = StdRng::seed_from_u64(3);
    let poll = PollId::new(votes::POLL)?;
    let options: Vec<Arc<str>> = votes::OPTIONS.iter().map(|&option| option.into()).collect();
    let wanted = votes / ranges.len();
    let mut users: Vec<Vec<(u128, String)>> = vec![Vec::with_capacity(wanted); ranges.len()];
    let mut full = 0;
    while full < ranges.len() {
        let user = votes::user(&mut rng);
        let hash = vote_hash(votes::POLL, &user);
        let shard = ranges.iter().position(|range| range.contains(hash)).context("no shard for a hash")?;
        if users[shard].len() < wanted {
            users[shard].push((hash, user));
            full += usize::from(users[shard].len() == wanted);
        }
    }
    let now = SystemClock::new().now();
    let (mut open, mut shards, mut number) = (OpenBatch::default(), Vec::with_capacity(ranges.len()), 0);
    for (range, users) in ranges.iter().zip(&users) {
        let mut records = Vec::with_capacity(wanted / record_votes * rounds);
        for round in 0..rounds {
            for (chunk, users) in users.chunks_exact(record_votes).enumerate() {
                open.clear();
                for (at, (hash, user)) in users.iter().enumerate() {
                    // Another option than in the round before.
                    let entry = open.entry(&poll, &options[(at * 7 + chunk + round) % options.len()]);
                    open.push(entry, user, *hash, Timestamp(now.0 + at as i64 / 50));
                }
                number += 1;
                let record = open.seal(BatchId { producer: 7, number }, &(*range).into(), "");
                let data = aws_smithy_types::base64::encode(&record);
                let (sequence, arrived_at) = (records.len() + 1, now.0 as f64 / 1e3);
                records.push(format!(
                    "{{\"SequenceNumber\":\"{sequence}\",\"ApproximateArrivalTimestamp\":{arrived_at},\
                     \"Data\":\"{data}\",\"PartitionKey\":\"votes\"}}"
                ));
            }
        }
        shards.push(records);
    }
    Ok(shards)
}
