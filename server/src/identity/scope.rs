//! Scopes: what a caller may do, and with which polls.
//!
//! Owns their text form. Must never allow what is not written.

use std::{fmt, str::FromStr, sync::Arc};

use votestream_core::PollId;

/// Most scopes of one credential. Every vote is compared with them.
pub(crate) const SCOPES_MAX: usize = 64;

/// What a caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Votes as the user that its token names.
    Vote,
    /// Votes for any user.
    Relay,
    /// Reads polls, and results as far as they are shown.
    Read,
    /// Creates, closes, releases and recounts polls, and reads everything.
    Manage,
}

impl Action {
    const ALL: [Self; 4] = [Self::Vote, Self::Relay, Self::Read, Self::Manage];

    /// Its name in a scope.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Relay => "relay",
            Self::Read => "read",
            Self::Manage => "manage",
        }
    }

    /// Whether whoever may do this may do the other, too.
    fn includes(self, other: Self) -> bool {
        self == other || (self == Self::Manage && other == Self::Read)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One scope: an action, and the polls for which it is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    action: Action,
    /// A poll id, or the beginning of poll ids.
    polls: Box<str>,
    is_prefix: bool,
}

impl Scope {
    fn allows(&self, action: Action, poll: &[u8]) -> bool {
        let polls = self.polls.as_bytes();
        // `relay:*` of a relay is compared with every vote. An empty text points nowhere, and where a processor compares no
        // bytes from there by a masked load, as glibc does with AVX-512, it takes 90 ns.
        let matches = || if self.is_prefix { polls.is_empty() || poll.starts_with(polls) } else { poll == polls };
        self.action.includes(action) && matches()
    }

    /// Whether it allows everything that the other allows.
    fn covers(&self, other: &Self) -> bool {
        // Only a beginning covers a beginning.
        (self.is_prefix || !other.is_prefix) && self.allows(other.action, other.polls.as_bytes())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.action, self.polls, if self.is_prefix { "*" } else { "" })
    }
}

/// A text that is no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a scope: expected vote:POLL, relay:POLL, read:POLL or manage:POLL, where POLL is a poll id, or its beginning and *"
)]
pub struct InvalidScope(String);

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        let invalid = || InvalidScope(text.to_owned());
        let (action, polls) = text.split_once(':').ok_or_else(invalid)?;
        let action = Action::ALL.into_iter().find(|known| known.name() == action).ok_or_else(invalid)?;
        let (polls, is_prefix) = polls.strip_suffix('*').map_or((polls, false), |prefix| (prefix, true));
        // Every beginning of an id is an id by itself, except the empty one.
        if !(is_prefix && polls.is_empty()) {
            PollId::new(polls).map_err(|_| invalid())?;
        }
        Ok(Self { action, polls: polls.into(), is_prefix })
    }
}

/// The scopes of a caller. Copies share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scopes(Arc<[Scope]>);

impl Scopes {
    /// Reads a list of scopes.
    ///
    /// # Errors
    ///
    /// The first text that is no scope.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidScope> {
        texts.into_iter().map(str::parse).collect::<Result<_, _>>().map(Self)
    }

    /// The scopes of a token's claim, a text with blanks between (RFC 8693, section 4.2). Scopes of other systems are
    /// left out. `None` if there are too many.
    pub(crate) fn of_claim(text: &str) -> Option<Self> {
        let scopes: Arc<[Scope]> = text.split_ascii_whitespace().filter_map(|scope| scope.parse().ok()).collect();
        (scopes.len() <= SCOPES_MAX).then_some(Self(scopes))
    }

    /// Whether an action is allowed for a poll.
    pub fn allow(&self, action: Action, poll: &[u8]) -> bool {
        self.0.iter().any(|scope| scope.allows(action, poll))
    }

    /// Whether an action is allowed for any poll at all.
    pub fn allow_some(&self, action: Action) -> bool {
        self.0.iter().any(|scope| scope.action.includes(action))
    }

    /// Those of the other scopes that these do not cover, as texts.
    pub(super) fn uncovered(&self, others: &Self) -> Vec<String> {
        let is_covered = |other: &&Scope| self.0.iter().any(|scope| scope.covers(other));
        others.0.iter().filter(|other| !is_covered(other)).map(Scope::to_string).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Scopes {
    /// The form of a token's claim.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            write!(f, "{}{scope}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(text: &str) -> Scopes {
        Scopes::parse(text.split(' ')).unwrap()
    }

    #[test]
    fn a_scope_allows_what_it_says_and_nothing_else() {
        let some = scopes("vote:lunch read:show-* manage:show-1");
        for (action, poll, allowed) in [
            (Action::Vote, "lunch", true),
            (Action::Vote, "lunch2", false),
            (Action::Vote, "lunc", false),
            (Action::Vote, "show-1", false),
            (Action::Relay, "lunch", false),
            (Action::Read, "show-", true),
            (Action::Read, "show-2", true),
            (Action::Read, "show", false),
            (Action::Read, "lunch", false),
            (Action::Manage, "show-1", true),
            (Action::Manage, "show-2", false),
        ] {
            assert_eq!(some.allow(action, poll.as_bytes()), allowed, "{action} {poll}");
        }
        let all = scopes("manage:*");
        assert!(all.allow(Action::Manage, b"x") && all.allow(Action::Read, b"x"));
        assert!(!all.allow(Action::Vote, b"x") && !all.allow(Action::Relay, b"x"), "a manager does not vote");
        assert!(all.allow_some(Action::Read) && !all.allow_some(Action::Vote));
    }

    #[test]
    fn what_is_no_scope_is_refused_or_left_out() {
        for text in ["", "vote", "vote:", "votes:x", "vote:a*b", "vote:**", "vote:a b", "VOTE:x", "vote:\u{e9}", "*"] {
            assert!(Scopes::parse([text]).is_err(), "{text:?}");
        }
        assert!(Scopes::parse(["vote:*", "vote:a", "vote:a*"]).is_ok());
        let claim = Scopes::of_claim(" openid  vote:a profile ").unwrap();
        assert!(claim.len() == 1 && claim.allow(Action::Vote, b"a"));
        assert_eq!(Scopes::of_claim(&"vote:a ".repeat(SCOPES_MAX + 1)), None);
    }

    #[test]
    fn what_is_not_covered_is_named() {
        let most = scopes("vote:show-* read:a manage:b*");
        assert_eq!(most.uncovered(&scopes("vote:show-1 vote:show-1* read:a read:b read:b1* manage:bx")), [""; 0]);
        let more = scopes("vote:* vote:sho* vote:other read:a* relay:show-1 manage:* read:*");
        let named: Vec<String> = more.to_string().split(' ').map(str::to_owned).collect();
        assert_eq!(most.uncovered(&more), named);
    }
}
