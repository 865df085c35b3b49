//! A phone beside nginx: what a new connection, its TLS handshake, a token and a vote cost `votestream up`, and what the same
//! connection with a constant answer costs nginx.
//!
//! Owns both servers, each as a process of its own on the server's core, and the load, which is the same for both: `votestream
//! load --unary`. Must never measure votes that were not accepted, stored and counted.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    cores::Cores,
    cpu::cpu_seconds,
    identity,
    report::{Cell, Report, number},
    tls::{CA, CERTIFICATE, Certificates, KEY},
    turns::median,
    votes,
};

/// Alternating runs of each row.
const ROUNDS: usize = 3;
/// Phones of a run, and of a short one.
const PHONES: u64 = 12_000;
const PHONES_QUICK: u64 = 100;
/// Calls of a run over connections that are kept.
const CALLS: u64 = 100_000;
const CALLS_QUICK: u64 = 500;
/// Phones in flight: enough that the server never waits, few enough that none waits for long.
const IN_FLIGHT: &str = "32";
/// Longest time until a server answers, or has counted everything.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often that is looked at.
const STEP: Duration = Duration::from_millis(250);
/// Most CPU seconds that a server without calls takes within a step.
const IDLE_CPU_SECONDS: f64 = 0.025;

/// What a phone does.
struct Shape {
    name: &'static str,
    protocol: &'static str,
    is_new: bool,
    with: Secured,
}

/// How it is protected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secured {
    Nothing,
    /// TLS, and a token of its own by HS256.
    Hs256,
    /// The same by ES256.
    Es256,
}

const SHAPES: [Shape; 6] = [
    Shape { name: "JSON, new connection, TLS, new HS256 token", protocol: "json", is_new: true, with: Secured::Hs256 },
    Shape { name: "gRPC, new connection, TLS, new HS256 token", protocol: "grpc", is_new: true, with: Secured::Hs256 },
    Shape { name: "JSON, new connection, TLS, new ES256 token", protocol: "json", is_new: true, with: Secured::Es256 },
    Shape { name: "JSON, new connection, no TLS, no token", protocol: "json", is_new: true, with: Secured::Nothing },
    Shape { name: "gRPC, new connection, no TLS, no token", protocol: "grpc", is_new: true, with: Secured::Nothing },
    Shape {
        name: "JSON, kept connections, TLS, new HS256 token",
        protocol: "json",
        is_new: false,
        with: Secured::Hs256,
    },
];

/// Fills the table.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let note = "`votestream up`, whole, with everything synced, stored and counted, against nginx, which answers every call \
        with a constant over the same kind of connection. TLS 1.3 with a P-256 certificate; every new connection has a whole \
        handshake, none is resumed. The load is `votestream load --unary` for both, as fast as they answer, with 32 phones in \
        flight, on another core. User ids and tokens are new with each vote. CPU time of the server, alternating; the ratio is \
        the median of three.";
    let columns = [
        "a phone",
        "nginx, CPU µs a call",
        "up, CPU µs a vote",
        "nginx / up (CPU)",
        "nginx, calls/s (wall)",
        "up, votes/s (wall)",
    ];
    let (rounds, shapes) = report.size((ROUNDS, &SHAPES[..]), (1, &SHAPES[..2]));
    let quick = report.quick;
    let table = report.table("A phone beside nginx", note, &columns);
    let (votestream, nginx) = match (votestream(), program("nginx")) {
        (Some(votestream), Some(nginx)) => (votestream, nginx),
        (None, _) => {
            table.row(["not measured: build the command, too (`cargo build --release -p votestream`)".into()]);
            return Ok(());
        }
        (_, None) => {
            table.row(["not measured: there is no nginx (Debian: nginx-light)".into()]);
            return Ok(());
        }
    };
    for shape in shapes {
        table.row(compare(shape, &votestream, &nginx, rounds, quick)?);
    }
    Ok(())
}

/// The command, built in the same profile.
fn votestream() -> Option<PathBuf> {
    let beside = env::current_exe().ok()?.with_file_name("votestream");
    beside.is_file().then_some(beside)
}

/// A program of the system.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain(["/usr/sbin".into()]).map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file())
}

