//! What readers of the vote stream meet on AWS and on no stand-in by itself: shards that have left the stream, a shard that
//! is read too fast by all its readers together, reads that stand still a day behind, and a checkpoint that has expired
//! under the real binaries, up to the operator's command.

use std::{sync::Arc, time::Duration};

use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use votestream_aws::{
    dynamodb::{DynamoConfig, DynamoStore},
    kinesis::{self, Kinesis, KinesisConfig},
};
use votestream_core::{
    Clock, Poll, PollId, PollOption, PollSource, SequenceNumber, ShardId, Timestamp,
    port::{Group, PollStore, ReadOutcome, RecordReader, Stored, VoteStream},
    record::batch::{self, BatchId, OpenBatch},
    vote_hash,
};
use votestream_e2e::{
    aws::{STREAM, Server, dynamo_store, dynamodb, kinesis_clients, kinesis_read_by},
    cluster::{Binaries, Cluster, eventually},
    reshard::{PATIENCE, put},
};
use votestream_testkit::stand_ins::Reading;

const BINARIES: Binaries = Binaries {
    ingest: env!("CARGO_BIN_EXE_cluster-ingest-svc"),
    persist: env!("CARGO_BIN_EXE_cluster-persist-svc"),
    tally: env!("CARGO_BIN_EXE_cluster-tally-svc"),
};

fn polling() -> kinesis::Reading {
    kinesis::Reading::Polling { pause: Duration::from_millis(5) }
}

fn fan_out() -> kinesis::Reading {
    kinesis::Reading::EnhancedFanOut { consumer: "votestream".into(), resubscribe_after: Duration::from_millis(20) }
}

async fn open(endpoint: &str, reading: kinesis::Reading) -> Arc<Kinesis> {
    let config = KinesisConfig { reading, ..KinesisConfig::new(STREAM) };
    Arc::new(Kinesis::connect(&kinesis_clients(endpoint).await, config).await.unwrap())
}

/// Reads until something else than records comes.
async fn end(reader: &mut dyn RecordReader) -> (usize, ReadOutcome) {
    let mut records = 0;
    let read = async {
        loop {
            match reader.next().await.unwrap() {
                ReadOutcome::Records(more) => records += more.len(),
                end @ (ReadOutcome::Expired | ReadOutcome::ShardEnd) => return end,
            }
        }
    };
    let end = timeout(PATIENCE, read).await.expect("reading ends");
    (records, end)
}

