//! What an event needs on AWS: from a peak and a number of voters to shards, tasks, write units, load balancers, quotas, time
//! and money.
//!
//! Owns the order of the arithmetic; each part has a file in `plan/`. The numbers that it starts from are in
//! `plan/facts.rs` and `plan/quotas.rs`, the prices in `plan/prices.json`. Must never ask a service or AWS, and never call
//! its result more than an estimate. More votes must never need less of anything: the tests check that.

mod cdk;
mod edge;
mod facts;
mod persist;
mod price;
mod question;
mod quotas;
mod recount;
mod sample;
mod shards;
mod spread;

use serde::Serialize;
use votestream_core::Poll;

use self::persist::Worker;
pub(crate) use self::{
    cdk::CdkParameters,
    edge::Edge,
    persist::Persist,
    price::Bill,
    question::{Clients, Question, Tokens},
    quotas::Quota,
    recount::Recount,
    sample::Sample,
    shards::Resharding,
};

/// Version of the JSON form, which `votestream preflight` reads. A new one if a field that it reads changes its meaning.
pub(crate) const PLAN_VERSION: u32 = 1;

/// The answer. An estimate.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) plan_version: u32,
    pub(crate) question: Question,
    pub(crate) votes: u64,
    pub(crate) changed_votes: u64,
    pub(crate) shards: u64,
    /// Part of the shards' rate that the peak takes, from 0 to 1.
    pub(crate) shards_used_share: f64,
    pub(crate) resharding: Resharding,
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
    /// Partition keys that the votes of a poll are spread over.
    pub(crate) buckets: u64,
    /// Write units a second for which the table of votes should be warmed.
    pub(crate) warm_write_units_per_second: u64,
    /// Read units a second of the table of votes at the peak: votes that are read before they are replaced.
    pub(crate) read_units_per_second: u64,
    pub(crate) persist_unlimited: Persist,
    pub(crate) persist_with_budget: Persist,
    /// Write units of a tally row with all options of the poll.
    pub(crate) tally_row_write_units: u64,
    /// Write units a second of tally-svc: interim results, progress and leases.
    pub(crate) interim_write_units_per_second: f64,
    /// Write units a second of persist-svc besides the votes: tallies, progress and leases.
    pub(crate) persist_progress_write_units_per_second: f64,
    pub(crate) edge: Edge,
    pub(crate) recount: Recount,
    /// Quotas of the account that the event needs, those that it has anyway included.
    pub(crate) quotas: Vec<Quota>,
    pub(crate) bill: Bill,
    pub(crate) aws_sample: Sample,
    pub(crate) cdk: CdkParameters,
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// vCPUs of all tasks.
    pub(crate) fn vcpus(&self) -> u64 {
        (self.ingest_tasks + self.persist_tasks) * self.task_vcpus + self.tally_tasks * self.tally_task_vcpus
    }

    /// vCPUs that an account must have: a deployment runs every task twice for a moment, and a rehearsal with phones has its
    /// fleet beside them.
    pub(crate) fn vcpus_at_most(&self) -> u64 {
        let fleet = match self.question.clients {
            Clients::Direct => {
                let tasks = self.question.peak_votes_per_second.div_ceil(facts::FLEET_TASK_VOTES_PER_SECOND);
                tasks * facts::FLEET_TASK_VCPUS
            }
            Clients::Relay => facts::FLEET_TASK_VCPUS,
        };
        self.vcpus() + self.vcpus().max(fleet)
    }

    /// What persist does with the budget that was asked for, or without one.
    pub(crate) fn persist(&self) -> Persist {
        self.question.write_units_per_second.map_or(self.persist_unlimited, |_| self.persist_with_budget)
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
    let edge = Edge::new(&question, votes);
    if edge.load_balancers > facts::LOAD_BALANCERS_MAX {
        return Err(format!(
            "a --peak of {peak} needs {} load balancers, and a stack has at most {}: put relays in front (--clients relay), \
             or divide the voters over several stacks",
            edge.load_balancers,
            facts::LOAD_BALANCERS_MAX,
        ));
    }
    // Each load balancer has tasks of its own, and one of them may fail.
    let tasks_of_all_balancers = edge.load_balancers * facts::TASKS_MIN;
    let ingest_tasks = tasks_for(peak as f64, question.ingest_cpu_seconds_per_million(), facts::TASK_VCPUS)
        .max(tasks_of_all_balancers);
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
    let tally_tasks = tally_tasks.max(tasks_of_all_balancers);

    let expected_peak = ((peak as f64 * units_per_vote).ceil() as u64).max(peak);
    let buckets = u64::from(Poll::buckets_for(expected_peak));
    let worker = Worker::new(shards, votes, units_per_vote, buckets, peak);
    let persist_unlimited = worker.unlimited();
    let budget = question.write_units_per_second.map_or(facts::TABLE_QUOTA_UNITS_PER_SECOND, u64::from);
    let persist_with_budget = worker.with_budget(budget);
    let persist = question.write_units_per_second.map_or(persist_unlimited, |_| persist_with_budget);
    let behind_hours = (arrival_seconds + persist.drain_seconds) / 3_600.0;
    let retention_hours = (behind_hours * facts::RETENTION_FACTOR).ceil() as u64;
    if retention_hours > facts::RETENTION_HOURS_MAX {
        return Err(format!(
            "with {budget} write units/s the last vote is stored {behind_hours:.0} hours after the first came, and the stream \
             keeps votes for {} hours at most: allow more --write-units-per-second",
            facts::RETENTION_HOURS_MAX
        ));
    }
    let spent = worker.spent(question.write_units_per_second.map(u64::from));
    let changed_per_second = spent * changed_votes as f64 / vote_write_units_max as f64;

    let tally_row_bytes = facts::TALLY_ROW_BYTES + question.options * facts::TALLY_OPTION_BYTES;
    let tally_row_write_units = tally_row_bytes.div_ceil(facts::WRITE_UNIT_BYTES);
    let row_units = (facts::SHARD_ROW_BYTES + ingest_tasks * facts::PRODUCER_BYTES).div_ceil(facts::WRITE_UNIT_BYTES);
    let progress_units = |commits_per_second: f64| {
        let commits = commits_per_second * (tally_row_write_units + row_units) as f64;
        shards as f64 * (commits + facts::RENEWALS_PER_SECOND * row_units as f64)
    };
    let warm = persist.warm_write_units_per_second;
    let mut plan = Plan {
        plan_version: PLAN_VERSION,
        question,
        votes,
        changed_votes,
        shards,
        shards_used_share: peak as f64 / (shards * facts::SHARD_VOTES_PER_SECOND) as f64,
        resharding: Resharding::new(question.shards_now, shards),
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
        warm_write_units_per_second: warm,
        read_units_per_second: changed_per_second.ceil() as u64 * facts::READ_UNITS_PER_CHANGED_VOTE,
        persist_unlimited,
        persist_with_budget,
        tally_row_write_units,
        interim_write_units_per_second: progress_units(facts::TALLY_FLUSHES_PER_SECOND),
        persist_progress_write_units_per_second: progress_units(facts::PERSIST_WINDOWS_PER_SECOND),
        recount: Recount::new(voters, buckets),
        quotas: Vec::new(),
        bill: Bill::default(),
        aws_sample: Sample::new(peak, votes, arrival_seconds),
        cdk: CdkParameters {
            shards,
            retention_hours: Some(retention_hours).filter(|hours| *hours > facts::RETENTION_HOURS),
            ingest_tasks,
            persist_tasks: persist.tasks,
            persist_tasks_max: question.write_units_per_second.map(|_| persist.tasks),
            tally_tasks,
            write_units_per_second: question.write_units_per_second.map_or(0, u64::from),
            warm_write_units: if warm > facts::TABLE_WARM_UNITS_PER_SECOND { warm } else { 0 },
            load_balancers: edge.load_balancers,
            reserved_lcus: edge.reserved_units_each,
            pin_tasks: true,
        },
        edge,
        notes: Vec::new(),
    };
    price::add(&mut plan, arrival_seconds)?;
    plan.quotas = quotas::of(&plan);
    plan.notes = notes(&plan);
    Ok(plan)
}

