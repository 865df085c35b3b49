//! What an event needs on AWS: from a peak and a number of voters to shards, tasks, write units, time and money.
//!
//! Owns the arithmetic. The numbers that it starts from are in `plan/facts.rs`, the prices in `plan/prices.json`. Must
//! never ask a service or AWS, and never call its result more than an estimate. More votes must never need less of
//! anything: the tests check that.

mod facts;
mod price;

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use votestream_core::TimeBounds;

pub(crate) use price::Bill;

/// A higher peak must be a mistake: this is a tenth of all people within ten seconds.
const PEAK_MAX: u64 = 100_000_000;
/// There are not more voters than this in the world.
const VOTERS_MAX: u64 = 10_000_000_000;
/// The shortest event: a shorter one is only a peak.
const DURATION_MIN: Duration = Duration::from_secs(1);
/// The longest event. In a longer one, the peak says nothing about the rest.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 3_600);
/// The longest time that the stack is paid for.
const UP_FOR_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// A hundred votes of each voter. At a share of 1, no vote could be a first vote.
const REVOTE_SHARE_MAX: f64 = 0.99;

/// How votes reach the ingest service. It decides what they cost there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Clients {
    /// Each vote is one call over a connection of its own: phones and browsers.
    Direct,
    /// Relays send streams with many votes in each message.
    Relay,
}

/// The question: an event.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Question {
    /// Votes a second at the peak.
    pub(crate) peak_votes_per_second: u64,
    pub(crate) voters: u64,
    /// How long votes come in.
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub(crate) duration: Duration,
    /// Share of the votes that replace an earlier one.
    pub(crate) revote_share: f64,
    /// The operator's limit on write units per second, over all persist tasks.
    pub(crate) write_units_per_second: Option<u32>,
    pub(crate) clients: Clients,
    /// How long the stack runs and is paid for.
    #[serde(rename = "up_for_seconds", serialize_with = "seconds")]
    pub(crate) up_for: Duration,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// The answer. An estimate.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) question: Question,
    pub(crate) votes: u64,
    pub(crate) changed_votes: u64,
    pub(crate) shards: u64,
    /// Part of the shards' rate that the peak takes, from 0 to 1.
    pub(crate) shards_used_share: f64,
    pub(crate) ingest_tasks: u64,
    pub(crate) persist_tasks: u64,
    pub(crate) tally_tasks: u64,
    /// vCPUs of an ingest and of a persist task.
    pub(crate) task_vcpus: u64,
    pub(crate) tally_task_vcpus: u64,
    pub(crate) task_memory_gb_per_vcpu: u64,
    /// Write units for the votes, if no process remembers any voter.
    pub(crate) vote_write_units_max: u64,
    /// Write units for the votes, if every changed vote costs only one.
    pub(crate) vote_write_units_min: u64,
    /// Expected peak with which to create the polls: write units a second that the votes need at the peak.
    pub(crate) expected_peak: u64,
    /// DynamoDB partitions that a poll is spread over.
    pub(crate) buckets: u64,
    /// Write units a second for which the table of votes should be warmed.
    pub(crate) warm_write_units_per_second: u64,
    pub(crate) persist_unlimited: Persist,
    pub(crate) persist_with_budget: Persist,
    /// Write units a second of tally-svc: interim results, progress and leases.
    pub(crate) interim_write_units_per_second: f64,
    /// Write units a second of persist-svc besides the votes: tallies, progress and leases.
    pub(crate) persist_progress_write_units_per_second: f64,
    pub(crate) bill: Bill,
    pub(crate) aws_sample: Sample,
    pub(crate) cdk: CdkParameters,
    pub(crate) notes: Vec<String>,
}

/// How persist stores the votes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Persist {
    /// The operator's limit, over all tasks.
    pub(crate) budget_write_units_per_second: Option<u64>,
    pub(crate) tasks: u64,
    /// Write units a second that are spent on votes during the peak, or while there is a backlog.
    pub(crate) write_units_per_second: u64,
    /// From the last vote until the table of votes is complete, in seconds.
    pub(crate) drain_seconds: f64,
    /// From the last vote, which comes at the closing, to the final result, in seconds.
    pub(crate) final_after_seconds: f64,
}

