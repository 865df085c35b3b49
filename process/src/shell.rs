//! Runs a service as a process: configuration, telemetry, signals, exit codes.
//!
//! Owns the phases of every binary: configuration, telemetry, adapters, bind, run, drain. Must never know what a
//! service does. Outside tests, no other module may end the process.

mod health;

use std::{
    ffi::OsString,
    fmt::Display,
    future::Future,
    io::Write,
    net::SocketAddr,
    process::{ExitCode, exit},
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use votestream_server::{Admin, Connections, Drain, ServiceError};

use crate::{
    VERSION, admin,
    config::{Program, Refused, Values, listener, one_of},
    telemetry::{self, Exports, LogFormat},
    terminal::{Signals, note},
};

/// Why a process failed. Each cause has its own exit code.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Exit code 64.
    #[error("the configuration is wrong:\n  {}", .0.join("\n  "))]
    Config(Vec<String>),
    /// Exit code 1.
    #[error("cannot start: {0}")]
    Start(String),
    /// Exit code 2.
    #[error("{0}")]
    Task(#[from] ServiceError),
    /// Exit code 3.
    #[error("stopped, but not everything was finished within {0:?}")]
    Incomplete(Duration),
}

impl ProcessError {
    /// The error that something the service needs is missing.
    pub fn start(reason: impl Display) -> Self {
        Self::Start(reason.to_string())
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) => 64,
            Self::Start(_) => 1,
            Self::Task(_) => 2,
            Self::Incomplete(_) => INCOMPLETE,
        }
    }
}

/// Exit code of an incomplete drain.
const INCOMPLETE: u8 = 3;

/// How long health calls may take to end after a signal.
const HEALTH_DRAIN: Duration = Duration::from_secs(1);

/// What a service needs from its process.
#[derive(Clone, Debug)]
pub struct Process {
    shutdown: CancellationToken,
    /// The admin address, if there is one.
    admin: Option<Admin>,
}

impl Process {
    /// A token that is cancelled at the first signal.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Binds the address that the service will listen on, and logs it.
    ///
    /// # Errors
    ///
    /// If the address cannot be had.
    pub fn bind(&self, addr: SocketAddr) -> Result<TcpListener, ProcessError> {
        let listener = votestream_server::listen(addr)
            .map_err(|error| ProcessError::Start(format!("cannot listen on {addr}: {error}")))?;
        match listener.local_addr() {
            Ok(bound) => tracing::info!(address = %bound, "listening"),
            Err(error) => tracing::warn!(%error, "cannot read the listener's address"),
        }
        Ok(listener)
    }

    /// Answers gRPC health until the end of the process, for a service without an API of its own. An answer means that
    /// the process has started and its runtime works. A service that cannot go on ends its process.
    ///
    /// # Errors
    ///
    /// If the address cannot be had.
    pub async fn serve_health(&self, addr: SocketAddr, connections: Connections) -> Result<(), ProcessError> {
        let listener = self.bind(addr)?;
        let shutdown = self.shutdown();
        tokio::spawn(async move {
            if let Err(error) = votestream_server::serve_health(listener, &connections, shutdown, HEALTH_DRAIN).await {
                tracing::error!(%error, "health calls are no longer answered");
            }
        });
        Ok(())
    }

    /// Says at the admin address that the service is ready.
    pub fn serves(&self) {
        self.admin.iter().for_each(Admin::serves);
    }

    /// Says at the admin address that the service is ready, once it accepts connections.
    pub fn serves_with(&self, connections: &Connections) {
        self.admin.iter().for_each(|admin| admin.serves_with(connections, 1));
    }

