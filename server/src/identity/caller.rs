//! A caller and its rights.
//!
//! Owns the decision whether a caller may do something, and what it is told if not. Must never name a token, a secret or
//! a voter in such a text.

use std::{borrow::Cow, convert::Infallible, fmt, mem, num::NonZeroU32, sync::Arc, time::Duration};

use axum::extract::FromRequestParts;
use http::{Extensions, request::Parts};
use tonic::{Code, Status};
use votestream_core::{
    PollId,
    model::poll::check_user_id,
    observe::metrics::{self, Denial},
};

use super::{
    Inner,
    claims::Claim,
    issuer::{Issuer, LEEWAY},
    rules::{CertificateRule, Digest, KeyRule, Rules},
    scope::{Action, Scopes},
    unix_now,
};
use crate::{
    connections::Peer,
    quotas::{Exceeded, Quotas},
};

/// Why a caller may not do what it asked for. The text is for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub(super) reason: Denial,
    pub(super) message: Cow<'static, str>,
}

impl Denied {
    pub(super) fn new(reason: Denial, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(super) fn code(&self) -> Code {
        match self.reason {
            Denial::Scope => Code::PermissionDenied,
            Denial::KeysUnavailable | Denial::NotChecked => Code::Unavailable,
            Denial::Missing
            | Denial::Malformed
            | Denial::UnknownIssuer
            | Denial::UnknownKey
            | Denial::Algorithm
            | Denial::Expired
            | Denial::NotYetValid
            | Denial::Audience
            | Denial::Signature
            | Denial::Claims
            | Denial::Revoked => Code::Unauthenticated,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        Self::new(denied.code(), denied.message)
    }
}

/// What a credential says.
pub(super) struct Credential {
    pub(super) source: Source,
    pub(super) namespace: Arc<str>,
    /// The voter that it names.
    pub(super) user: Option<Box<str>>,
    pub(super) scopes: Scopes,
    /// When it expires, in seconds since 1970.
    pub(super) expires_at: Option<u64>,
}

/// Where a credential comes from.
pub(super) enum Source {
    Anonymous,
    Token { issuer: Arc<Issuer>, digest: Digest, jti: Option<Box<str>>, issued_at: Option<u64> },
    Key(Arc<KeyRule>),
    Certificate(Arc<CertificateRule>),
}

impl Inner {
    /// What callers without a credential are.
    fn anonymous(&self) -> Option<Arc<Credential>> {
        self.rules.load().anonymous.clone()
    }
}

impl Credential {
    pub(super) fn of(source: Source, namespace: Arc<str>, scopes: Scopes) -> Self {
        Self { source, namespace, user: None, scopes, expires_at: None }
    }

    /// Memory that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let texts = self.user.as_ref().map_or(0, |user| user.len());
        // A scope has the text of its polls besides itself.
        3 * mem::size_of::<Self>() + texts + self.scopes.len() * 80
    }

    /// Whether it allows an action for a poll. A token has at most the scopes of its issuer's entry.
    fn allows(&self, action: Action, poll: &[u8]) -> bool {
        self.scopes.allow(action, poll)
            && match &self.source {
                Source::Token { issuer, .. } => issuer.rule.scopes.allow(action, poll),
                Source::Anonymous | Source::Key(_) | Source::Certificate(_) => true,
            }
    }

    fn allows_some(&self, action: Action) -> bool {
        self.scopes.allow_some(action)
            && match &self.source {
                Source::Token { issuer, .. } => issuer.rule.scopes.allow_some(action),
                Source::Anonymous | Source::Key(_) | Source::Certificate(_) => true,
            }
    }

    /// What tells its voter from all others.
    fn voter_name(&self) -> Option<(&str, &str)> {
        Some((&*self.namespace, self.user.as_deref()?))
    }

    fn is_anonymous(&self) -> bool {
        matches!(self.source, Source::Anonymous)
    }

    /// Whether it has not expired.
    pub(super) fn check_expiry(&self, now: u64) -> Result<(), Denied> {
        if let Some(expires_at) = self.expires_at
            && now >= expires_at.saturating_add(LEEWAY)
        {
            let what = if matches!(self.source, Source::Certificate(_)) { "certificate" } else { "token" };
            return Err(expired(what, now - expires_at));
        }
        Ok(())
    }

    /// Whether it still counts by these rules.
    pub(super) fn check(&self, rules: &Rules, now: u64) -> Result<(), Denied> {
        self.check_expiry(now)?;
        let gone = |what: &'static str| Denied::new(Denial::Revoked, what);
        match &self.source {
            Source::Anonymous => {
                let same = rules.anonymous.as_ref().is_some_and(|anonymous| anonymous.scopes == self.scopes);
                if same { Ok(()) } else { Err(gone("callers without a credential have other rights now: call again")) }
            }
            Source::Token { issuer, jti, issued_at, .. } => {
                if !rules.issuers.iter().any(|known| Arc::ptr_eq(known, issuer)) {
                    return Err(gone("the entry of the token's issuer has changed: call again"));
                }
                if rules.revoked.has(&issuer.rule.iss, jti.as_deref(), self.user.as_deref(), *issued_at) {
                    return Err(gone("the token was revoked"));
                }
                Ok(())
            }
            Source::Key(rule) => match rules.keys.get(&rule.sha256) {
                Some(known) if Arc::ptr_eq(known, rule) => Ok(()),
                Some(_) => Err(gone("the rights of the key have changed: call again")),
                None => Err(gone("the key was revoked")),
            },
            Source::Certificate(rule) => {
                let known = rules.certificates.iter().any(|known| Arc::ptr_eq(known, rule));
                if known { Ok(()) } else { Err(gone("the certificate was revoked, or its rights have changed")) }
            }
        }
    }
}

pub(super) fn expired(what: &str, ago: u64) -> Denied {
    Denied::new(Denial::Expired, format!("the {what} expired {} ago", in_words(ago)))
}

/// A time in one unit.
pub(super) fn in_words(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// Whoever makes a call. Copies are cheap.
#[derive(Clone, Default)]
pub struct Caller {
    kind: Kind,
    /// Counts its votes, if they count as calls.
    quotas: Option<Quotas>,
}

impl fmt::Debug for Caller {
    /// Names neither a voter nor a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Nobody => "Nobody",
            Kind::Everybody => "Everybody",
            Kind::Known(..) => "Known",
        })
    }
}