fn compare(shape: &Shape, votestream: &Path, nginx: &Path, rounds: usize, quick: bool) -> anyhow::Result<[Cell; 6]> {
    let (full, short) = if shape.is_new { (PHONES, PHONES_QUICK) } else { (CALLS, CALLS_QUICK) };
    let calls = if quick { short } else { full };
    let cores = Cores::new()?;
    let site = Site::new(votestream)?;
    // Both start on the server's core. What this thread starts later runs on the load's core.
    let (up, nginx) =
        cores.start(|| anyhow::Ok((Up::start(&site, shape.with)?, Nginx::start(&site, nginx, shape)?)))??;
    site.create_poll(&up)?;
    let (mut theirs, mut ours, mut ratios) = (vec![], vec![], vec![]);
    // The first round warms up.
    for round in 0..=rounds {
        let calls = if round == 0 { calls.div_ceil(4) } else { calls };
        let seed = round as u64 + 1;
        let a = site.measure(&up, &nginx.child, Some(&nginx.url), shape, calls, seed)?;
        let b = site.measure(&up, &up.child, None, shape, calls, seed)?;
        if round > 0 {
            ratios.push(a.cpu / b.cpu);
            theirs.push(a);
            ours.push(b);
        }
    }
    let cpu = |runs: &[Run]| number(median(runs.iter().map(|run| run.cpu * 1e6)), 1);
    let rate = |runs: &[Run]| number(median(runs.iter().map(|run| run.calls_per_second)), 0);
    Ok([
        shape.name.into(),
        cpu(&theirs),
        cpu(&ours),
        number(median(ratios.iter().copied()), 2),
        rate(&theirs),
        rate(&ours),
    ])
}

/// What a call cost.
#[derive(Clone, Copy)]
struct Run {
    /// Seconds of the server's CPU.
    cpu: f64,
    calls_per_second: f64,
}

/// Files of both servers, and the command.
struct Site<'a> {
    votestream: &'a Path,
    certificates: Certificates,
    folder: TempDir,
}

/// What `load` says.
#[derive(Deserialize)]
struct Loaded {
    accepted: u64,
    votes_per_second: f64,
    #[serde(default)]
    errors: serde_json::Value,
}

/// What `results` says.
#[derive(Deserialize)]
struct Interim {
    total_submitted: u64,
    total_counted: u64,
}

impl<'a> Site<'a> {
    fn new(votestream: &'a Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        identity::write_phones(folder.path())?;
        Ok(Self { votestream, certificates: Certificates::new()?, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.certificates.folder().join(name)
    }

    /// Runs a command and returns what it prints.
    fn command<T: for<'de> Deserialize<'de>>(&self, up: &Up, arguments: &[&str]) -> anyhow::Result<T> {
        let mut command = Command::new(self.votestream);
        command.args(["--json", "--server", &up.url]).args(arguments).env("VOTESTREAM_TOKEN", identity::MANAGER);
        if up.url.starts_with("https://") {
            command.arg("--tls-ca").arg(self.certificate(CA));
        }
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).with_context(|| format!("votestream {}: {said}", arguments.join(" ")))
    }

    fn create_poll(&self, up: &Up) -> anyhow::Result<()> {
        let mut arguments = vec!["poll", "create", "--id", votes::POLL, "--closes-in", "2h"];
        votes::OPTIONS.iter().for_each(|option| arguments.extend(["--option", option]));
        self.command::<serde_json::Value>(up, &arguments).map(drop)
    }

    /// Lets phones call one of the servers: `up`, or the one at this URL.
    fn measure(
        &self,
        up: &Up,
        server: &Child,
        url: Option<&str>,
        shape: &Shape,
        calls: u64,
        seed: u64,
    ) -> anyhow::Result<Run> {
        let (votes, seed) = (calls.to_string(), seed.to_string());
        let mut arguments = vec!["load", "--poll", votes::POLL, "--unary", "--votes", &votes, "--seed", &seed];
        arguments.extend(["--protocol", shape.protocol, "--in-flight", IN_FLIGHT]);
        arguments.extend(if shape.is_new { ["--new-connections"].as_slice() } else { &["--connections", IN_FLIGHT] });
        arguments.extend(url.iter().flat_map(|url| ["--ingest", url]));
        let [auth, key] = ["auth.toml", "es256.pem"].map(|name| self.path(name).display().to_string());
        match shape.with {
            Secured::Nothing => {}
            Secured::Hs256 => arguments.extend(["--token-auth", &auth]),
            Secured::Es256 => arguments.extend(["--token-auth", &auth, "--token-key", &key]),
        }
        let before =
            if url.is_none() { self.command::<Interim>(up, &["results", votes::POLL])?.total_submitted } else { 0 };
        let process = server.id().to_string();
        let cpu = cpu_seconds(&process)?;
        let loaded: Loaded = self.command(up, &arguments)?;
        anyhow::ensure!(loaded.accepted == calls, "{} of {calls} accepted: {}", loaded.accepted, loaded.errors);
        // What was acknowledged is still to be stored and counted.
        let start = Instant::now();
        let mut reached = cpu_seconds(&process)?;
        loop {
            std::thread::sleep(STEP);
            let now = cpu_seconds(&process)?;
            if now - reached <= IDLE_CPU_SECONDS {
                break;
            }
            reached = now;
            anyhow::ensure!(start.elapsed() < PATIENCE, "the server does not come to rest");
        }
        if url.is_none() {
            let interim: Interim = self.command(up, &["results", votes::POLL])?;
            let submitted = interim.total_submitted - before;
            anyhow::ensure!(submitted == calls, "{submitted} of {calls} votes are shown");
            anyhow::ensure!(interim.total_counted > 0, "no vote is counted");
        }
        Ok(Run { cpu: (reached - cpu) / calls as f64, calls_per_second: loaded.votes_per_second })
    }
}

/// A running `votestream up`, killed at the end.
struct Up {
    child: Child,
    url: String,
}

impl Up {
    fn start(site: &Site<'_>, with: Secured) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Started {
            ingest: String,
        }

