//! `votestream up`: runs the whole stack on this machine until it is told to stop.
//!
//! Owns the default data directory. Must never end before every accepted vote is answered, unless a second signal
//! comes. Must never end because nobody reads its output any more.

use std::{env, ffi::OsString, net::SocketAddr, path::PathBuf};

use serde::Serialize;
use votestream_client::Address;
use votestream_embedded::PSEUDONYM_KEYS;
use votestream_process::{
    admin,
    config::listener::{self, auth_of, quotas_of},
    terminal::Signals,
};
use votestream_server::{Admin, AuditLog, AuditTarget, Identity, Tls};

use crate::{
    args::{Global, TlsArgs, UpArgs},
    browser::open_in_browser,
    failure::{Answer, Failure, Outcome},
    output,
    pseudonyms::Keys,
    show,
    stack::{RunningStack, StackOptions, Storage},
};

/// Most polls that a warning names.
const POLLS_NAMED_MAX: usize = 10;

/// Where everything is, printed for scripts.
#[derive(Serialize)]
struct Addresses {
    /// The page for people.
    page: String,
    /// What clients call; where polls and results have an address of their own, votes only.
    server: String,
    ingest: String,
    results: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
}

pub(super) async fn run(global: &Global, args: UpArgs, mut signals: Signals) -> Outcome {
    if global.json && args.audit_log == Some(AuditTarget::Stdout) {
        return Err(Failure::usage("--audit-log - and --json both write to stdout"));
    }
    let identity = identity(&args)?;
    let auth_file = args.auth.auth.clone().filter(|_| identity.is_on());
    let quotas = quotas_of(&args.calls.into(), &identity).map_err(Failure::usage)?;
    let (demo, open, ephemeral) = (args.demo, args.open, args.ephemeral || args.demo);
    let storage = match (ephemeral, args.data_dir) {
        (true, _) => Storage::Ephemeral,
        (false, directory) => Storage::Directory(data_directory(directory)?),
    };
    let listeners = 1 + usize::from(args.results_addr.is_some());
    let tls = tls(args.tls)?;
    let audit = args.audit_log.as_ref().map(AuditLog::open).transpose();
    let audit = audit.map_err(|error| Failure::usage(error.to_string()))?.unwrap_or_default();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let options = StackOptions {
        identity,
        quotas,
        audit,
        storage,
        shards: args.shards,
        addr: args.addr,
        results_addr: args.results_addr,
        limits: args.limits.into(),
        tls,
        cors_allow_origins: args.cors_allow_origins,
        frame_ancestors: args.frame_ancestors,
        pseudonym_keys: Keys::of(args.pseudonym_keys.as_deref())?,
        continue_from_log_time: args.continue_from_log_time,
    };
    // Before anything else: opening a large data directory takes a while, in which health and metrics are asked for.
    let admin = args.admin_addr.map(open_admin).transpose()?;
    let mut stack = start(options, &mut signals).await?;
    // The stack is ready once all its listeners accept connections.
    admin.iter().for_each(|admin| admin.serves_with(&stack.connections, listeners));
    let announced = announce(global, &stack, admin.as_ref(), scheme, ephemeral, auth_file.as_deref());
    let broken = match announced {
        // If the addresses cannot be written, a script that waits for them would wait in vain.
        Err(failure) => Some(failure),
        Ok(()) => {
            if open {
                open_in_browser(&page_of(&stack, scheme));
            }
            let show = if demo { Some(stack.address()?) } else { None };
            tokio::select! {
                failure = stack.broken() => Some(failure),
                _ = signals.next() => None,
                () = played(show) => None,
            }
        }
    };
    admin.iter().for_each(|admin| if broken.is_some() { admin.breaks() } else { admin.drains() });
    output::note("stopping: answering every vote in flight (a second signal stops at once)");
    let stopped = tokio::select! {
        stopped = stack.stop() => stopped,
        // Stopping is safe at any moment: acknowledged votes are on disk.
        _ = signals.next() => Err(Failure::failed("stopped before every vote was answered")),
    };
    match broken {
        Some(failure) => Err(failure),
        None => stopped.map(|()| Answer::Yes),
    }
}

/// Said when identity is off.
const OPEN: &str = "identity  off: whoever reaches these addresses may vote as anybody and close polls (see --auth)";

/// Who may call.
fn identity(args: &UpArgs) -> Result<Identity, Failure> {
    let (auth, revoked) = (args.auth.auth.as_deref(), args.auth.auth_revoked.as_deref());
    let addresses: Vec<_> = [Some(args.addr), args.results_addr].into_iter().flatten().collect();
    let auth = auth_of(auth, revoked, &addresses).map_err(Failure::usage)?;
    Identity::open(&auth)
        .map_err(|mistakes| Failure::usage(format!("the auth files are wrong:\n  {}", mistakes.join("\n  "))))
}