/// Number of tasks whose planned CPU is enough for this rate.
fn tasks_for(votes_per_second: f64, cpu_seconds_per_million: f64, task_vcpus: u64) -> u64 {
    let vcpus = votes_per_second / 1e6 * cpu_seconds_per_million / facts::CPU_SHARE;
    ((vcpus / task_vcpus as f64).ceil() as u64).max(facts::TASKS_MIN)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// What an operator has to know besides the figures.
fn notes(plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    let persist = plan.persist();
    let (rate, warm) = (persist.write_units_per_second, persist.warm_write_units_per_second);
    if rate > facts::TABLE_QUOTA_UNITS_PER_SECOND {
        notes.push(format!(
            "{rate} write units/s are above the default quota of {} for a table: ask AWS to raise it, or set \
             --write-units-per-second and wait longer",
            facts::TABLE_QUOTA_UNITS_PER_SECOND
        ));
    }
    if warm > facts::TABLE_WARM_UNITS_PER_SECOND {
        notes.push(format!(
            "a new table takes {} write units/s at once: warm the table of votes for {warm} the day before, which is twice \
             what the votes need, since their buckets are uneven",
            facts::TABLE_WARM_UNITS_PER_SECOND
        ));
    }
    if let Some(hours) = plan.cdk.retention_hours {
        notes.push(format!(
            "persist is behind for half a day or more: the stream must keep votes for {hours} hours (retentionHours), or more \
             --write-units-per-second be allowed"
        ));
    }
    if persist.final_after_seconds > plan.question.up_for.as_secs_f64() {
        notes.push("the result is final only after --up-for: the price leaves out the time until then".into());
    }
    if plan.read_units_per_second as f64 > facts::TABLE_WARM_READ_UNITS_PER_SECOND {
        notes.push(format!(
            "changed votes need {} read units/s: warm the table of votes for them as well, a new one takes {} at once",
            plan.read_units_per_second,
            facts::TABLE_WARM_READ_UNITS_PER_SECOND
        ));
    }
    if plan.buckets == facts::BUCKETS_MAX {
        notes.push(format!(
            "a poll has at most {} buckets, so the hottest partition finishes later",
            facts::BUCKETS_MAX
        ));
    }
    if plan.question.options > facts::TALLY_OPTIONS_ADDED_MAX {
        notes.push(format!(
            "a window or flush that changes more than {} options reads its tally row and writes it again",
            facts::TALLY_OPTIONS_ADDED_MAX
        ));
    }
    if plan.resharding.days_before > 1 {
        notes.push(format!("resharding takes {} days: begin in time", plan.resharding.days_before));
    }
    let edge = &plan.edge;
    if edge.reserved_units > 0 {
        notes.push(format!(
            "reserved capacity units are paid for by the hour: deploy with reservedLcus={} hours before the event, look \
             that it is provisioned, and deploy with 0 after it",
            edge.reserved_units_each
        ));
    }
    match &edge.cloudfront {
        Some(cloudfront) => notes.push(format!(
            "each vote is assumed to be a new connection. Other ways: {} CloudFront distributions in front of {} load \
             balancer(s), with {} capacity units in all behind them, or relays that stream many votes a message (--clients \
             relay)",
            cloudfront.distributions, cloudfront.load_balancers, cloudfront.capacity_units
        )),
        None => {
            notes.push("relays must send at least 100 votes a message at the peak".into());
            notes.push(
                "with relayCidrs, relays have a load balancer of their own, for which nothing is reserved: let it grow with \
                 them before the event"
                    .into(),
            );
        }
    }
    notes
}

#[cfg(test)]
pub(crate) mod tests;