        let mut command = Command::new(site.votestream);
        command.args(["up", "--json", "--addr", "127.0.0.1:0", "--data-dir"]).arg(site.path("data"));
        if with != Secured::Nothing {
            command.arg("--auth").arg(site.path("auth.toml"));
            command.arg("--tls-cert").arg(site.certificate(CERTIFICATE)).arg("--tls-key").arg(site.certificate(KEY));
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("it is piped")?).read_line(&mut line)?;
        let started = serde_json::from_str(&line).context("up does not say where it is");
        // Whatever it said, it must end with this.
        let mut up = Self { child, url: String::new() };
        up.url = started.map(|Started { ingest }| ingest)?;
        Ok(up)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A running nginx, killed at the end.
struct Nginx {
    child: Child,
    url: String,
}

impl Nginx {
    fn start(site: &Site<'_>, nginx: &Path, shape: &Shape) -> anyhow::Result<Self> {
        // It was free a moment ago.
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let settings = site.path("nginx.conf");
        fs::write(&settings, Self::settings(site, addr, shape))?;
        let mut command = Command::new(nginx);
        command.arg("-p").arg(site.folder.path()).args(["-e", "stderr", "-c"]).arg(&settings);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let scheme = if shape.with == Secured::Nothing { "http" } else { "https" };
        let mut started = Self { child, url: format!("{scheme}://{addr}") };
        let start = Instant::now();
        while TcpStream::connect(addr).is_err() {
            anyhow::ensure!(started.child.try_wait()?.is_none(), "nginx has ended");
            anyhow::ensure!(start.elapsed() < PATIENCE, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(started)
    }

    /// One process without workers, so that its CPU time is that of its calls. It keeps no log, and no sessions of TLS.
    fn settings(site: &Site<'_>, addr: SocketAddr, shape: &Shape) -> String {
        let folder = site.folder.path().display();
        let tls = if shape.with == Secured::Nothing { "" } else { " ssl" };
        let http2 = if shape.protocol == "grpc" { " http2" } else { "" };
        let certificates = if shape.with == Secured::Nothing {
            String::new()
        } else {
            let [certificate, key] = [CERTIFICATE, KEY].map(|name| site.certificate(name).display().to_string());
            format!(
                "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; \
                 ssl_session_cache off; ssl_session_tickets off;"
            )
        };
        // gRPC: an empty message, which is five bytes of zero, and how the call has ended as a trailer.
        let answer = if shape.protocol == "grpc" {
            "default_type application/grpc; add_trailer grpc-status 0; return 200 '\0\0\0\0\0';"
        } else {
            "default_type application/json; return 200 '{}';"
        };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|of| format!("{of}_temp_path {folder}/{of};"))
            .concat();
        format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; events {{ worker_connections 4096; }}\n\
             http {{ {temporary} access_log off; keepalive_requests 1000000000; {certificates}\n\
             server {{ listen {addr}{tls}{http2}; location / {{ {answer} }} }} }}\n"
        )
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a process that keeps nothing.
fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        eprintln!("process {} cannot be ended: {error}", child.id());
    }
}
