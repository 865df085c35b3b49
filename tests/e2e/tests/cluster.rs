//! Runs the three binaries as separate processes, with stand-ins for Kinesis and DynamoDB: kill -9,
//! hand-overs, resharding, what writes cost, and a rolling restart.
//!
//! Everything is done under load, and the result is compared with what the load knows.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use parking_lot::Mutex;
use votestream_core::port::Group;
use votestream_e2e::{
    aws::{self, Server},
    cluster::{Binaries, Cluster, Load, LoadPlan, PATIENCE, cast_all, eventually},
    collector::Collector,
};
use votestream_proto::v1::RejectionCode;

const BINARIES: Binaries = Binaries {
    ingest: env!("CARGO_BIN_EXE_cluster-ingest-svc"),
    persist: env!("CARGO_BIN_EXE_cluster-persist-svc"),
    tally: env!("CARGO_BIN_EXE_cluster-tally-svc"),
};

/// Long enough to distinguish a hand-over from a take-over on a busy machine.
const FAILOVER: Duration = Duration::from_secs(20);
const LEASES: &[&str] = &["--failover=20s", "--renew-every=2s", "--sync-every=500ms"];
/// Many options, so that a wrong vote shows.
const OPTIONS: usize = 64;

const GROUPS: [Group; 2] = [Group::Persist, Group::Tally];

fn options() -> Vec<String> {
    (0..OPTIONS).map(|at| format!("option-{at}")).collect()
}

async fn poll_and_load(cluster: &Cluster, plan: LoadPlan) -> Load {
    let options = options();
    cluster.create_poll("p", options.iter().map(String::as_str)).await;
    let load = Load::start(cluster, "p", &options, plan);
    load.goes_on(1).await;
    load
}

/// Casts these votes, each of another user. Returns the number of acknowledged votes, which is all of them.
async fn cast(cluster: &Cluster, poll: &str, votes: &[(String, String)]) -> usize {
    cast_all(poll, votes, &[RejectionCode::Unavailable], async |messages| {
        let messages = tokio_stream::iter(messages);
        cluster.ingest().await.stream_votes(messages).await.unwrap().into_inner()
    })
    .await
}

