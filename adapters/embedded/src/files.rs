//! The number of files that the databases keep open.
//!
//! Owns their share of the process's file descriptors; clients' connections have the rest. Must never be called before
//! the limit of descriptors was raised as far as possible.

/// Most files that `fjall` keeps open by default. More files bring no advantage.
const CACHED_MAX: u64 = 900;

/// Tables that each of the two databases keeps open. Both together have two fifths of the limit. With the journals and
/// the tables that are being written or merged, this is less than the half that the server leaves for them.
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