/// The AWS sample's own sizing. Beyond its published run (20 shards), its rates are assumed to grow with its shards.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) shards: u64,
    pub(crate) vote_write_units: u64,
    pub(crate) write_units_per_second: u64,
    pub(crate) drain_seconds: f64,
    pub(crate) interim_write_units_per_second: f64,
    /// Price of stream and vote writes only.
    pub(crate) stream_and_writes_usd: f64,
}

/// Context parameters of the CDK app; the fields have its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CdkParameters {
    pub(crate) shards: u64,
    pub(crate) ingest_tasks: u64,
    pub(crate) persist_tasks: u64,
    /// With a budget, no more tasks than the budget was divided among: a task that never starts would keep its part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) persist_tasks_max: Option<u64>,
    pub(crate) tally_tasks: u64,
    /// Over all persist tasks; 0 for no limit.
    pub(crate) write_units_per_second: u64,
    /// 0 for what a new table has anyway.
    pub(crate) warm_write_units: u64,
}

impl CdkParameters {
    /// Name and value of each parameter, in the order of the fields.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            shards,
            ingest_tasks,
            persist_tasks,
            persist_tasks_max,
            tally_tasks,
            write_units_per_second,
            warm_write_units,
        } = *self;
        [
            ("shards", Some(shards)),
            ("ingestTasks", Some(ingest_tasks)),
            ("persistTasks", Some(persist_tasks)),
            ("persistTasksMax", persist_tasks_max),
            ("tallyTasks", Some(tally_tasks)),
            ("writeUnitsPerSecond", Some(write_units_per_second)),
            ("warmWriteUnits", Some(warm_write_units)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

impl Question {
    /// Everything that is wrong with the question.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut check = |holds: bool, mistake: &dyn Fn() -> String| {
            if !holds {
                mistakes.push(mistake());
            }
        };
        check((1..=PEAK_MAX).contains(&self.peak_votes_per_second), &|| {
            format!("--peak must be from 1 to {PEAK_MAX} votes a second")
        });
        check((1..=VOTERS_MAX).contains(&self.voters), &|| format!("--voters must be from 1 to {VOTERS_MAX}"));
        check((DURATION_MIN..=DURATION_MAX).contains(&self.duration), &|| {
            "--duration must be from 1 second to 31 days".into()
        });
        check((0.0..=REVOTE_SHARE_MAX).contains(&self.revote_share), &|| {
            format!("--revote-share must be from 0 to {REVOTE_SHARE_MAX}")
        });
        // With less than one for each task, a task would get none.
        check(self.write_units_per_second.is_none_or(|budget| u64::from(budget) >= facts::TASKS_MIN), &|| {
            format!("--write-units-per-second must be at least {}, one for each persist task", facts::TASKS_MIN)
        });
        check(self.up_for >= self.duration && self.up_for <= UP_FOR_MAX, &|| {
            "--up-for must be from --duration to 366 days".into()
        });
        mistakes
    }

    /// Number of votes, first ones and changes. At least one for each voter.
    fn votes(&self) -> u64 {
        // At most 10^12, which an f64 holds exactly. Never below the number of voters, however it is rounded.
        ((self.voters as f64 / (1.0 - self.revote_share)).round() as u64).max(self.voters)
    }
}