    /// Waits for the service to end. After a signal it has this much time.
    ///
    /// # Errors
    ///
    /// If it ends by itself, or does not end in time.
    pub async fn run(
        &self,
        drain_max: Duration,
        service: impl Future<Output = Result<Drain, ServiceError>>,
    ) -> Result<(), ProcessError> {
        let overdue = async {
            self.shutdown.cancelled().await;
            self.admin.iter().for_each(Admin::drains);
            tokio::time::sleep(drain_max).await;
        };
        tokio::select! {
            ended = service => match ended? {
                Drain::Complete if self.shutdown.is_cancelled() => Ok(()),
                Drain::Complete => Err(ServiceError::task("the service", "it stopped without being told to").into()),
                Drain::Incomplete => Err(ProcessError::Incomplete(drain_max)),
            },
            () = overdue => Err(ProcessError::Incomplete(drain_max)),
        }
    }
}

/// Runs a program: reads its configuration, starts telemetry, serves until a signal, and reports the result. If the
/// first argument is `health`, it asks a running program for its health instead.
pub fn main<C, F>(
    program: &Program,
    configure: impl FnOnce(&mut Values) -> Option<C>,
    serve: impl FnOnce(C, Process) -> F,
) -> ExitCode
where
    C: std::fmt::Debug,
    F: Future<Output = Result<(), ProcessError>>,
{
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == health::COMMAND).is_some() {
        return health::main(program, arguments);
    }
    let (config, start) = match read(program, arguments, configure) {
        Ok(read) => read,
        Err(refused) => return answer(program, refused),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(program, &ProcessError::start(error)),
    };
    let entered = runtime.enter();
    let telemetry = match telemetry::init(program.name, start.format, start.exports) {
        Ok(telemetry) => telemetry,
        // A wrong telemetry variable is a configuration error, too.
        Err(error) => return refuse(program, &ProcessError::Config(vec![error.to_string()])),
    };
    drop(entered);
    votestream_server::raise_descriptor_limit();
    tracing::info!(version = VERSION, settings = start.summary, "{} starts", program.name);
    tracing::info!(exports = ?telemetry.exports(), ?config, "configured");
    let mut admin = None;
    let ended = runtime.block_on(async {
        admin = start.admin.map(open_admin).transpose()?;
        let process = Process { shutdown: CancellationToken::new(), admin: admin.clone() };
        listen_for_signals(process.shutdown())?;
        serve(config, process).await
    });
    let code = match ended {
        Ok(()) => {
            tracing::info!("stopped; everything is finished");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            tracing::error!(exit_code = failure.code(), "{failure}");
            ExitCode::from(failure.code())
        }
    };
    telemetry.shutdown();
    // Operators were answered until here.
    drop(admin);
    // Do not wait for workers: a call that was cut off may still block one.
    runtime.shutdown_background();
    code
}

