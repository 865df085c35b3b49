//! File descriptors: how many the process may have, and how many of them connections may use.
//!
//! Owns the process's descriptor limit. Must never leave the engines without descriptors: a store that cannot open a
//! file ends.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors that are requested. Linux allows a process this many unless it is configured otherwise.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// Most descriptors that the engines and the rest of the process need: each of the two embedded databases keeps up to
/// 900 tables open, and also opens journals and the tables that it writes or merges.
const RESERVED_MAX: u64 = 2_048;

/// Raises the soft limit of file descriptors to the hard one, and returns the limit that then applies. Call this before
/// an engine opens its files.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    let soft = limit.current.unwrap_or(DESCRIPTORS_MAX);
    if soft >= hard {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: limit.maximum }) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the descriptor limit");
            soft
        }
    }
}

/// The number of descriptors for connections, of `limit` in all. If there are few, the engines have half.
pub(crate) const fn for_connections(limit: u64) -> u64 {
    let reserved = if limit / 2 < RESERVED_MAX { limit / 2 } else { RESERVED_MAX };
    let left = limit - reserved;
    if left == 0 { 1 } else { left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_have_their_share_whatever_the_limit() {
        let rows =
            [(0, 1), (1, 1), (256, 128), (1_024, 512), (4_096, 2_048), (65_536, 63_488), (u64::MAX, u64::MAX - 2_048)];
        for (limit, connections) in rows {
            assert_eq!(for_connections(limit), connections, "{limit}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, Some(raised));
        assert!(raised == DESCRIPTORS_MAX || limit.maximum.is_none_or(|hard| raised >= hard.min(DESCRIPTORS_MAX)));
    }
}