/// Plans for an event.
///
/// # Errors
///
/// Everything that is wrong with the question, in one line.
pub(crate) fn plan(question: Question) -> Result<Plan, String> {
    let mistakes = question.mistakes();
    if !mistakes.is_empty() {
        return Err(mistakes.join("; "));
    }
    let (peak, voters, votes) = (question.peak_votes_per_second, question.voters, question.votes());
    // How long all votes take at the peak rate. The worst case for persist is that they come at this rate at the very
    // end.
    let arrival_seconds = votes as f64 / peak as f64;
    if arrival_seconds > question.duration.as_secs_f64() {
        return Err(format!(
            "{votes} votes do not fit into {}s at {peak} a second: a --duration of at least {}s, or a --peak of at least {}",
            question.duration.as_secs_f64(),
            arrival_seconds.ceil(),
            (votes as f64 / question.duration.as_secs_f64()).ceil(),
        ));
    }
    let changed_votes = votes - voters;
    let vote_write_units_max = voters * facts::UNITS_PER_NEW_VOTE + changed_votes * facts::UNITS_PER_CHANGED_VOTE_MAX;
    let units_per_vote = vote_write_units_max as f64 / votes as f64;

    let shards = (peak * facts::SHARD_HEADROOM).div_ceil(facts::SHARD_VOTES_PER_SECOND).max(facts::SHARDS_MIN);
    let ingest_tasks = tasks_for(peak as f64, ingest_cpu_seconds_per_million(question.clients), facts::TASK_VCPUS);
    if ingest_tasks > facts::INGEST_TASKS_MAX {
        return Err(format!(
            "a --peak of {peak} needs {ingest_tasks} ingest tasks, but a shard can remember at most {}: {}",
            facts::INGEST_TASKS_MAX,
            match question.clients {
                Clients::Direct => "put relays in front (--clients relay), or divide the voters over several stacks",
                Clients::Relay => "divide the voters over several stacks",
            }
        ));
    }
    let tally_tasks =
        tasks_for(peak as f64, facts::CONSUMER_CPU_SECONDS_PER_MILLION, facts::TALLY_TASK_VCPUS).min(shards);

    let expected_peak = ((peak as f64 * units_per_vote).ceil() as u64).max(peak);
    let buckets = expected_peak.div_ceil(facts::PARTITION_UNITS_PER_SECOND).clamp(1, facts::BUCKETS_MAX);
    let worker = Worker::new(shards, votes, units_per_vote, buckets, peak);
    let persist_unlimited = worker.unlimited();
    let budget = question.write_units_per_second.map_or(facts::TABLE_QUOTA_UNITS_PER_SECOND, u64::from);
    let persist_with_budget = worker.with_budget(budget);
    let persist = if question.write_units_per_second.is_some() { persist_with_budget } else { persist_unlimited };

    let row_units = (facts::SHARD_ROW_BYTES + ingest_tasks * facts::PRODUCER_BYTES).div_ceil(facts::WRITE_UNIT_BYTES);
    let progress_units = |commits_per_second: f64| {
        let commits = commits_per_second * (facts::UNITS_PER_TALLY_ROW + row_units) as f64;
        shards as f64 * (commits + facts::RENEWALS_PER_SECOND * row_units as f64)
    };
    let mut plan = Plan {
        question,
        votes,
        changed_votes,
        shards,
        shards_used_share: peak as f64 / (shards * facts::SHARD_VOTES_PER_SECOND) as f64,
        ingest_tasks,
        persist_tasks: persist.tasks,
        tally_tasks,
        task_vcpus: facts::TASK_VCPUS,
        tally_task_vcpus: facts::TALLY_TASK_VCPUS,
        task_memory_gb_per_vcpu: facts::MEMORY_GB_PER_VCPU,
        vote_write_units_max,
        vote_write_units_min: votes * facts::UNITS_PER_NEW_VOTE,
        expected_peak,
        buckets,
        warm_write_units_per_second: persist.write_units_per_second.max(facts::TABLE_WARM_UNITS_PER_SECOND),
        persist_unlimited,
        persist_with_budget,
        interim_write_units_per_second: progress_units(facts::TALLY_FLUSHES_PER_SECOND),
        persist_progress_write_units_per_second: progress_units(facts::PERSIST_WINDOWS_PER_SECOND),
        bill: Bill::default(),
        aws_sample: Sample {
            shards: peak.div_ceil(facts::sample::SHARD_VOTES_PER_SECOND),
            vote_write_units: votes * facts::sample::UNITS_PER_VOTE,
            write_units_per_second: 0,
            drain_seconds: 0.0,
            interim_write_units_per_second: 0.0,
            stream_and_writes_usd: 0.0,
        },
        cdk: CdkParameters {
            shards,
            ingest_tasks,
            persist_tasks: persist.tasks,
            persist_tasks_max: question.write_units_per_second.map(|_| persist.tasks),
            tally_tasks,
            write_units_per_second: question.write_units_per_second.map_or(0, u64::from),
            warm_write_units: Some(persist.write_units_per_second)
                .filter(|rate| *rate > facts::TABLE_WARM_UNITS_PER_SECOND)
                .unwrap_or(0),
        },
        notes: Vec::new(),
    };
    plan.aws_sample = plan.aws_sample.as_published(arrival_seconds);
    price::add(&mut plan, arrival_seconds, persist)?;
    plan.notes = notes(&plan, persist);
    Ok(plan)
}

