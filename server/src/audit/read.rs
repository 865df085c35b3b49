//! Reads a log and checks its chain.
//!
//! Must never hold more of it in memory than a line, and never take a line for good because the ones around it are.

use std::io::{self, BufRead, Read};

use serde_json::Value;

use super::line::{Chain, LINE_BYTES_MAX, own_hash};

/// The end of a log whose chain is whole. Whoever noted it before can see later that nothing up to it was changed or
/// removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Number of lines.
    pub lines: u64,
    /// The hash in the last line.
    pub hash: Option<String>,
}

/// Where the chain of a log breaks. The lines before are whole.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Broken {
    /// Number of the line in the file, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads a whole log, and hands each line on, without its hash, with that hash.
///
/// # Errors
///
/// The outer one if it cannot be read, the inner one if its chain breaks.
pub fn read(log: impl BufRead, mut each: impl FnMut(Value, &str)) -> io::Result<Result<Head, Broken>> {
    let mut log = log;
    let (mut chain, mut head) = (Chain::default(), Head::default());
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = log.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(Ok(head));
        }
        let broken = |reason: String| Ok(Err(Broken { line: head.lines + 1, reason }));
        if line.pop() != Some(b'\n') {
            return broken(if length == LINE_BYTES_MAX {
                format!("it is longer than {LINE_BYTES_MAX} bytes")
            } else {
                "it is cut off in the middle: the process or the machine ended while it was written, or somebody cut it. \
                 The next start removes it and says so"
                    .to_owned()
            });
        }
        match chain.read(&line) {
            Ok(value) => {
                let hash = own_hash(&line).unwrap_or_default();
                each(value, &hash);
                head = Head { lines: head.lines + 1, hash: Some(hash) };
            }
            Err(wrong) => return broken(wrong.to_string()),
        }
    }
}