/// Answers at the admin address, where the start is not complete yet.
fn open_admin(addr: SocketAddr) -> Result<Admin, Failure> {
    let opened = admin::open(addr).map_err(|error| Failure::failed(format!("cannot listen on {addr}: {error}")))?;
    if opened.is_exposed() {
        output::note(&format!("WARNING   others can reach the admin address {}: {}", opened.address(), admin::EXPOSED));
    }
    Ok(opened)
}

/// Starts the stack. A first signal takes effect once the stack has started, a second one at once: that leaves a
/// half-open directory as it is after `kill -9`.
async fn start(options: StackOptions, signals: &mut Signals) -> Result<RunningStack, Failure> {
    let mut starting = std::pin::pin!(RunningStack::start(options));
    let signal = tokio::select! {
        started = &mut starting => return started,
        signal = signals.next() => signal,
    };
    output::note("stopping as soon as the stack has started (a second signal stops at once)");
    tokio::select! {
        started = &mut starting => started?.stop().await?,
        _ = signals.next() => {}
    }
    Err(Failure::Interrupted(signal))
}

/// Reads the files of TLS, or says everything that is wrong.
fn tls(args: TlsArgs) -> Result<Option<Tls>, Failure> {
    let TlsArgs { tls_cert, tls_key, tls_client_ca, tls_self_signed } = args;
    let usage = |mistakes: Vec<String>| Failure::usage(mistakes.join("\n       "));
    let source = listener::tls_source(tls_cert, tls_key, tls_client_ca, tls_self_signed).map_err(usage)?;
    let opened = source.map(Tls::open).transpose();
    opened.map_err(|errors| usage(errors.iter().map(listener::tls_mistake).collect()))
}

/// The URL of the page.
fn page_of(stack: &RunningStack, scheme: &str) -> String {
    format!("{scheme}://{}/", stack.results_addr)
}

/// Plays the show, if there is one. Goes on for ever.
async fn played(show: Option<Address>) {
    if let Some(address) = show {
        show::play(address).await;
    }
    std::future::pending().await
}

/// Prints where the services are.
fn announce(
    global: &Global,
    stack: &RunningStack,
    admin: Option<&Admin>,
    scheme: &str,
    ephemeral: bool,
    auth_file: Option<&str>,
) -> Result<(), Failure> {
    let ingest = format!("{scheme}://{}", stack.ingest_addr);
    let results = format!("{scheme}://{}", stack.results_addr);
    let admin = admin.map(|admin| format!("http://{}", admin.address()));
    let addresses = Addresses { page: page_of(stack, scheme), server: ingest.clone(), ingest, results, admin };
    output::note(&format!("page      {}", addresses.page));
    if addresses.ingest == addresses.results {
        output::note(&format!("server    {}", addresses.server));
    } else {
        output::note(&format!("ingest    {}", addresses.ingest));
        output::note(&format!("results   {}", addresses.results));
    }
    match auth_file {
        None => output::note(OPEN),
        Some(file) => output::note(&format!("identity  {file}")),
    }
    addresses.admin.iter().for_each(|admin| output::note(&format!("admin     {admin}")));
    let end = if ephemeral { " (removed at the end)" } else { "" };
    output::note(&format!("data      {}{end}", stack.directory.display()));
    match stack.pseudonym_key {
        Some(key) => output::note(&format!("voters    in new polls: pseudonyms by key {key}")),
        None => output::note("voters    in new polls: stored under the ids that they vote with"),
    }
    for (poll, key) in stack.keys_missing.iter().take(POLLS_NAMED_MAX) {
        output::note(&format!(
            "WARNING   poll {poll} needs the pseudonym key {key}, which is not there: its votes are refused. Put the line of that \
             key back into {}",
            stack.directory.join(PSEUDONYM_KEYS).display()
        ));
    }
    let more = stack.keys_missing.len().saturating_sub(POLLS_NAMED_MAX);
    if more > 0 {
        output::note(&format!("WARNING   and {more} more polls lack their key"));
    }
    if global.json { output::json(&addresses) } else { Ok(()) }
}

/// The given directory, or else the user's default one.
pub(super) fn data_directory(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    given.map_or_else(|| default_directory(env::var_os("XDG_DATA_HOME"), env::var_os("HOME")), Ok)
}

/// The user's data directory, by the XDG base directory specification: a relative path in the variable is ignored.
fn default_directory(data_home: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, Failure> {
    let data_home = data_home.map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.map(PathBuf::from).filter(|path| path.is_absolute());
    data_home
        .or_else(|| home.map(|home| home.join(".local/share")))
        .map(|data| data.join("votestream"))
        .ok_or_else(|| Failure::usage("neither XDG_DATA_HOME nor HOME is set: give --data-dir or --ephemeral"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory() {
        let directory = |data: &str, home: &str| default_directory(Some(data.into()), Some(home.into()));
        assert_eq!(directory("/data", "/home/u"), Ok("/data/votestream".into()));
        assert_eq!(directory("", "/home/u"), Ok("/home/u/.local/share/votestream".into()));
        assert_eq!(directory("relative", "/home/u"), Ok("/home/u/.local/share/votestream".into()));
        assert!(default_directory(None, None).is_err());
    }
}
