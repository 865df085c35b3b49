//! CPU time of processes, as the system counts it.

use std::fs;

use anyhow::Context;

/// CPU seconds that a process has taken, user and system.
pub(crate) fn cpu_seconds(process: &str) -> anyhow::Result<f64> {
    // proc(5): fields 14 and 15 are user and system time in clock ticks, of which Linux reports 100 a second.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<f64>().ok()).context("/proc/PID/stat is short");
    Ok((ticks()? + ticks()?) / TICKS_PER_SECOND)
}