#[derive(Clone, Default)]
enum Kind {
    /// No check has been made. It may do nothing.
    #[default]
    Nobody,
    /// Identity is off. It may do everything.
    Everybody,
    Known(Arc<Credential>, Arc<Inner>),
}

impl Caller {
    /// Whoever made the request with these extensions. Without a check it has no rights.
    pub fn of(extensions: &Extensions) -> Self {
        let handed_on = || extensions.get::<Self>().cloned();
        extensions.get::<Peer>().map(|peer| peer.caller.clone()).or_else(handed_on).unwrap_or_default()
    }

    /// A request for a handler of this process, on behalf of this caller.
    pub fn asks<M>(&self, message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(self.clone());
        request
    }

    /// The caller of a process that asks nobody who they are.
    pub fn everybody() -> Self {
        Self { kind: Kind::Everybody, quotas: None }
    }

    pub(super) fn known(credential: Arc<Credential>, inner: Arc<Inner>) -> Self {
        Self { kind: Kind::Known(credential, inner), quotas: None }
    }

    /// Counts a call against the limits of its credential and of its voter, and the votes of the call from now on.
    pub(super) fn call(&mut self, quotas: &Quotas) -> Result<(), Exceeded> {
        let Kind::Known(credential, _) = &self.kind else { return Ok(()) };
        match &credential.source {
            Source::Anonymous => return Ok(()),
            Source::Token { digest, .. } => quotas.call_with(digest)?,
            Source::Key(rule) => quotas.call_with(("key", &rule.id))?,
            Source::Certificate(rule) => quotas.call_with(("certificate", &rule.san))?,
        }
        if let Some(voter) = credential.voter_name() {
            quotas.calls_of(voter, NonZeroU32::MIN)?;
            // Whoever may vote for others sends the votes of many, which are not the calls of one.
            let votes_as_itself = quotas.count_voters() && !credential.allows_some(Action::Relay);
            self.quotas = votes_as_itself.then(|| quotas.clone());
        }
        Ok(())
    }