async fn a_shard_that_left_the_stream_is_expired(way: kinesis::Reading) {
    let reading = Reading::default();
    let (endpoint, _server, _) = kinesis_read_by(2, &reading).await;
    let stream = open(&endpoint, way).await;
    let (gone, _) = put(&stream, 0, vec![1].into()).await;
    let (kept, _) = put(&stream, u128::MAX, vec![2].into()).await;
    assert_ne!(gone.shard, kept.shard);
    let mut before = stream.reader(Group::Persist, &gone.shard, SequenceNumber::ZERO).await.unwrap();
    assert_eq!(votestream_e2e::reshard::read(&mut *before, 1).await.0.len(), 1);

    reading.vanish(gone.shard.as_str());
    let listed = stream.list_shards().await.unwrap();
    assert!(listed.iter().all(|shard| shard.id != gone.shard) && !listed.is_empty());
    for after in [SequenceNumber::ZERO, gone.sequence] {
        let mut reader = stream.reader(Group::Tally, &gone.shard, after).await.unwrap();
        assert_eq!(end(&mut *reader).await, (0, ReadOutcome::Expired), "nobody can tell that everything was read");
    }
    assert!(reading.not_found() >= 2, "Kinesis was asked");
    let mut reader = stream.reader(Group::Tally, &kept.shard, SequenceNumber::ZERO).await.unwrap();
    assert_eq!(votestream_e2e::reshard::read(&mut *reader, 1).await.0.len(), 1, "the other shard is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_left_the_stream_is_expired_by_polling() {
    a_shard_that_left_the_stream_is_expired(polling()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_left_the_stream_is_expired_by_fan_out() {
    a_shard_that_left_the_stream_is_expired(fan_out()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_read_too_fast_is_no_failure_and_is_read_in_smaller_pieces() {
    const RECORD: usize = 200_000;
    const RECORDS: usize = 40;
    const WANTED: usize = 2 << 20;
    let reading = Reading::default();
    let (endpoint, _server, _) = kinesis_read_by(1, &reading).await;
    let stream = open(&endpoint, polling()).await;
    for at in 0..RECORDS {
        put(&stream, 0, vec![at as u8; RECORD].into()).await;
    }
    let shard = stream.list_shards().await.unwrap().remove(0).id;
    reading.count_bytes();
    // Both groups catch up at once, as after an outage. The second one comes when the shard has just been read.
    let readers = [Group::Persist, Group::Tally].map(|group| {
        let (stream, shard, reading) = (stream.clone(), shard.clone(), reading.clone());
        tokio::spawn(async move {
            while group == Group::Tally && reading.sizes().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
            let mut reader = stream.reader(group, &shard, SequenceNumber::ZERO).await.unwrap();
            let mut numbers = Vec::new();
            while numbers.len() < RECORDS {
                // No refusal is an error: a dozen of them in a row would end the shard.
                let outcome = reader.next().await.expect("a refused read is no failure");
                let ReadOutcome::Records(records) = outcome else { panic!("the shard is open") };
                numbers.extend(records.iter().map(|record| usize::from(record.data[0])));
            }
            numbers
        })
    });
    for reader in readers {
        let numbers = timeout(PATIENCE, reader).await.expect("both get through").unwrap();
        assert_eq!(numbers, (0..RECORDS).collect::<Vec<_>>(), "each record once, in order");
    }
    assert!(reading.refused() > 0, "nothing was refused");
    let sizes = reading.sizes();
    assert!(sizes.iter().all(|bytes| *bytes <= WANTED), "no read shuts the other group out for long: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_stand_still_a_day_behind_are_expired() {
    let reading = Reading::default();
    let (endpoint, _server, _) = kinesis_read_by(1, &reading).await;
    let stream = open(&endpoint, polling()).await;
    let (first, _) = put(&stream, 0, vec![1].into()).await;
    let mut proven = stream.reader(Group::Persist, &first.shard, SequenceNumber::ZERO).await.unwrap();
    assert_eq!(votestream_e2e::reshard::read(&mut *proven, 1).await.0.len(), 1);
    reading.stand_still();
    let mut fresh = stream.reader(Group::Tally, &first.shard, first.sequence).await.unwrap();
    assert_eq!(end(&mut *fresh).await, (0, ReadOutcome::Expired));
    assert_eq!(end(&mut *proven).await, (0, ReadOutcome::Expired), "its last record does not show itself again");
    assert!(reading.still() > 0);
}

/// A stream, tables and a poll that is open, for the real binaries.
struct Deployed {
    cluster: Cluster,
    stream: Arc<Kinesis>,
    store: DynamoStore,
    kinesis: String,
    dynamodb: String,
}

impl Deployed {
    async fn new(kinesis: (String, Server)) -> Self {
        let (dynamodb, server) = dynamodb().await;
        let store = dynamo_store(&dynamodb, &DynamoConfig::default()).await;
        store.create_tables().await.unwrap();
        let stream = open(&kinesis.0, polling()).await;
        let now = now();
        let options = vec![PollOption { id: "x".into(), title: String::new() }];
        let hour = 3_600_000;
        let (opens, closes) = (Timestamp(now.0 - hour), Timestamp(now.0 + hour));
        let poll = Poll::new(PollId::new("p").unwrap(), "A poll".into(), options, opens, closes, PollSource::Ingest, 1)
            .unwrap();
        PollStore::create(&store, &poll).await.unwrap();
        let (kinesis_url, dynamodb_url) = (kinesis.0.clone(), dynamodb.clone());
        let cluster = Cluster::over(BINARIES, STREAM, kinesis, (dynamodb, vec![server])).await;
        Self { cluster, stream, store, kinesis: kinesis_url, dynamodb: dynamodb_url }
    }

    async fn vote(&self, number: u64, user: &str) -> Stored {
        let hash = vote_hash("p", user);
        let shard = self.stream.list_shards().await.unwrap().into_iter().find(|shard| shard.range.contains(hash));
        let mut open = OpenBatch::default();
        let entry = open.entry(&PollId::new("p").unwrap(), &"x".into());
        open.push(entry, user, hash, now());
        let batch = open.to_batch(BatchId { producer: 7, number }, shard.unwrap().range.into(), String::new());
        put(&self.stream, hash, batch::encode(&batch)).await.0
    }

    async fn is_flagged(&self) -> bool {
        self.store.get(&PollId::new("p").unwrap()).await.unwrap().unwrap().needs_recount
    }

    async fn checkpoint(&self) -> SequenceNumber {
        let rows = self.cluster.rows(Group::Persist).await;
        rows.first().map_or(SequenceNumber::ZERO, |row| row.progress.checkpoint)
    }

    async fn until_committed(&self, sequence: SequenceNumber) {
        eventually("the record is committed", PATIENCE, async || {
            let checkpoint = self.checkpoint().await;
            if checkpoint >= sequence { Ok(()) } else { Err(checkpoint) }
        })
        .await;
    }

    /// Runs the operator's command, with the environment of the service, and returns what it printed.
    async fn give_up(&self, arguments: &[&str]) -> String {
        let ran = Command::new(BINARIES.tally)
            .arg("give-up")
            .args(arguments)
            .env_clear()
            .envs([
                ("VOTESTREAM_STREAM", STREAM),
                ("VOTESTREAM_FLUSH_INTERVAL", "2s"),
                ("AWS_ENDPOINT_URL_KINESIS", &self.kinesis),
                ("AWS_ENDPOINT_URL_DYNAMODB", &self.dynamodb),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "dev"),
                ("AWS_SECRET_ACCESS_KEY", "dev"),
            ])
            .kill_on_drop(true)
            .output();
        let ran = timeout(PATIENCE, ran).await.expect("the command ends").unwrap();
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    }
}

fn now() -> Timestamp {
    votestream_core::clock::SystemClock::default().now()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_checkpoint_stops_its_shard_until_an_operator_gives_it_up() {
    const LEASES: &[&str] = &["--failover=1s", "--renew-every=300ms", "--sync-every=200ms"];
    let (endpoint, server, records) = kinesis_read_by(1, &Reading::default()).await;
    let deployed = Deployed::new((endpoint, server)).await;
    let persist = deployed.cluster.start_persist("persist-1", LEASES);
    let first = deployed.vote(1, "ada").await;
    deployed.until_committed(first.sequence).await;
    persist.stop(PATIENCE).await;

    // The stream drops the last record that was read, and one that was not.
    let lost = deployed.vote(2, "bea").await;
    let kept = deployed.vote(3, "cem").await;
    let keys = [&first, &lost].map(|stored| format!("00000000/{}", stored.sequence));
    records.delete_record_keys(STREAM, &keys).await;
    let persist = deployed.cluster.start_persist("persist-2", LEASES);
    let shard: &ShardId = &kept.shard;
    let named = format!("`tally-svc give-up --shard {shard}`");
    eventually("the log names the command", PATIENCE, async || match persist.logged(&named) {
        0 => Err(()),
        _ => Ok(()),
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(persist.logged(&named), 1, "the shard is not tried again and again");
    assert_eq!(deployed.checkpoint().await, first.sequence, "and not read on");

    let said = deployed.give_up(&["--shard", shard.as_str()]).await;
    let polls = "polls that may lack votes, and get no official result: 1: p";
    assert!(said.contains(polls) && said.contains("nothing was changed"), "{said}");
    assert!(!deployed.is_flagged().await && deployed.checkpoint().await == first.sequence);

    let said = deployed.give_up(&["--yes"]).await;
    assert!(said.contains(polls) && said.contains("done: 1 polls are flagged"), "{said}");
    assert!(deployed.is_flagged().await);
    deployed.until_committed(kept.sequence).await;
    let last = deployed.vote(4, "dan").await;
    deployed.until_committed(last.sequence).await;
    let row = deployed.cluster.rows(Group::Persist).await.remove(0);
    assert!(row.lost.is_some_and(|lost| lost.until >= lost.from), "the loss is remembered: {row:?}");
    let said = deployed.give_up(&[]).await;
    assert!(said.contains("nothing is lost"), "{said}");
    persist.stop(PATIENCE).await;
}