/// Number of tasks whose planned CPU is enough for this rate.
fn tasks_for(votes_per_second: f64, cpu_seconds_per_million: f64, task_vcpus: u64) -> u64 {
    let vcpus = votes_per_second / 1e6 * cpu_seconds_per_million / facts::CPU_SHARE;
    ((vcpus / task_vcpus as f64).ceil() as u64).max(facts::TASKS_MIN)
}

fn ingest_cpu_seconds_per_million(clients: Clients) -> f64 {
    facts::INGEST_CPU_SECONDS_PER_MILLION_PUT
        + match clients {
            Clients::Direct => facts::INGEST_CPU_SECONDS_PER_MILLION_CALLS,
            Clients::Relay => facts::INGEST_CPU_SECONDS_PER_MILLION_STREAMED,
        }
}

/// What persist has to do, and what one of its tasks can do.
struct Worker {
    shards: u64,
    votes: u64,
    units_per_vote: f64,
    /// Write units a second that all buckets take.
    bucket_units_per_second: u64,
    peak: u64,
    /// Votes a second that one task can store, limited by its CPU and its calls in flight.
    task_votes_per_second: f64,
}

impl Worker {
    fn new(shards: u64, votes: u64, units_per_vote: f64, buckets: u64, peak: u64) -> Self {
        // A new vote takes 1 unit and a changed one takes 2, so this is the share of the changed votes.
        let changed_share = units_per_vote - 1.0;
        let items_per_vote = 1.0 + changed_share * (facts::ITEMS_PER_CHANGED_VOTE_MAX - 1) as f64;
        let cpu_seconds_per_vote =
            (facts::CONSUMER_CPU_SECONDS_PER_MILLION + items_per_vote * facts::SDK_CPU_SECONDS_PER_MILLION_ITEMS) / 1e6;
        let by_cpu = facts::TASK_VCPUS as f64 * facts::CPU_SHARE / cpu_seconds_per_vote;
        let by_calls = facts::ITEMS_IN_FLIGHT as f64 / facts::DYNAMODB_CALL_SECONDS / items_per_vote;
        Self {
            shards,
            votes,
            units_per_vote,
            bucket_units_per_second: buckets * facts::PARTITION_UNITS_PER_SECOND,
            peak,
            task_votes_per_second: by_cpu.min(by_calls),
        }
    }

    /// Number of tasks that keep up with shards that are as full as the headroom allows: a task takes whole shards.
    fn tasks_that_keep_up(&self) -> u64 {
        let shard_votes_per_second = (facts::SHARD_VOTES_PER_SECOND / facts::SHARD_HEADROOM) as f64;
        let shards_per_task = ((self.task_votes_per_second / shard_votes_per_second) as u64).max(1);
        self.shards.div_ceil(shards_per_task).max(facts::TASKS_MIN)
    }

    /// Without the operator's limit: persist writes as fast as votes arrive, unless the buckets take less.
    fn unlimited(&self) -> Persist {
        let needed = (self.peak as f64 * self.units_per_vote).ceil() as u64;
        self.persist(None, self.tasks_that_keep_up(), needed.min(self.bucket_units_per_second) as f64)
    }

