//! Credentials that count no more, although they are valid by themselves.
//!
//! Owns the file of revocations:
//!
//! ```toml
//! [[revoked]]
//! jti = "4f6b"                                # one token
//!
//! [[revoked]]
//! user = "ada"                                # all tokens of a user that were signed before a moment
//! issued_before = 2026-11-26T20:15:00Z
//! ```
//!
//! Both take `iss`, if only the tokens of one issuer are meant. Must never forget a revocation because the file has a
//! mistake: then the old ones stay. A file that has become empty is one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::mistakes::{Entry, Mistakes, table_of};

/// Most revocations.
const REVOKED_MAX: usize = 200_000;

/// The revocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revoked(Arc<Lists>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Lists {
    tokens: HashSet<(Option<String>, String)>,
    /// Tokens of these users are revoked if they were issued before this moment, in seconds since 1970.
    users: HashMap<(Option<String>, String), i64>,
}

impl Revoked {
    /// Reads the file.
    pub(super) fn read(text: &str) -> Result<Self, Vec<String>> {
        let table = table_of(text).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Mistakes::default();
        let mut file = Entry::new(String::new(), table, &mut mistakes);
        let entries = file.tables("revoked");
        if entries.len() > REVOKED_MAX {
            file.wrong(format_args!("there are {} revocations, the limit is {REVOKED_MAX}", entries.len()));
        }
        file.end();
        let mut lists = Lists::default();
        for (at, table) in entries.into_iter().enumerate() {
            let mut entry = Entry::new(format!("revoked {}", at + 1), table, &mut mistakes);
            let (iss, jti, user) = (entry.text("iss"), entry.text("jti"), entry.text("user"));
            let before = entry.moment("issued_before");
            match (jti, user, before) {
                (Some(jti), None, None) => drop(lists.tokens.insert((iss, jti))),
                (None, Some(user), Some(before)) => {
                    let known = lists.users.entry((iss, user)).or_insert(before);
                    *known = before.max(*known);
                }
                _ => entry.wrong("expected jti, or user and issued_before"),
            }
            entry.end();
        }
        mistakes.end().map(|()| Self(Arc::new(lists)))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.tokens.is_empty() && self.0.users.is_empty()
    }

    /// The issuers that it names.
    pub(super) fn issuers(&self) -> HashSet<&str> {
        let (tokens, users) = (self.0.tokens.iter(), self.0.users.keys());
        tokens.chain(users).filter_map(|(iss, _)| iss.as_deref()).collect()
    }

    /// Whether a token is revoked. A token that does not say when it was issued counts as old.
    pub(super) fn has(&self, iss: &str, jti: Option<&str>, user: Option<&str>, issued_at: Option<u64>) -> bool {
        let lists = &*self.0;
        let of = |name: &str| [(None, name.to_owned()), (Some(iss.to_owned()), name.to_owned())];
        let is_listed =
            !lists.tokens.is_empty() && jti.is_some_and(|jti| of(jti).iter().any(|entry| lists.tokens.contains(entry)));
        let is_old = |before: &i64| issued_at.is_none_or(|at| i64::try_from(at).is_ok_and(|at| at < *before));
        let is_of_user = !lists.users.is_empty()
            && user.is_some_and(|user| of(user).iter().any(|entry| lists.users.get(entry).is_some_and(is_old)));
        is_listed || is_of_user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_users_are_revoked() {
        let revoked = Revoked::read(
            r#"
            [[revoked]]
            jti = "one"
            [[revoked]]
            iss = "https://a"
            jti = "two"
            [[revoked]]
            user = "ada"
            issued_before = 1970-01-01T00:01:40Z
            "#,
        )
        .unwrap();
        assert!(revoked.has("https://b", Some("one"), None, None));
        assert!(
            revoked.has("https://a", Some("two"), None, None) && !revoked.has("https://b", Some("two"), None, None)
        );
        assert!(revoked.has("x", None, Some("ada"), Some(99)) && !revoked.has("x", None, Some("ada"), Some(100)));
        assert!(revoked.has("x", None, Some("ada"), None), "without a moment it counts as old");
        assert!(!revoked.has("x", Some("three"), Some("bob"), Some(1)));
        assert_eq!((revoked.issuers(), revoked.is_empty()), (HashSet::from(["https://a"]), false));
        assert!(Revoked::read("# nothing").unwrap().is_empty());
    }

    #[test]
    fn of_very_many_mistakes_the_first_are_named() {
        let mistakes = Revoked::read(&"[[revoked]]\njti = 1\n".repeat(1_000)).unwrap_err();
        assert_eq!((mistakes.len(), &*mistakes[100]), (101, "and 1900 more"));
        assert!(mistakes[99].starts_with("revoked 50: "), "{}", mistakes[99]);
    }

    #[test]
    fn every_mistake_is_named() {
        let text = "[[revoked]]\nuser = \"ada\"\n[[revoked]]\njti = 1\n[[revoked]]\njti = \"a\"\nnote = \"b\"\n[x]\n";
        let mistakes = Revoked::read(text).unwrap_err();
        assert_eq!(
            mistakes,
            [
                "x is not known",
                "revoked 1: expected jti, or user and issued_before",
                "revoked 2: jti must be a text that is not empty",
                "revoked 2: expected jti, or user and issued_before",
                "revoked 3: note is not known",
            ]
        );
    }
}