    /// Counts votes of a call that takes many, as calls of the voter who sends them. The votes of a relay do not count,
    /// and those of a call that takes one are the call.
    ///
    /// # Errors
    ///
    /// If the voter has sent too many.
    pub fn count_votes(&self, votes: impl FnOnce() -> usize) -> Result<(), Status> {
        let Kind::Known(credential, _) = &self.kind else { return Ok(()) };
        let (Some(quotas), Some(voter)) = (&self.quotas, credential.voter_name()) else { return Ok(()) };
        let votes = u32::try_from(votes()).unwrap_or(u32::MAX);
        NonZeroU32::new(votes).map_or(Ok(()), |votes| quotas.calls_of(voter, votes)).map_err(Status::from)
    }

    /// Whether identity is off, so that everybody may do everything.
    pub fn is_everybody(&self) -> bool {
        matches!(self.kind, Kind::Everybody)
    }

    /// Whether everybody sees what it sees: it shows no credential, or none are asked for.
    pub fn is_anybody(&self) -> bool {
        match &self.kind {
            Kind::Nobody => false,
            Kind::Everybody => true,
            Kind::Known(credential, _) => credential.is_anonymous(),
        }
    }

    /// Whether everybody may read this poll, and this caller sees no more of it than they do.
    pub fn sees_what_all_see(&self, poll: &str) -> bool {
        match &self.kind {
            Kind::Nobody => false,
            Kind::Everybody => true,
            Kind::Known(_, inner) => {
                let open = inner.anonymous().is_some_and(|all| all.allows(Action::Read, poll.as_bytes()));
                open && !self.may(Action::Manage, poll.as_bytes())
            }
        }
    }

    /// Whether it has shown a credential that counts.
    pub(crate) fn has_credential(&self) -> bool {
        matches!(&self.kind, Kind::Known(credential, _) if !credential.is_anonymous())
    }

    /// Whether it may do this. Whoever shows a credential may do what callers without one may: it could leave it out.
    pub fn may(&self, action: Action, poll: &[u8]) -> bool {
        match &self.kind {
            Kind::Nobody => false,
            Kind::Everybody => true,
            Kind::Known(credential, inner) => {
                credential.allows(action, poll)
                    || inner.anonymous().is_some_and(|anonymous| anonymous.allows(action, poll))
            }
        }
    }

    /// Checks that it may do this.
    ///
    /// # Errors
    ///
    /// Says which scope is missing, or that a credential is.
    pub fn require(&self, action: Action, poll: &str) -> Result<(), Denied> {
        if self.may(action, poll.as_bytes()) {
            return Ok(());
        }
        // The poll of a request may be any text, of any length.
        let poll = if PollId::new(poll).is_ok() { poll } else { "..." };
        Err(self.lacks(format_args!("{action}:{poll}")))
    }

    /// Checks that it may do this for some poll. What it may see of others is decided for each.
    ///
    /// # Errors
    ///
    /// As [`Self::require`].
    pub fn require_some(&self, action: Action) -> Result<(), Denied> {
        if self.may_some(action) { Ok(()) } else { Err(self.lacks(format_args!("{action}:..."))) }
    }

    fn may_some(&self, action: Action) -> bool {
        match &self.kind {
            Kind::Nobody => false,
            Kind::Everybody => true,
            Kind::Known(credential, inner) => {
                credential.allows_some(action)
                    || inner.anonymous().is_some_and(|anonymous| anonymous.allows_some(action))
            }
        }
    }

    /// Says that a scope is missing. Counts that something was denied.
    fn lacks(&self, scope: fmt::Arguments<'_>) -> Denied {
        let denied = match &self.kind {
            Kind::Known(credential, _) if !credential.is_anonymous() => {
                Denied::new(Denial::Scope, format!("the credential's scopes do not cover {scope}"))
            }
            Kind::Nobody | Kind::Everybody | Kind::Known(..) => {
                Denied::new(Denial::Missing, format!("this needs a credential with the scope {scope}"))
            }
        };
        metrics::denied(denied.reason);
        denied
    }

    /// Checks that it may vote at all.
    ///
    /// # Errors
    ///
    /// As [`Self::require`].
    pub fn require_voting(&self) -> Result<(), Denied> {
        if self.may_some(Action::Relay) { Ok(()) } else { self.require_some(Action::Vote) }
    }

    /// Checks that it may vote in this poll.
    ///
    /// # Errors
    ///
    /// As [`Self::require`].
    pub fn require_voting_in(&self, poll: &str) -> Result<(), Denied> {
        if self.may(Action::Relay, poll.as_bytes()) { Ok(()) } else { self.require(Action::Vote, poll) }
    }

