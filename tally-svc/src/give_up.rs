//! `tally-svc give-up`: what an operator does when the stream has dropped records before they were counted.
//!
//! Owns the settings and the words of the command; `votestream_core::consume::group::give_up` does the work. The command
//! belongs to this service and serves both groups: it has to list all polls, which persist-svc may not, and everything
//! else that it does this service does anyway. So it runs with the service's image, role and environment. Must never
//! change anything without `--yes`.

use votestream_core::{
    ShardId, TimeBounds,
    consume::group::give_up::{self, GiveUpError, LostShard},
    port::{Group, Ports},
};
use votestream_process::config::{
    Program, Setting, Values,
    engine::{self, EngineConfig},
    one_of, switch, text,
};

/// First argument that makes the program run this command instead of serving.
pub const NAME: &str = "give-up";

/// The command, with its settings.
pub const PROGRAM: Program = Program {
    name: give_up::COMMAND,
    about: "Lists shards that cannot be read on because the stream has dropped records, and with --yes goes on without them.",
    settings: &[
        &[
            Setting::optional("shard", "ID", "Look at this shard only [default: all]."),
            Setting::new("group", "GROUP", "both", "Whose shards: persist, tally, or both."),
            Setting::switch("yes", "Flag the polls that may lack votes, and let the shards go on."),
        ],
        engine::ENGINE,
        engine::READING,
        engine::LOGS,
    ],
    others: engine::NAMES,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Stream and store.
    pub engine: EngineConfig,
    /// Read by enhanced fan-out instead of polling.
    pub fan_out: bool,
    /// The only shard to look at.
    pub shard: Option<ShardId>,
    /// The groups whose shards are looked at.
    pub groups: &'static [Group],
    /// Whether to change anything.
    pub yes: bool,
}

impl Request {
    /// Reads the settings of [`PROGRAM`].
    pub fn read(values: &mut Values) -> Option<Self> {
        const GROUPS: [(&str, &[Group]); 3] =
            [("both", &[Group::Persist, Group::Tally]), ("persist", &[Group::Persist]), ("tally", &[Group::Tally])];
        let shard = values.optional("shard", text);
        let groups = values.get("group", one_of(&GROUPS));
        let yes = values.get("yes", switch);
        let engine = EngineConfig::read(values);
        let fan_out = engine::reads_by_fan_out(values);
        let shard = shard?.map(ShardId::new);
        Some(Self { engine: engine?, fan_out: fan_out?, shard, groups: groups?, yes: yes? })
    }
}

/// Looks for lost shards, and with `yes` lets them go on. Each line of the answer is given to `say` as soon as it is true.
/// Returns how many shards were found.
///
/// # Errors
///
/// If an engine fails again and again, or if a shard changes meanwhile. What was said before has been done; the command
/// may be repeated.
pub async fn run(
    request: &Request,
    ports: &Ports,
    bounds: &TimeBounds,
    mut say: impl FnMut(&str),
) -> Result<usize, GiveUpError> {
    let mut count = 0;
    for group in request.groups {
        let found = give_up::find(ports, *group, bounds, request.shard.as_ref()).await?;
        count += found.len();
        for lost in &found {
            say(&lost.to_string());
            if request.yes {
                give_up::carry_out(ports, lost).await?;
                say(&done(lost));
            }
        }
    }
    say(match (count, request.yes) {
        (0, _) => "every shard can be read on: nothing is lost",
        (_, false) => "nothing was changed; with --yes the polls are flagged and the shards go on",
        (_, true) => "run it again until it finds nothing: children of these shards may have lost records, too",
    });
    Ok(count)
}

fn done(lost: &LostShard) -> String {
    format!("  done: {} polls are flagged, and the shard goes on", lost.polls.len())
}
