//! Who calls, and what they may do.
//!
//! Owns the auth file, the check in front of every route, and the rights of a caller. Must never know what a vote or a
//! result is: services say which right a call needs, for which poll. Must never let a call through because something is
//! missing: a request without the check's mark has no rights at all.
//!
//! `rules` reads the auth file, `issuer` the keys of those who sign tokens, `revoked` what counts no more. `verify`
//! turns a request's credential into a `caller` by its `claims`, unless it is `known`; and `check` stands in front of the
//! routes. `sign` makes tokens and keys for those who have no issuer of their own. Never by hand here: the format of keys and
//! of the heads of tokens, which `jsonwebtoken` reads, and cryptography, which `ring` does.

mod caller;
mod check;
mod claims;
mod fetch;
mod issuer;
mod known;
mod mistakes;
mod reload;
mod revoked;
mod rules;
mod scope;
mod sign;
pub mod signature;
mod verify;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use caller::{Caller, Denied};
pub(crate) use check::CheckLayer;
pub use check::{Need, Needs};
pub use issuer::Pace;
pub use scope::{Action, InvalidScope, Scopes};
pub use sign::{Claims, Secret, SignError, Signer, check_auth_file, new_key_set, random_user};
pub(crate) use verify::{FAILURES_MAX, Remembered};

use rules::Rules;

/// How a port finds out who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// It does not: everybody may do everything. For listeners that only friends reach.
    #[default]
    Off,
    /// By this file, and by the file of credentials that count no more.
    File {
        /// The auth file; or `env:NAME`, whose text is in this variable of the environment.
        file: PathBuf,
        /// The revocations, if there are any.
        revoked: Option<PathBuf>,
    },
}

/// Finds out who calls. Copies share what is remembered.
#[derive(Clone, Default)]
pub struct Identity(Option<Arc<Inner>>);

impl fmt::Debug for Identity {
    /// Whether it is on, and nothing else: settings are logged, and the rules hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Identity(on)" } else { "Identity(off)" })
    }
}

struct Inner {
    files: reload::Files,
    rules: ArcSwap<Rules>,
    /// Counts the changes of the rules. Streams look again at their callers when it changes.
    changes: watch::Sender<u64>,
    is_watching: AtomicBool,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn open(auth: &Auth) -> Result<Self, Vec<String>> {
        Self::open_at(auth, Pace::default())
    }

    /// Like [`Self::open`], with another pace.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_at(auth: &Auth, pace: Pace) -> Result<Self, Vec<String>> {
        let Auth::File { file, revoked } = auth else { return Ok(Self::default()) };
        signature::install();
        let (files, rules) = reload::Files::open(file.clone(), revoked.clone())?;
        let (rules, changes) = (ArcSwap::from_pointee(Rules { pace, ..rules }), watch::Sender::new(0));
        Ok(Self(Some(Arc::new(Inner { files, rules, changes, is_watching: AtomicBool::new(false) }))))
    }

    /// Whether callers have to say who they are.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Follows the files and the keys of issuers from now on, until the last copy is dropped. Must be called within a
    /// runtime. Further calls do nothing.
    pub(crate) fn watch(&self) {
        if let Some(inner) = &self.0
            && !inner.is_watching.swap(true, Ordering::AcqRel)
        {
            tokio::spawn(reload::follow(Arc::downgrade(inner)));
        }
    }
}

/// The wall clock, in seconds since 1970. Tokens are made on other machines, by their wall clocks.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
