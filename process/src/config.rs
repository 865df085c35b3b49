//! Configuration by flags and environment: reads everything, then reports every mistake, then refuses.
//!
//! Owns how a setting is named (`--table-prefix` and `VOTESTREAM_TABLE_PREFIX`), which source wins (flag, environment,
//! default), and the text of `--help`. Must never read the process's environment by itself, open a socket, or stop at
//! the first mistake: a deployment takes minutes, so one attempt must show all mistakes.

pub mod engine;
pub mod listener;
mod parse;
pub mod pseudonyms;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::VERSION;

pub use parse::{bytes, duration, one_of, socket_addr, switch, text, whole};

/// Prefix of every variable of the project.
pub const PREFIX: &str = "VOTESTREAM_";

/// Variables of the project that the services do not read when they run, but that may be set in the same shell.
const OTHER_VARIABLES: [&str; 9] = [
    "VOTESTREAM_COMMIT",
    "VOTESTREAM_ADDR",
    "VOTESTREAM_RESULTS_ADDR",
    "VOTESTREAM_SERVER",
    "VOTESTREAM_INGEST",
    "VOTESTREAM_RESULTS",
    "VOTESTREAM_TLS_CA",
    "VOTESTREAM_TOKEN",
    "VOTESTREAM_TOKEN_FILE",
];

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name of the flag, without dashes in front.
    pub name: &'static str,
    /// Name of the value in the help. A setting without one is a switch.
    pub value: Option<&'static str>,
    /// The default value.
    pub default: Option<&'static str>,
    /// What it does, for the help.
    pub help: &'static str,
}

impl Setting {
    /// A setting with a default.
    pub const fn new(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, value: Some(value), default: Some(default), help }
    }

    /// A setting that may be missing. The help says what happens then.
    pub const fn optional(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value: Some(value), default: None, help }
    }

    /// A setting that is on or off, and off by default.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, value: None, default: Some("false"), help }
    }

    /// Name of its variable.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

/// A program, as its help describes it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the binary, and of the service in telemetry.
    pub name: &'static str,
    /// Description in one sentence.
    pub about: &'static str,
    /// Its settings, in groups.
    pub settings: &'static [&'static [Setting]],
    /// Names of settings of other services: all services may share one environment.
    pub others: &'static [&'static str],
}

/// Exit codes and other variables, for the help.
const AFTER_HELP: &str = "\
Every flag can be given as the variable beside it; the flag wins. All mistakes are reported at once. Variables that start
with VOTESTREAM_ and are unknown are mistakes.

Standard variables:
  AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, ...       region and credentials, as for every AWS tool
  AWS_ENDPOINT_URL_KINESIS, AWS_ENDPOINT_URL_DYNAMODB   other endpoints than those of AWS
  OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ... export of traces, metrics and logs by OTLP over gRPC; off when unset
  RUST_LOG                                              which logs are written to stderr [default: info]

Health:
  `health` as the first argument asks the service at --listen over gRPC instead of starting one; 0 if it serves, else 1.
  With TLS it does not check the certificate, which is for other names: it asks its own machine

Signals:
  SIGTERM, SIGINT and SIGHUP drain, unless whoever starts the service has them ignored; a second one stops at once

Exit codes:
  0   stopped by a signal, and everything was finished
  1   could not start: a stream, a table, a permission or an address is missing
  2   a task ended that must not
  3   stopped by a signal, but not everything was finished in time
  64  wrong configuration";

/// Why reading the configuration ended without values.
#[derive(Debug)]
pub enum Refused {
    /// The caller asked for help or version. This is the text.
    Answered(String),
    /// Everything that is wrong.
    Mistakes(Vec<String>),
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Flag,
    Variable,
    Default,
}

/// The text of every setting, and the mistakes found so far.
#[derive(Debug)]
pub struct Values {
    given: BTreeMap<&'static str, (String, Source)>,
    mistakes: Vec<String>,
}

