//! The machine, the compiler and the time of a run: without them, no figure means anything.

use std::fs;

/// A Markdown list.
pub(super) fn facts() -> String {
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| cores.to_string());
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let memory = field("/proc/meminfo", "MemTotal:").and_then(|kib| kib.split(' ').next()?.parse::<f64>().ok());
    let facts = [
        ("CPU", field("/proc/cpuinfo", "model name\t:").unwrap_or_else(|| std::env::consts::ARCH.to_owned())),
        ("cores", cores),
        ("memory, GB", memory.map_or_else(|| "?".to_owned(), |kib| format!("{:.0}", kib / (1 << 20) as f64))),
        ("kernel", format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim())),
        ("compiler", format!("{}, profile {}", env!("BENCH_RUSTC"), env!("BENCH_PROFILE"))),
        ("allocator", "mimalloc, in all processes".to_owned()),
        ("load of the machine at the start, one minute", load),
        ("started", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
    ];
    let lines: Vec<_> = facts.iter().map(|(name, value)| format!("- {name}: {value}")).collect();
    lines.join("\n")
}

/// The text of a file; empty if there is no such file.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(path: &str, name: &str) -> Option<String> {
    read(path).lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}