/// Status and body of an answer at an admin address.
async fn asked(admin: SocketAddr, path: &str) -> (u16, String) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<axum::body::Bytes>>();
    let answer = client.get(format!("http://{admin}{path}").parse().unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// The value of a series at an admin address.
async fn value(admin: SocketAddr, series: &str) -> f64 {
    let (status, text) = asked(admin, "/metrics").await;
    assert_eq!(status, 200);
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{series} is not in {text}"))
}

/// Each service has its admin address. One of them exports by OTLP as well, and both get the values of histograms.
#[tokio::test(flavor = "multi_thread")]
async fn every_service_tells_operators_how_it_is() {
    const VOTES: usize = 300;
    let cluster = Cluster::with_shards(BINARIES, 2).await;
    let collector = Collector::start().await;
    let arguments = ["--admin-addr", "127.0.0.1:0"];
    let variables = [("VOTESTREAM_ADMIN_ADDR", "127.0.0.1:0"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint)];
    let persist = cluster.start_persist("persist", &arguments);
    let (tally, (ingest, address)) =
        tokio::join!(cluster.start_tally("tally", &arguments), cluster.start_ingest_apart("ingest", &variables));
    cluster.ingest.add(address);
    for process in [&ingest, &persist, &tally] {
        let admin = process.admin().await;
        eventually(&format!("{} is ready", process.name()), PATIENCE, async || match asked(admin, "/readyz").await {
            (200, _) => Ok(()),
            not_yet => Err(not_yet),
        })
        .await;
        assert_eq!(asked(admin, "/healthz").await, (200, "ok\n".into()));
    }

    cluster.create_poll("p", ["a"]).await;
    let votes: Vec<_> = (0..VOTES).map(|user| (format!("user {user}"), "a".to_owned())).collect();
    assert_eq!(cast(&cluster, "p", &votes).await, VOTES);
    let admin = ingest.admin().await;
    assert_eq!(value(admin, "votestream_lane_votes_settled_total{outcome=\"durable\"}").await, VOTES as f64);
    for (process, group) in [(&persist, "persist"), (&tally, "tally")] {
        let admin = process.admin().await;
        let series = format!("votestream_group_votes_applied_total{{group=\"{group}\"}}");
        eventually(&format!("{group} counts the votes"), PATIENCE, async || match value(admin, &series).await {
            counted if counted == VOTES as f64 => Ok(()),
            counted => Err(counted),
        })
        .await;
        let lag = asked(admin, "/metrics").await.1;
        assert!(lag.contains(&format!("votestream_group_iterator_age_seconds{{group=\"{group}\",shard=\"")), "{lag}");
    }

    // No vote is under way, so both exporters have the same.
    let (batches, sum) = (
        value(admin, "votestream_lane_batch_votes_count").await,
        value(admin, "votestream_lane_batch_votes_sum").await,
    );
    assert!(batches >= 1.0 && sum >= VOTES as f64, "{batches} batches of {sum} votes");
    for process in [ingest, persist, tally] {
        process.stop(PATIENCE).await;
    }
    let received = collector.received();
    let resources = received.metrics.iter().flat_map(|request| &request.resource_metrics);
    let mut metrics = resources.flat_map(|resource| &resource.scope_metrics).flat_map(|scope| &scope.metrics);
    let last = metrics.rfind(|metric| metric.name == "votestream.lane.batch.votes").expect("it was exported");
    let Some(Data::Histogram(exported)) = &last.data else { panic!("no histogram: {last:?}") };
    let [point] = &exported.data_points[..] else { panic!("{exported:?}") };
    assert_eq!((point.count as f64, point.sum), (batches, Some(sum)));
}

/// Half of the processes are killed and started again. Then others are stopped in order.
#[tokio::test(flavor = "multi_thread")]
async fn shards_are_shared_taken_over_and_handed_over() {
    let cluster = Cluster::with_shards(BINARIES, 8).await;
    // One group by polling, one by enhanced fan-out.
    let persist = |name| cluster.start_persist(name, LEASES);
    let fan_out: Vec<&str> = LEASES.iter().copied().chain(["--consumer=fan-out"]).collect();
    let tally = |name| cluster.start_tally(name, &fan_out);
    let (persist_1, persist_2) = (persist("persist-1"), persist("persist-2"));
    let (_ingest, mut tally_1, mut tally_2) =
        tokio::join!(cluster.start_ingest("ingest-1", &[]), tally("tally-1"), tally("tally-2"));
    let both = async |persist: &[(&str, usize)], tally: &[(&str, usize)], within| {
        tokio::join!(cluster.shared(Group::Persist, persist, within), cluster.shared(Group::Tally, tally, within))
    };
    let load = poll_and_load(&cluster, LoadPlan { relays: 4, rate: 250, users: Some(300) }).await;
    both(&[("persist-1", 4), ("persist-2", 4)], &[("tally-1", 4), ("tally-2", 4)], PATIENCE).await;
    load.goes_on(1_000).await;

    cluster.results.remove(tally_1.address().await);
    tokio::join!(persist_1.kill(), tally_1.kill());
    let taken = both(&[("persist-2", 8)], &[("tally-2", 8)], PATIENCE).await;
    load.goes_on(1_000).await;

    let (persist_3, tally_3) = (persist("persist-3"), tally("tally-3").await);
    both(&[("persist-2", 4), ("persist-3", 4)], &[("tally-2", 4), ("tally-3", 4)], PATIENCE).await;
    load.goes_on(1_000).await;

    cluster.results.remove(tally_2.address().await);
    tokio::join!(persist_2.terminate(), tally_2.terminate());
    let handed = both(&[("persist-3", 8)], &[("tally-3", 8)], PATIENCE).await;
    eprintln!("after kill -9 taken over in {taken:?}, after SIGTERM handed over in {handed:?}");
    for (group, handed) in GROUPS.iter().zip([handed.0, handed.1]) {
        // A lease that is not released cannot be taken earlier.
        assert!(handed < FAILOVER, "{group:?}: a hand-over took {handed:?}, which is no better than a crash");
    }
    for mut stopped in [persist_2, tally_2] {
        let ended = stopped.ended(PATIENCE).await;
        assert!(ended.success(), "{} stopped with {ended}", stopped.name());
    }
    load.goes_on(1_000).await;
    let cast = load.finish().await;
    cluster.is_exact("p", &cast).await;
    tokio::join!(persist_3.stop(PATIENCE), tally_3.stop(PATIENCE));
}

/// Shards are split and merged under load, also shards that were just created.
#[tokio::test(flavor = "multi_thread")]
async fn resharding_loses_and_doubles_nothing() {
    let cluster = Cluster::with_shards(BINARIES, 4).await;
    let _persist = [cluster.start_persist("persist-1", LEASES), cluster.start_persist("persist-2", LEASES)];
    let (_ingest_1, _ingest_2, _tally) = tokio::join!(
        cluster.start_ingest("ingest-1", &["--ingest-tasks=2"]),
        cluster.start_ingest("ingest-2", &["--ingest-tasks=2"]),
        cluster.start_tally("tally-1", LEASES)
    );
    let load = poll_and_load(&cluster, LoadPlan { relays: 4, rate: 250, users: Some(100) }).await;

    split(&cluster, 0).await;
    load.goes_on(500).await;
    merge(&cluster, 1).await;
    // The child of the merge and one of its neighbours, even if nobody has read their parents to the end.
    split(&cluster, 1).await;
    merge(&cluster, 0).await;
    load.goes_on(500).await;
    split(&cluster, 3).await;
    merge(&cluster, 2).await;
    merge(&cluster, 0).await;
    load.goes_on(500).await;

    // Every closed shard is read to its end, and the open rows are the open shards of the stream.
    for group in GROUPS {
        let what = format!("{group:?} has finished the closed shards");
        eventually(&what, PATIENCE, async || {
            let open = open_shards(&cluster).await;
            let rows = cluster.rows(group).await;
            let left: Vec<_> = rows
                .iter()
                .filter(|row| {
                    let id = row.shard.to_string();
                    let is_open = open.iter().any(|(open, _, _)| *open == id);
                    row.progress.ended == is_open || (is_open && row.lease.owner.is_none())
                })
                .map(|row| format!("{row:?}"))
                .collect();
            if left.is_empty() && rows.len() > open.len() { Ok(()) } else { Err(left) }
        })
        .await;
    }
    load.goes_on(500).await;
    let cast = load.finish().await;
    cluster.is_exact("p", &cast).await;
}

/// Id and range of every open shard, in the order of their ranges.
async fn open_shards(cluster: &Cluster) -> Vec<(String, u128, u128)> {
    let listed = cluster.clients().kinesis.list_shards().stream_name(cluster.stream()).send().await.unwrap();
    let mut open: Vec<_> = listed
        .shards()
        .iter()
        .filter(|shard| shard.sequence_number_range().is_none_or(|range| range.ending_sequence_number().is_none()))
        .map(|shard| {
            let range = shard.hash_key_range().unwrap();
            let hash = |text: &str| text.parse().unwrap();
            (shard.shard_id().to_owned(), hash(range.starting_hash_key()), hash(range.ending_hash_key()))
        })
        .collect();
    open.sort_unstable_by_key(|(_, start, _)| *start);
    open
}

/// Splits an open shard, by its place in the order of ranges, in the middle.
async fn split(cluster: &Cluster, at: usize) {
    let before = open_shards(cluster).await;
    let (id, start, end) = &before[at];
    let middle = start + (end - start) / 2 + 1;
    let split = cluster.clients().kinesis.split_shard().stream_name(cluster.stream());
    split.shard_to_split(id).new_starting_hash_key(middle.to_string()).send().await.unwrap();
    resharded(cluster, before.len() + 1).await;
}

/// Merges an open shard with the next one.
async fn merge(cluster: &Cluster, at: usize) {
    let before = open_shards(cluster).await;
    let merge = cluster.clients().kinesis.merge_shards().stream_name(cluster.stream());
    merge.shard_to_merge(&before[at].0).adjacent_shard_to_merge(&before[at + 1].0).send().await.unwrap();
    resharded(cluster, before.len() - 1).await;
}

async fn resharded(cluster: &Cluster, shards: usize) {
    eventually("the stream is resharded", PATIENCE, async || {
        let open = open_shards(cluster).await;
        let summary = cluster.clients().kinesis.describe_stream_summary().stream_name(cluster.stream());
        let summary = summary.send().await.unwrap().stream_description_summary.unwrap();
        let active = summary.stream_status().as_str() == "ACTIVE";
        if active && open.len() == shards { Ok(()) } else { Err(open) }
    })
    .await;
}

/// So few that even a busy machine can write more.
const UNITS_PER_SECOND: usize = 100;
const MEASURED: Duration = Duration::from_secs(15);

/// Votes come in twice as fast as they may be stored. The limit must hold, and interim results must stay fresh.
#[tokio::test(flavor = "multi_thread")]
async fn the_brake_on_write_units_holds_while_interim_results_stay_fresh() {
    const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
    const SHARDS: u32 = 8;

    let (dynamodb, server) = aws::dynamodb().await;
    let (metered, meter, meter_server) = Meter::start(&dynamodb).await;
    let kinesis = aws::kinesis(SHARDS).await;
    let cluster = Cluster::over(BINARIES, aws::STREAM, kinesis, (metered, vec![server, meter_server])).await;
    let budget = format!("--write-units-per-second={UNITS_PER_SECOND}");
    let (_ingest, _tally) = tokio::join!(
        cluster.start_ingest("ingest-1", &["--create-tables"]),
        cluster.start_tally("tally-1", &["--create-tables", "--flush-interval=1s"])
    );
    let _persist = cluster.start_persist("persist-1", &["--create-tables", &budget]);
    let load = poll_and_load(&cluster, LoadPlan { relays: 4, rate: UNITS_PER_SECOND / 2, users: None }).await;
    // There is a backlog: from now on only the limit slows the writes.
    eventually("persist is behind", PATIENCE, async || {
        let counted = cluster.interim("p").await.total_counted;
        let behind = load.acknowledged().saturating_sub(counted);
        if counted > 0 && behind > 5 * UNITS_PER_SECOND as u64 { Ok(()) } else { Err((counted, behind)) }
    })
    .await;

    let (start, before) = (Instant::now(), meter.costs());
    let mut fresh = 0;
    while start.elapsed() < MEASURED || fresh == 0 {
        // Votes that are acknowledged now show as submitted long before they are stored.
        let acknowledged = load.acknowledged();
        let counted = eventually("interim results go on", PATIENCE, async || {
            let interim = cluster.interim("p").await;
            if interim.total_submitted >= acknowledged { Ok(interim.total_counted) } else { Err(interim) }
        })
        .await;
        assert!(counted + UNITS_PER_SECOND as u64 <= acknowledged, "{counted} of {acknowledged} are stored already");
        fresh += 1;
    }
    let (took, after) = (start.elapsed(), meter.costs());
    let rate = (after.vote_units - before.vote_units) / took.as_secs_f64();
    let behind = load.acknowledged() - cluster.interim("p").await.total_counted;
    eprintln!("{rate:.1} write units a second of {UNITS_PER_SECOND}, {behind} votes behind, {fresh} times fresh");
    let ratio = rate / UNITS_PER_SECOND as f64;
    // A machine that stands still for a while catches up with nothing, and uses less of the budget.
    assert!((0.5..=1.1).contains(&ratio), "{rate} write units a second");
    assert!(behind > UNITS_PER_SECOND as u64, "the brake was not what held the writes back: {behind} votes behind");

    // Interim results: one write for each flush of a shard, and one for its window; or two, if it was committed because
    // no record came for a while.
    assert_eq!(after.sums.len(), SHARDS as usize, "every shard is written: {after:?}");
    let flushes_max = (took.as_secs_f64() / FLUSH_INTERVAL.as_secs_f64()) as u32 + 2;
    for (shard, sums) in &after.sums {
        let sums = sums - before.sums.get(shard).unwrap_or(&0);
        let progress = after.progress[shard] - before.progress.get(shard).unwrap_or(&0);
        assert!((1..=flushes_max).contains(&sums), "{shard}: {sums} flushes in {took:?}");
        // A window is noted before its sums are written, and the measurement may begin or end in between.
        assert!((sums..=2 * sums + 2).contains(&(progress + 1)), "{shard}: {progress} for {sums} flushes in {took:?}");
    }

    let cast = load.finish().await;
    cluster.is_exact("p", &cast).await;
    assert_eq!(meter.costs().vote_units, cast.last.len() as f64, "a new voter costs one unit");
}

/// What writes have cost, and which ones there were.
#[derive(Clone, Debug, Default)]
struct Costs {
    /// Write units of votes, as DynamoDB reports them.
    vote_units: f64,
    /// Writes of the `tally` group's sums, by shard.
    sums: BTreeMap<String, u32>,
    /// Writes of the `tally` group's progress, by shard.
    progress: BTreeMap<String, u32>,
}

/// A proxy before DynamoDB that adds up the costs.
struct Meter {
    upstream: String,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<axum::body::Bytes>>,
    costs: Mutex<Costs>,
}

impl Meter {
    async fn start(upstream: &str) -> (String, Arc<Self>, Server) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let meter = Arc::new(Self { upstream: upstream.into(), client, costs: Mutex::default() });
        let (endpoint, server) = aws::serve(Router::new().fallback(Self::forward).with_state(meter.clone())).await;
        (endpoint, meter, server)
    }

    fn costs(&self) -> Costs {
        self.costs.lock().clone()
    }

    async fn forward(State(meter): State<Arc<Self>>, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        let (_, operation) = target.rsplit_once('.').unwrap_or_default();
        let operation = operation.to_owned();
        parts.uri = meter.upstream.parse().unwrap();
        let body = to_bytes(body, 32 << 20).await.unwrap();
        if operation == "UpdateItem" {
            meter.update(&serde_json::from_slice(&body).unwrap());
        }
        let answer = meter.client.request(Request::from_parts(parts, Full::new(body))).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if operation == "BatchExecuteStatement" {
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let costs = answer["ConsumedCapacity"].as_array().into_iter().flatten();
            meter.costs.lock().vote_units += costs.filter_map(|cost| cost["CapacityUnits"].as_f64()).sum::<f64>();
        }
        Response::from_parts(parts, Body::from(body))
    }

    fn update(&self, request: &serde_json::Value) {
        let (table, key) = (request["TableName"].as_str().unwrap(), &request["Key"]);
        let mut costs = self.costs.lock();
        if table.ends_with("tallies") {
            if let Some(shard) = key["group_shard"]["S"].as_str().unwrap().strip_prefix("tally#") {
                *costs.sums.entry(shard.to_owned()).or_default() += 1;
            }
        } else if table.ends_with("shards") && key["shard_group"]["S"] == "tally" {
            // Renewals of the lease are not progress.
            if request["UpdateExpression"].as_str().unwrap().contains("#window_end") {
                *costs.progress.entry(key["shard_id"]["S"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
    }
}

/// Every process is replaced by a new one, as in a deployment.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_vote() {
    let cluster = Cluster::with_shards(BINARIES, 4).await;
    let mut persist = cluster.start_persist("persist-1", LEASES);
    let (mut ingest, mut tally) =
        tokio::join!(cluster.start_ingest("ingest-1", &[]), cluster.start_tally("tally-1", LEASES));
    let load = poll_and_load(&cluster, LoadPlan { relays: 4, rate: 250, users: Some(300) }).await;
    load.goes_on(500).await;
    for round in 2..=3 {
        let next = cluster.start_ingest(&format!("ingest-{round}"), &[]).await;
        cluster.ingest.remove(ingest.address().await);
        std::mem::replace(&mut ingest, next).stop(PATIENCE).await;
        load.goes_on(500).await;

        let next = cluster.start_persist(&format!("persist-{round}"), LEASES);
        std::mem::replace(&mut persist, next).stop(PATIENCE).await;
        cluster.shared(Group::Persist, &[(persist.name(), 4)], PATIENCE).await;
        load.goes_on(500).await;

        let next = cluster.start_tally(&format!("tally-{round}"), LEASES).await;
        cluster.results.remove(tally.address().await);
        std::mem::replace(&mut tally, next).stop(PATIENCE).await;
        cluster.shared(Group::Tally, &[(tally.name(), 4)], PATIENCE).await;
        load.goes_on(500).await;
    }
    let cast = load.finish().await;
    assert!(cast.streams > 8, "the relays have moved from service to service: {} streams", cast.streams);
    cluster.is_exact("p", &cast).await;
}