impl Program {
    fn all(&self) -> impl Iterator<Item = &'static Setting> {
        self.settings.iter().flat_map(|group| group.iter())
    }

    fn command(&self) -> Command {
        let arguments = self.all().map(|setting| {
            let default = setting.default.filter(|_| setting.value.is_some());
            let default = default.map_or_else(String::new, |default| format!(" [default: {default}]"));
            let argument = Arg::new(setting.name)
                .long(setting.name)
                .help(format!("{} [env: {}]{default}", setting.help, setting.variable()))
                .allow_hyphen_values(false);
            match setting.value {
                Some(value) => argument.value_name(value).action(ArgAction::Set),
                None => argument.action(ArgAction::SetTrue),
            }
        });
        Command::new(self.name).version(VERSION).about(self.about).after_help(AFTER_HELP).args(arguments)
    }

    /// Reads flags (without the program's name) and variables.
    ///
    /// # Errors
    ///
    /// Only if help or version was asked for. Mistakes are kept in the returned value, so that wrong values are
    /// reported together with them.
    pub fn read(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Values, Refused> {
        let mut values = Values { given: BTreeMap::new(), mistakes: Vec::new() };
        let matches = self.matches(arguments.into_iter().collect(), &mut values.mistakes)?;
        let variables = self.variables(variables, &mut values.mistakes);
        for setting in self.all() {
            let flag = matches.as_ref().and_then(|matches| match setting.value {
                Some(_) => matches.get_one::<String>(setting.name).cloned(),
                None => matches.get_flag(setting.name).then(|| "true".into()),
            });
            let given = flag
                .map(|text| (text, Source::Flag))
                .or_else(|| variables.get(setting.name).map(|text| (text.clone(), Source::Variable)))
                .or_else(|| setting.default.map(|text| (text.into(), Source::Default)));
            values.given.extend(given.map(|given| (setting.name, given)));
        }
        Ok(values)
    }

    /// Reads the flags. A wrong flag is noted and removed, and the others are read.
    fn matches(&self, mut arguments: Vec<OsString>, mistakes: &mut Vec<String>) -> Result<Option<ArgMatches>, Refused> {
        for _ in 0..=arguments.len() {
            let named = std::iter::once(OsString::from(self.name)).chain(arguments.iter().cloned());
            let error = match self.command().try_get_matches_from(named) {
                Ok(matches) => return Ok(Some(matches)),
                Err(error) => error,
            };
            if [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind()) {
                return Err(Refused::Answered(error.render().to_string()));
            }
            let first_line = error.render().to_string();
            let first_line = first_line.lines().next().unwrap_or_default();
            mistakes.push(first_line.strip_prefix("error: ").unwrap_or(first_line).to_owned());
            // clap names the wrong argument. For a flag, the name of its value follows.
            let Some(ContextValue::String(culprit)) = error.get(ContextKind::InvalidArg) else { break };
            let culprit = culprit.split([' ', '=']).next().unwrap_or_default();
            let is_culprit = |argument: &OsString| {
                argument == culprit
                    || argument.to_str().and_then(|text| text.split_once('=')).is_some_and(|(name, _)| name == culprit)
            };
            // Remove the last one: if a flag is given twice, the second is the one too many.
            let Some(at) = arguments.iter().rposition(is_culprit) else { break };
            arguments.remove(at);
        }
        Ok(None)
    }

    /// The values of the project's variables, by the names of their settings.
    fn variables(
        &self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        mistakes: &mut Vec<String>,
    ) -> BTreeMap<&'static str, String> {
        let known: BTreeMap<String, &'static str> =
            self.all().map(|setting| (setting.variable(), setting.name)).collect();
        let others = self.others.iter().map(|name| Setting::switch(name, "").variable());
        let others: Vec<String> = others.chain(OTHER_VARIABLES.map(String::from)).collect();
        let mut found = BTreeMap::new();
        for (variable, value) in variables {
            let Some(variable) = variable.to_str().filter(|variable| variable.starts_with(PREFIX)) else { continue };
            let Some(&name) = known.get(variable) else {
                if !others.iter().any(|other| other == variable) {
                    mistakes.push(unknown(variable, known.keys()));
                }
                continue;
            };
            match value.to_str() {
                // An empty variable counts as unset, as with the standard variables of OpenTelemetry.
                Some("") => {}
                Some(value) => drop(found.insert(name, value.to_owned())),
                None => mistakes.push(format!("{variable}: the value {} is not UTF-8", display(&value))),
            }
        }
        found
    }
}

fn display(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

fn unknown<'a>(variable: &str, known: impl Iterator<Item = &'a String>) -> String {
    // The known name with the longest common start. This finds a missing S.
    let shared = |known: &str| known.bytes().zip(variable.bytes()).take_while(|(a, b)| a == b).count();
    let nearest = known.max_by_key(|known| shared(known)).filter(|known| shared(known) > PREFIX.len() + 2);
    let hint = nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
    format!("{variable}: there is no such setting{hint}")
}

impl Values {
    /// Reads a setting that must have a value. `None` after a mistake, which is noted.
    pub fn get<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.optional(name, parse)?;
        if value.is_none() {
            self.mistakes.push(format!("--{name}: a value is missing"));
        }
        value
    }

    /// Reads a setting that may have no value. The outer `None` means a mistake, which is noted.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some((text, source)) = self.given.get(name) else { return Some(None) };
        match parse(text) {
            Ok(value) => Some(Some(value)),
            Err(reason) => {
                let from = match source {
                    Source::Flag | Source::Default => format!("--{name}"),
                    Source::Variable => Setting::switch(name, "").variable(),
                };
                self.mistakes.push(format!("{from}: {text:?}: {reason}"));
                None
            }
        }
    }

    /// Notes a mistake in a combination of settings, unless the condition holds.
    pub fn check(&mut self, holds: bool, mistake: impl FnOnce() -> String) {
        if !holds {
            self.mistakes.push(mistake());
        }
    }

    /// Takes over the mistakes of something that was read elsewhere.
    pub fn merge<T>(&mut self, read: Result<T, Vec<String>>) -> Option<T> {
        read.map_err(|mistakes| self.mistakes.extend(mistakes)).ok()
    }

    /// Returns the configuration if there was no mistake.
    ///
    /// # Errors
    ///
    /// Everything that was wrong.
    pub fn finish<C>(self, config: Option<C>) -> Result<C, Refused> {
        match config {
            Some(config) if self.mistakes.is_empty() => Ok(config),
            // If a value is missing, a mistake was noted for it.
            _ => Err(Refused::Mistakes(self.mistakes)),
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, (text, source))) in self.given.iter().enumerate() {
            let source = match source {
                Source::Flag => " (flag)",
                Source::Variable => " (environment)",
                Source::Default => "",
            };
            write!(f, "{}{name}={text}{source}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