    /// Whether its credential names the user that it votes as.
    pub fn names_user(&self) -> bool {
        matches!(&self.kind, Kind::Known(credential, _) if credential.user.is_some())
    }

    /// As which user it votes in a poll, when it has named this one, or none: an empty text. `None` if it may not.
    #[inline]
    pub fn voter<'a>(&'a self, poll: &[u8], named: &'a [u8]) -> Option<&'a [u8]> {
        let credential = match &self.kind {
            Kind::Nobody => return None,
            Kind::Everybody => return Some(named),
            Kind::Known(credential, _) => credential,
        };
        // Whoever votes for others must say for whom: a forgotten name must not become its own.
        if credential.allows(Action::Relay, poll) {
            return Some(named);
        }
        let user = credential.user.as_deref().map(str::as_bytes)?;
        ((named.is_empty() || named == user) && credential.allows(Action::Vote, poll)).then_some(user)
    }

    /// Why [`Self::voter`] has none, for the caller.
    pub fn no_voter(&self, poll: &str) -> String {
        match &self.kind {
            Kind::Known(credential, _) if credential.allows(Action::Vote, poll.as_bytes()) => match credential.user {
                Some(_) => "user_id: the token is for another user; leave user_id out, or name the token's".into(),
                None => "user_id: the token names no user to vote as".into(),
            },
            Kind::Nobody | Kind::Everybody | Kind::Known(..) => {
                format!("the credential's scopes do not cover vote:{poll} or relay:{poll}")
            }
        }
    }

    /// The namespace of the users for whom it votes.
    pub fn namespace(&self) -> &str {
        match &self.kind {
            Kind::Known(credential, _) => &credential.namespace,
            Kind::Nobody | Kind::Everybody => "",
        }
    }

    /// Who it is, for the audit log.
    pub fn name(&self) -> String {
        match &self.kind {
            Kind::Nobody => "nobody".into(),
            Kind::Everybody => "anybody".into(),
            Kind::Known(credential, _) => match &credential.source {
                Source::Anonymous => "anonymous".into(),
                Source::Token { issuer, .. } => match &credential.user {
                    Some(user) => format!("token {} {user}", issuer.rule.iss),
                    None => format!("token {}", issuer.rule.iss),
                },
                Source::Key(rule) => format!("key {}", rule.id),
                Source::Certificate(rule) => format!("certificate {}", rule.san),
            },
        }
    }

    /// Whether the credential still counts: a body may take long to arrive.
    ///
    /// # Errors
    ///
    /// If it has expired, or was revoked.
    pub fn still_counts(&self) -> Result<(), Denied> {
        let Kind::Known(credential, inner) = &self.kind else { return Ok(()) };
        credential.check(&inner.rules.load(), unix_now()).inspect_err(|denied| metrics::denied(denied.reason))
    }

    /// Waits until the credential counts no more: it has expired, or was revoked. Long calls end then.
    pub async fn ended(&self) -> Denied {
        let Kind::Known(credential, inner) = &self.kind else { return std::future::pending().await };
        let mut changes = inner.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Err(denied) = self.still_counts() {
                return denied;
            }
            // Look again now and then even if nothing changes: the wall clock may be set.
            let now = unix_now();
            let left = credential.expires_at.map_or(u64::MAX, |at| at.saturating_add(LEEWAY).saturating_sub(now));
            let wait = Duration::from_secs(left.clamp(1, LOOK_AGAIN));
            // The sender lives as long as this caller. If the wait ends, it is time to look.
            drop(tokio::time::timeout(wait, changes.changed()).await);
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// How often a long call looks at its credential, in seconds, if nothing else makes it look.
const LOOK_AGAIN: u64 = 60;

/// The user of a claim, if it is one that can vote.
pub(super) fn user_of(claim: &Claim<'_>) -> Result<Box<str>, Denied> {
    let wrong = |what: &str| Denied::new(Denial::Claims, format!("the token's user is not valid: {what}"));
    let text = match claim {
        Claim::Text(text) => Cow::Borrowed(&**text),
        Claim::Number(number) if number.is_u64() || number.is_i64() => number.to_string().into(),
        Claim::Number(_) | Claim::List(_) | Claim::Other => {
            return Err(wrong("it is neither a text nor a whole number"));
        }
    };
    check_user_id(text.as_bytes()).map(Into::into).map_err(|invalid| wrong(&invalid.to_string()))
}
