//! `votestream auth`: makes what callers prove with who they are, and shows what managers did.
//!
//! Owns how keys and tokens are shown. Must never print a secret anywhere but on stdout, nor make one by itself: the
//! server's own code does, so that what is made here is what is accepted there.

mod init;
mod key;
mod log;
mod pseudonym;
mod token;

use votestream_server::identity::{InvalidScope, Scopes, SignError};

use crate::{
    args::{AuthCommand, Global},
    failure::{Failure, Outcome},
};

pub(super) async fn run(global: &Global, command: AuthCommand) -> Outcome {
    match command {
        AuthCommand::Init(args) => init::run(global, &args),
        AuthCommand::Token(args) => token::run(global, &args),
        AuthCommand::Key(args) => key::run(global, &args),
        AuthCommand::Pseudonym(args) => pseudonym::run(global, args).await,
        AuthCommand::Log(args) => log::run(global, &args),
    }
}

/// Reads scopes as the server does.
fn scopes_of(texts: &[String]) -> Result<Scopes, Failure> {
    Scopes::parse(texts.iter().map(String::as_str)).map_err(|invalid: InvalidScope| Failure::usage(invalid.to_string()))
}

impl From<SignError> for Failure {
    fn from(error: SignError) -> Self {
        Self::usage(error.to_string())
    }
}
