//! The kinds of attacks, and how to run one.
//!
//! Owns the list from which other tests choose at random, and the end of each attack. The neighbouring modules hold the
//! attacks, grouped by what they abuse. Must never fail because the server defends itself or was killed.

use std::{io, net::SocketAddr, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep, timeout_at};

use super::{floods, http, slow, votes};

/// Pause before a disconnected attacker comes again. Attackers should keep the server busy, not the processor of the
/// tests.
const AGAIN: Duration = Duration::from_millis(5);

/// The target of an attack.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address of `IngestService`.
    pub ingest: SocketAddr,
    /// Address of `ResultsService` and `PollService`.
    pub results: SocketAddr,
    /// An existing poll. Attackers never cast a vote in it that could count.
    pub poll: String,
}

/// What an attack has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// How often it was begun.
    pub attempts: u64,
    /// How often it ended by itself and was not disconnected.
    pub finished: u64,
}

macro_rules! attacks {
    ($($(#[$doc:meta])* $name:ident => $function:path,)*) => {
        /// A kind of attack.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Attack {
            $($(#[$doc])* $name,)*
        }

        impl Attack {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Attacks once.
            async fn once(self, target: &Target, rng: &mut StdRng) -> io::Result<()> {
                match self {
                    $(Self::$name => $function(target, rng).await,)*
                }
            }
        }
    };
}

attacks! {
    /// Calls that are cancelled at once.
    Resets => floods::resets,
    /// Headers that never end.
    Continuations => floods::continuations,
    /// Small headers that unpack to large ones.
    HeaderBomb => floods::header_bomb,
    /// Settings, again and again.
    Settings => floods::settings,
    /// Pings.
    Pings => floods::pings,
    /// Priorities of calls that exist or do not exist.
    Priorities => floods::priorities,
    /// Windows that grow by one byte.
    WindowUpdates => floods::window_updates,
    /// Frames without content.
    EmptyFrames => floods::empty_frames,
    /// Frames of unknown kinds.
    UnknownFrames => floods::unknown_frames,
    /// Frames that the server must answer with a reset.
    Provocations => floods::provocations,
    /// Bytes at random after a good beginning.
    Noise => floods::noise,
    /// A request line without an end.
    EndlessRequestLine => http::endless_request_line,
    /// A header without an end.
    EndlessHeader => http::endless_header,
    /// Headers without an end.
    EndlessHeaders => http::endless_headers,
    /// JSON within JSON within JSON.
    DeepJson => http::deep_json,
    /// Lengths that contradict each other or the content.
    ContradictingLengths => http::contradicting_lengths,
    /// More JSON than may be sent.
    LargeJson => http::large_json,
    /// Invalid chunks.
    BadChunks => http::bad_chunks,
    /// Pipelined requests whose answers nobody reads.
    UnreadPipeline => http::unread_pipeline,
    /// Connections that send nothing, or begin and stop.
    Silence => slow::silence,
    /// Messages that are begun and never finished.
    UnfinishedMessages => slow::unfinished_messages,
    /// Answers for which the client grants no window.
    ClosedWindow => slow::closed_window,
    /// Content that comes byte by byte.
    Dribble => slow::dribble,
    /// Invalid protobuf.
    BadProtobuf => votes::bad_protobuf,
    /// Invalid gRPC frames.
    BadFrames => votes::bad_frames,
    /// Votes for polls that do not exist, many in a message.
    UnknownPolls => votes::unknown_polls,
    /// Invalid votes, whose rejections nobody reads.
    UnreadRejections => votes::unread_rejections,
    /// Recounts that are cancelled.
    CancelledRecounts => votes::cancelled_recounts,
    /// One vote per frame, on as many calls as are allowed.
    SmallFrames => votes::small_frames,
}

impl Attack {
    /// A random kind.
    pub fn any(rng: &mut StdRng) -> Self {
        *Self::ALL.choose(rng).unwrap_or(&Self::Resets)
    }

    /// Attacks until `until`, each time from a new connection.
    pub async fn run(self, target: Target, seed: u64, until: Instant) -> Done {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut done = Done::default();
        while Instant::now() < until {
            done.attempts += 1;
            // An attacker does the same after it was disconnected, cut off, or finished.
            if let Ok(Ok(())) = timeout_at(until, self.once(&target, &mut rng)).await {
                done.finished += 1;
            }
            sleep(AGAIN.mul_f64(rng.random_range(0.5..1.5))).await;
        }
        done
    }
}