/// Runs a command of a program instead of the program, if the first argument is its name: reads the configuration of the
/// command, runs it, and reports the result. Logs go to stderr, and nothing is exported.
pub fn command<C, F>(
    name: &str,
    program: &Program,
    configure: impl FnOnce(&mut Values) -> Option<C>,
    run: impl FnOnce(C) -> F,
) -> Option<ExitCode>
where
    F: Future<Output = Result<(), ProcessError>>,
{
    let mut arguments = std::env::args_os().skip(1).peekable();
    arguments.next_if(|first| first == name)?;
    let config = program.read(arguments, std::env::vars_os()).and_then(|mut values| {
        let format = values.get("log-format", one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
        let config = configure(&mut values);
        values.finish(config.zip(format))
    });
    let (config, format) = match config {
        Ok(read) => read,
        Err(refused) => return Some(answer(program, refused)),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Some(refuse(program, &ProcessError::start(error))),
    };
    let entered = runtime.enter();
    let telemetry = match telemetry::init(program.name, format, Exports::default()) {
        Ok(telemetry) => telemetry,
        Err(error) => return Some(refuse(program, &ProcessError::Config(vec![error.to_string()]))),
    };
    drop(entered);
    let ended = runtime.block_on(run(config));
    telemetry.shutdown();
    Some(ended.map_or_else(|failure| refuse(program, &failure), |()| ExitCode::SUCCESS))
}

/// The settings that the shell itself needs.
struct Start {
    format: LogFormat,
    exports: Exports,
    admin: Option<SocketAddr>,
    summary: String,
}

fn read<C>(
    program: &Program,
    arguments: impl Iterator<Item = OsString>,
    configure: impl FnOnce(&mut Values) -> Option<C>,
) -> Result<(C, Start), Refused> {
    let mut values = program.read(arguments, std::env::vars_os())?;
    let format = values.get("log-format", one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    let exports = values.merge(Exports::from_variables(|name| std::env::var(name).ok()));
    let admin = listener::admin_addr(&mut values);
    let config = configure(&mut values);
    let summary = values.to_string();
    let all = config.zip(format).zip(exports.zip(admin));
    values.finish(all.map(|((config, format), (exports, admin))| (config, Start { format, exports, admin, summary })))
}

/// Answers at the admin address before anything else is there.
fn open_admin(addr: SocketAddr) -> Result<Admin, ProcessError> {
    let admin = admin::open(addr).map_err(|error| ProcessError::Start(format!("cannot listen on {addr}: {error}")))?;
    tracing::info!(admin = %admin.address(), "metrics and health are answered");
    if admin.is_exposed() {
        tracing::warn!(admin = %admin.address(), "others can reach the admin address: {}", admin::EXPOSED);
    }
    Ok(admin)
}

fn answer(program: &Program, refused: Refused) -> ExitCode {
    match refused {
        Refused::Answered(answer) => {
            print_out(&answer);
            ExitCode::SUCCESS
        }
        Refused::Mistakes(mistakes) => refuse(program, &ProcessError::Config(mistakes)),
    }
}

/// Prints on stdout. The reader may have left, so errors are ignored.
pub fn print_out(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Reports a failure on stderr, because logging has not started yet.
fn refuse(program: &Program, failure: &ProcessError) -> ExitCode {
    note(&format!("{}: {failure}", program.name));
    ExitCode::from(failure.code())
}

/// The first SIGTERM, SIGINT or SIGHUP starts the drain. A second one ends the process at once. No acknowledged vote is
/// lost by this.
fn listen_for_signals(shutdown: CancellationToken) -> Result<(), ProcessError> {
    let mut signals =
        Signals::new().map_err(|error| ProcessError::Start(format!("cannot listen for signals: {error}")))?;
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::info!(?signal, "stopping; a second signal stops at once");
        shutdown.cancel();
        signals.next().await;
        tracing::error!("stopped by a second signal, before everything was finished");
        exit(i32::from(INCOMPLETE));
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process { shutdown: CancellationToken::new(), admin: None }
    }

    const BUDGET: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_service_that_ends_by_itself_is_a_failure() {
        let ended = process().run(BUDGET, async { Ok(Drain::Complete) }).await;
        assert_eq!(ended.unwrap_err().code(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_complete_cut_short_or_overdue() {
        let process = process();
        process.shutdown.cancel();
        assert!(process.run(BUDGET, async { Ok(Drain::Complete) }).await.is_ok());
        let cut = process.run(BUDGET, async { Ok(Drain::Incomplete) }).await;
        assert_eq!(cut.unwrap_err().code(), 3);
        let overdue = process.run(BUDGET, std::future::pending()).await;
        assert_eq!(overdue.unwrap_err().code(), 3);
    }

    #[tokio::test]
    async fn an_address_in_use_is_a_failed_start() {
        let process = process();
        let first = process.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let second = process.bind(first.local_addr().unwrap()).unwrap_err();
        assert!(second.code() == 1 && second.to_string().starts_with("cannot start: cannot listen on 127.0.0.1:"));
    }

    #[test]
    fn mistakes_are_listed() {
        let failure = ProcessError::Config(vec!["a: wrong".into(), "b: wrong".into()]);
        assert_eq!(
            (failure.to_string().as_str(), failure.code()),
            ("the configuration is wrong:\n  a: wrong\n  b: wrong", 64)
        );
    }
}