    fn with_budget(&self, budget: u64) -> Persist {
        let needed = self.peak as f64 * self.units_per_vote;
        let spent = needed.min(budget as f64).min(self.bucket_units_per_second as f64);
        let votes_per_second = spent / self.units_per_vote;
        let tasks = ((votes_per_second / self.task_votes_per_second).ceil() as u64)
            .clamp(facts::TASKS_MIN, self.tasks_that_keep_up());
        // The limit is divided among the tasks, and they take whole shards: the task with the most shards finishes
        // last.
        let most_shards = self.shards.div_ceil(tasks);
        let busiest = budget as f64 / tasks as f64 / (most_shards as f64 / self.shards as f64);
        self.persist(Some(budget), tasks, spent.min(busiest))
    }

    fn persist(&self, budget: Option<u64>, tasks: u64, units_per_second: f64) -> Persist {
        let units = self.votes as f64 * self.units_per_vote;
        let backlog_seconds = (units / units_per_second - self.votes as f64 / self.peak as f64).max(0.0);
        let drain_seconds = tenths(backlog_seconds + facts::PERSIST_LAG_SECONDS);
        let earliest = TimeBounds::DISTRIBUTED.late_after().as_secs_f64();
        Persist {
            budget_write_units_per_second: budget,
            tasks,
            write_units_per_second: units_per_second.ceil() as u64,
            drain_seconds,
            final_after_seconds: drain_seconds.max(earliest),
        }
    }
}

impl Sample {
    fn as_published(self, arrival_seconds: f64) -> Self {
        let scale = self.shards as f64 / facts::sample::SHARDS as f64;
        let units_per_second = facts::sample::UNITS_PER_SECOND as f64 * scale;
        Self {
            write_units_per_second: units_per_second.round() as u64,
            drain_seconds: tenths((self.vote_write_units as f64 / units_per_second - arrival_seconds).max(0.0)),
            interim_write_units_per_second: tenths(facts::sample::INTERIM_UNITS_PER_SECOND * scale),
            ..self
        }
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// What an operator has to know, or has to ask AWS for.
fn notes(plan: &Plan, persist: Persist) -> Vec<String> {
    let mut notes = Vec::new();
    let rate = persist.write_units_per_second;
    if rate > facts::TABLE_QUOTA_UNITS_PER_SECOND {
        notes.push(format!(
            "{rate} write units/s are above the default quota of {} for a table: ask AWS to raise it, or set \
             --write-units-per-second and wait longer",
            facts::TABLE_QUOTA_UNITS_PER_SECOND
        ));
    }
    if rate > facts::TABLE_WARM_UNITS_PER_SECOND {
        notes.push(format!(
            "a new table takes {} write units/s at once: warm the table of votes for {rate} the day before",
            facts::TABLE_WARM_UNITS_PER_SECOND
        ));
    }
    if plan.expected_peak > facts::BUCKETS_MAX * facts::PARTITION_UNITS_PER_SECOND {
        notes.push(format!(
            "a poll has at most {} buckets, so persist writes at {rate} write units/s and finishes later",
            facts::BUCKETS_MAX
        ));
    }
    if plan.shards > facts::SHARDS_QUOTA {
        notes.push(format!("{} shards are above the default quota of {}", plan.shards, facts::SHARDS_QUOTA));
    }
    match plan.question.clients {
        Clients::Direct => {
            let lcus = (plan.question.peak_votes_per_second as f64 / facts::LCU_CONNECTIONS_PER_SECOND).ceil();
            notes.push(format!(
                "each vote is assumed to be a new connection: reserve {lcus} capacity units of the load balancer \
                 before the event; relays that stream many votes a message (--clients relay) need few"
            ));
        }
        Clients::Relay => notes.push("relays must send at least 100 votes a message at the peak".into()),
    }
    notes
}

#[cfg(test)]
mod tests;
