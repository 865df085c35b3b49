//! How many files the databases keep open.
//!
//! Owns their share of the process's file descriptors, of which clients' connections have the rest. Must never be asked before the
//! limit was raised as far as it goes.

/// What `fjall` keeps open at the most if nothing is said: more brings nothing.
const CACHED_MAX: u64 = 900;

/// Tables that each of the two databases keeps open. Both together have two fifths of the limit, and with journals, and the tables
/// that are being written or merged, less than the half that the server leaves them.
pub(crate) fn cached_files_max() -> usize {
    (descriptors() / 5).clamp(1, CACHED_MAX) as usize
}

fn descriptors() -> u64 {
    #[cfg(target_os = "linux")]
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        return limit;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_fit_into_half_of_the_descriptors() {
        assert!(2 * cached_files_max() as u64 <= descriptors() / 2, "{}", descriptors());
    }
}
