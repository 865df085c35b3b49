//! The auth file.
//!
//! Owns what it may say. Must never accept a file with a mistake, nor stop at the first one.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jsonwebtoken::Algorithm;
use votestream_core::model::{hex::from_hex, limits::USER_ID_BYTES_MAX};

use super::{
    caller::{Credential, Source as From},
    fetch::JWKS_BYTES_MAX,
    issuer::{Issuer, IssuerRule, Keys, Pace, Source},
    known::Known,
    mistakes::{Entry, Mistakes, table_of},
    revoked::Revoked,
    scope::{Action, SCOPES_MAX, Scopes},
};
use crate::{files::read_file, tls::same_form};

/// Most entries of a kind.
const ENTRIES_MAX: usize = 1_000;
/// Longest namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 64;
/// The SHA-256 of a secret or a token.
pub(super) type Digest = [u8; 32];

/// Everything that decides about a caller.
pub(super) struct Rules {
    /// No two rules of a process have the same number. What a connection remembers belongs to one of them.
    pub(super) version: u64,
    pub(super) issuers: Vec<Arc<Issuer>>,
    /// How often their URLs are asked.
    pub(super) pace: Pace,
    pub(super) keys: HashMap<Digest, Arc<KeyRule>>,
    pub(super) certificates: Vec<Arc<CertificateRule>>,
    /// What callers without a credential are.
    pub(super) anonymous: Option<Arc<Credential>>,
    pub(super) revoked: Revoked,
    /// Keys that take the place of others once these rules hold. The issuers stay the same, so that calls go on.
    pub(super) new_keys: Vec<(Arc<Issuer>, Keys)>,
    /// What was verified by these rules.
    pub(super) known: Known,
}

/// A `[[key]]`: a secret of a tool or a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRule {
    pub(super) id: String,
    pub(super) sha256: Digest,
    pub(super) scopes: Scopes,
    pub(super) namespace: Arc<str>,
}

/// A `[[certificate]]` of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CertificateRule {
    /// A subject alternative name, in the form of [`crate::tls::same_form`].
    pub(super) san: String,
    pub(super) scopes: Scopes,
    pub(super) namespace: Arc<str>,
}

impl Rules {
    /// Reads the auth file. Parts that are as they were before stay the same objects, so that whoever calls by them goes
    /// on.
    pub(super) fn read(text: &str, path: &Path, revoked: Revoked, before: Option<&Self>) -> Result<Self, Vec<String>> {
        let table = table_of(text).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Mistakes::default();
        let mut file = Entry::new(String::new(), table, &mut mistakes);
        let (issuers, keys, certificates) = (file.tables("issuer"), file.tables("key"), file.tables("certificate"));
        let anonymous = file.table("anonymous");
        for (name, count) in [("issuer", issuers.len()), ("key", keys.len()), ("certificate", certificates.len())] {
            if count > ENTRIES_MAX {
                file.wrong(format_args!("{name}: there are {count} entries, the limit is {ENTRIES_MAX}"));
            }
        }
        if issuers.is_empty() && keys.is_empty() && certificates.is_empty() && anonymous.is_none() {
            file.wrong("it lets nobody in: expected [[issuer]], [[key]], [[certificate]] or [anonymous]");
        }
        file.end();
        let numbered = |name: &str, at: usize| format!("{name} {}", at + 1);
        let folder = path.parent().unwrap_or(Path::new(""));
        let issuers: Vec<_> = issuers
            .into_iter()
            .enumerate()
            .filter_map(|(at, table)| {
                issuer(Entry::new(numbered("issuer", at), table, &mut mistakes), folder, before.is_some())
            })
            .collect();
        let keys: Vec<_> = keys
            .into_iter()
            .enumerate()
            .filter_map(|(at, table)| key(Entry::new(numbered("key", at), table, &mut mistakes)))
            .collect();
        let certificates: Vec<_> = certificates
            .into_iter()
            .enumerate()
            .filter_map(|(at, table)| certificate(Entry::new(numbered("certificate", at), table, &mut mistakes)))
            .collect();
        let anonymous = anonymous.and_then(|table| anonymous_of(Entry::new("anonymous".into(), table, &mut mistakes)));
        unique(&mut mistakes, "issuer", "iss", issuers.iter().map(|(rule, _)| &rule.iss));
        unique(&mut mistakes, "key", "id", keys.iter().map(|rule| &rule.id));
        unique(&mut mistakes, "key", "sha256", keys.iter().map(|rule| &rule.sha256));
        unique(&mut mistakes, "certificate", "san", certificates.iter().map(|rule| &rule.san));
        check_namespaces(&mut mistakes, &issuers, &keys, &certificates);
        if let Some(before) = before {
            before.check_same_namespaces(&mut mistakes, &issuers, &keys, &certificates);
        }
        mistakes.end()?;
        let mut new_keys = Vec::new();
        let same_issuer = |(rule, keys): (IssuerRule, Option<Keys>)| {
            let old = || before.into_iter().flat_map(|rules| &rules.issuers);
            if let Some(known) = old().find(|old| old.rule == rule) {
                new_keys.extend(keys.filter(|keys| !known.has_keys(keys)).map(|keys| (known.clone(), keys)));
                return known.clone();
            }
            // If only the rights have changed, the keys that the URL had serve until it has answered.
            let same_keys = old().find(|old| old.rule.source == rule.source && old.rule.algorithms == rule.algorithms);
            let keys = keys.or_else(|| same_keys.map(|old| old.keys()));
            Arc::new(Issuer::new(rule, keys.unwrap_or_default()))
        };
        let same_key = |rule: KeyRule| {
            let known = before.and_then(|rules| rules.keys.get(&rule.sha256)).filter(|old| ***old == rule);
            (rule.sha256, known.cloned().unwrap_or_else(|| Arc::new(rule)))
        };
        let same_certificate = |rule: CertificateRule| {
            let mut known = before.into_iter().flat_map(|rules| &rules.certificates);
            known.find(|old| ***old == rule).cloned().unwrap_or_else(|| Arc::new(rule))
        };
        Ok(Self {
            version: version(),
            issuers: issuers.into_iter().map(same_issuer).collect(),
            new_keys,
            pace: before.map_or_else(Pace::default, |rules| rules.pace),
            keys: keys.into_iter().map(same_key).collect(),
            certificates: certificates.into_iter().map(same_certificate).collect(),
            anonymous: anonymous.map(|scopes| Arc::new(Credential::of(From::Anonymous, "".into(), scopes))),
            revoked,
            known: Known::default(),
        })
    }

    /// An entry keeps its namespace while the process runs: with another one its users would be other people in polls that are
    /// open, and could vote again.
    fn check_same_namespaces(
        &self,
        mistakes: &mut Mistakes,
        issuers: &[(IssuerRule, Option<Keys>)],
        keys: &[KeyRule],
        certificates: &[CertificateRule],
    ) {
        let mut check = |name: String, old: Option<&Arc<str>>, new: &Arc<str>| {
            if old.is_some_and(|old| old != new) {
                mistakes.add(
                    &name,
                    "namespace has changed, and its users would be other people in polls that are open: restart the services when \
                     none is, or give a new entry the new namespace",
                );
            }
        };
        for (rule, _) in issuers {
            let old = self.issuers.iter().find(|old| old.rule.iss == rule.iss).map(|old| &old.rule.namespace);
            check(format!("issuer {}", rule.iss), old, &rule.namespace);
        }
        for rule in keys {
            let old = self.keys.values().find(|old| old.id == rule.id).map(|old| &old.namespace);
            check(format!("key {}", rule.id), old, &rule.namespace);
        }
        for rule in certificates {
            let old = self.certificates.iter().find(|old| old.san == rule.san).map(|old| &old.namespace);
            check(format!("certificate {}", rule.san), old, &rule.namespace);
        }
    }

    /// Whether these rules, read again, say what those before did.
    pub(super) fn is_like(&self, before: &Self) -> bool {
        let same_keys = |(digest, rule): (&Digest, &Arc<KeyRule>)| {
            before.keys.get(digest).is_some_and(|old| Arc::ptr_eq(old, rule))
        };
        let scopes = |anonymous: &Option<Arc<Credential>>| anonymous.as_ref().map(|anonymous| anonymous.scopes.clone());
        self.new_keys.is_empty()
            && are_same(&self.issuers, &before.issuers)
            && are_same(&self.certificates, &before.certificates)
            && self.keys.len() == before.keys.len()
            && self.keys.iter().all(same_keys)
            && scopes(&self.anonymous) == scopes(&before.anonymous)
            && self.revoked == before.revoked
    }

    /// Gives the issuers their new keys. Must be called when these rules begin to hold.
    pub(super) fn install_keys(&mut self) {
        self.new_keys.drain(..).for_each(|(issuer, keys)| issuer.set_keys(keys));
    }

    /// The same rules, with nothing remembered: a key that checked tokens before has been withdrawn.
    pub(super) fn renewed(&self) -> Self {
        Self {
            version: version(),
            issuers: self.issuers.clone(),
            new_keys: Vec::new(),
            pace: self.pace,
            keys: self.keys.clone(),
            certificates: self.certificates.clone(),
            anonymous: self.anonymous.clone(),
            revoked: self.revoked.clone(),
            known: Known::default(),
        }
    }
}

fn are_same<T>(these: &[Arc<T>], those: &[Arc<T>]) -> bool {
    these.len() == those.len() && these.iter().zip(those).all(|(this, that)| Arc::ptr_eq(this, that))
}

/// A number that no other rules have.
fn version() -> u64 {
    static VERSIONS: AtomicU64 = AtomicU64::new(0);
    VERSIONS.fetch_add(1, Ordering::Relaxed)
}

/// Reports values that two entries have.
fn unique<'a, T: Eq + std::hash::Hash + 'a>(
    mistakes: &mut Mistakes,
    name: &str,
    field: &str,
    values: impl Iterator<Item = &'a T>,
) {
    let mut seen = HashSet::new();
    for (at, value) in values.enumerate() {
        if !seen.insert(value) {
            mistakes.add(&format!("{name} {}", at + 1), format_args!("another {name} has the same {field}"));
        }
    }
}

/// A user of one issuer is not the user of the same name of another. So either all who can vote have a namespace, or
/// none has, and then there is only one issuer.
fn check_namespaces(
    mistakes: &mut Mistakes,
    issuers: &[(IssuerRule, Option<Keys>)],
    keys: &[KeyRule],
    certificates: &[CertificateRule],
) {
    let voting = |scopes: &Scopes| scopes.allow_some(Action::Vote) || scopes.allow_some(Action::Relay);
    let voting_issuers = issuers.iter().filter(|(rule, _)| voting(&rule.scopes)).count();
    let all = issuers
        .iter()
        .map(|(rule, _)| (format!("issuer {}", rule.iss), &rule.scopes, &rule.namespace))
        .chain(keys.iter().map(|rule| (format!("key {}", rule.id), &rule.scopes, &rule.namespace)))
        .chain(certificates.iter().map(|rule| (format!("certificate {}", rule.san), &rule.scopes, &rule.namespace)));
    let voting: Vec<_> = all.filter(|(_, scopes, _)| voting(scopes)).collect();
    let without: Vec<_> = voting.iter().filter(|(_, _, namespace)| namespace.is_empty()).collect();
    if without.len() < voting.len() {
        for (name, ..) in without {
            mistakes.add(name, "namespace is missing: either all entries that can vote have one, or none has");
        }
    } else if voting_issuers > 1 {
        mistakes.add(
            "issuer",
            "two issuers whose tokens can vote need a namespace each: user 1 of one is not user 1 of the other",
        );
    }
}

/// The scopes of an entry. Voters are named by tokens, so other entries cannot have the action `vote`.
fn scopes(entry: &mut Entry<'_>, names_voters: bool) -> Option<Scopes> {
    let texts = entry.list("scopes")?;
    if texts.len() > SCOPES_MAX {
        entry.wrong(format_args!("scopes has {} entries, the limit is {SCOPES_MAX}", texts.len()));
        return None;
    }
    for text in &texts {
        if let Err(invalid) = Scopes::parse([text.as_str()]) {
            entry.wrong(invalid);
        } else if !names_voters && text.starts_with("vote:") {
            entry.wrong(format_args!(
                "{text:?} needs a token that names its voter; whoever votes for others needs relay:"
            ));
        }
    }
    Scopes::parse(texts.iter().map(String::as_str)).ok()
}

fn namespace(entry: &mut Entry<'_>) -> Arc<str> {
    let namespace = entry.text("namespace").unwrap_or_default();
    if namespace.len() > NAMESPACE_BYTES_MAX || namespace.contains(char::is_control) {
        entry.wrong(format_args!("namespace must have at most {NAMESPACE_BYTES_MAX} bytes and no control characters"));
    }
    namespace.into()
}

/// `may_be_empty`: whoever withdraws an issuer's last key has to be able to do so while the process runs.
fn issuer(mut entry: Entry<'_>, folder: &Path, may_be_empty: bool) -> Option<(IssuerRule, Option<Keys>)> {
    let iss = entry.required("iss");
    let audiences = entry.list("aud");
    let algorithms = algorithms(&mut entry);
    let source = source(&mut entry, folder);
    let user_claim = entry.text("user").unwrap_or_else(|| "sub".to_owned());
    let scopes = scopes(&mut entry, true);
    let namespace = namespace(&mut entry);
    let mut keys = None;
    if let (Some(source), Some(algorithms)) = (&source, &algorithms) {
        match source {
            Source::Url(_) if algorithms.iter().any(|algorithm| format!("{algorithm:?}").starts_with("HS")) => {
                entry.wrong(
                    "algorithms: HS256 and its like need keys from a file, since whoever reads the keys can sign",
                );
            }
            Source::Url(_) => {}
            Source::File(path) => match read_keys(path, algorithms, may_be_empty) {
                Ok(read) => keys = Some(read),
                Err(reason) => entry.wrong(format_args!("keys: {}: {reason}", path.display())),
            },
        }
    }
    entry.end();
    let rule = IssuerRule {
        iss: iss?,
        audiences: audiences?,
        source: source?,
        algorithms: algorithms?,
        user_claim,
        scopes: scopes?,
        namespace,
    };
    Some((rule, keys))
}

/// Reads the keys of a file.
fn read_keys(path: &Path, algorithms: &[Algorithm], may_be_empty: bool) -> Result<Keys, String> {
    let json = read_file(path, JWKS_BYTES_MAX).map_err(|error| error.to_string())?;
    let (keys, wrong) = Keys::read(&json, algorithms)?;
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    if keys.is_empty() {
        let reason = "it has no key for any of the issuer's algorithms";
        if !may_be_empty {
            return Err(reason.into());
        }
        tracing::warn!(file = %path.display(), reason, "no token of this issuer counts any more");
    }
    Ok(keys)
}

fn algorithms(entry: &mut Entry<'_>) -> Option<Vec<Algorithm>> {
    let names = entry.list("algorithms")?;
    let mut algorithms = Vec::new();
    for name in &names {
        match name.parse::<Algorithm>() {
            Ok(algorithm) => algorithms.push(algorithm),
            Err(_) => {
                entry.wrong(format_args!("algorithms: {name:?} is not known: expected ES256, RS256, EdDSA or the like"))
            }
        }
    }
    (algorithms.len() == names.len()).then_some(algorithms)
}

fn source(entry: &mut Entry<'_>, folder: &Path) -> Option<Source> {
    let text = entry.required("keys")?;
    if !text.contains("://") {
        let path = PathBuf::from(text);
        return Some(Source::File(if path.is_absolute() { path } else { folder.join(path) }));
    }
    match text.parse() {
        Ok(url) => Some(Source::Url(url)),
        Err(reason) => {
            entry.wrong(format_args!("keys: {reason}"));
            None
        }
    }
}

fn key(mut entry: Entry<'_>) -> Option<KeyRule> {
    let id = entry.required("id");
    let sha256 = entry.required("sha256").and_then(|hex| {
        let digest = from_hex(&hex.to_ascii_lowercase());
        if digest.is_none() {
            entry.wrong("sha256 must be the SHA-256 of the secret: 64 hex digits, not the secret itself");
        }
        digest
    });
    let scopes = scopes(&mut entry, false);
    let namespace = namespace(&mut entry);
    entry.end();
    Some(KeyRule { id: id?, sha256: sha256?, scopes: scopes?, namespace })
}

/// How tools call the kinds of names. None is the scheme of a URI.
const SAN_KINDS: [&str; 5] = ["DNS", "URI", "IP", "email", "othername"];

fn certificate(mut entry: Entry<'_>) -> Option<CertificateRule> {
    let san = entry.required("san");
    let scopes = scopes(&mut entry, false);
    let namespace = namespace(&mut entry);
    let is_name = |san: &String| {
        let plain = san.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*');
        // As tools print the kind of a name before it.
        let kind = san.split_once(':').map_or("", |(kind, _)| kind);
        let has_kind = SAN_KINDS.iter().any(|known| known.eq_ignore_ascii_case(kind));
        let is_mail = san.contains('@') && !san.contains(':');
        let is_address = san.parse::<std::net::IpAddr>().is_ok();
        plain && !has_kind && !is_mail && !is_address && !san.ends_with('.') && san.len() <= USER_ID_BYTES_MAX
    };
    if san.as_ref().is_some_and(|san| !is_name(san)) {
        entry.wrong(
            "san must be one DNS name or URI: without its kind before it, wildcards, blanks or a dot at its end, and no address",
        );
    }
    entry.end();
    Some(CertificateRule { san: same_form(&san?), scopes: scopes?, namespace })
}

fn anonymous_of(mut entry: Entry<'_>) -> Option<Scopes> {
    let scopes = scopes(&mut entry, false);
    entry.end();
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str =
        r#"{"keys": [{"kty": "oct", "kid": "one", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}]}"#;

    fn read(text: &str) -> Result<Rules, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("keys.json"), KEYS).unwrap();
        Rules::read(text, &dir.path().join("auth.toml"), Revoked::default(), None)
    }

    fn issuer(iss: &str, more: &str) -> String {
        format!(
            "[[issuer]]\niss = \"{iss}\"\naud = \"a\"\nkeys = \"keys.json\"\nalgorithms = [\"HS256\"]\nscopes = [\"vote:*\"]\n{more}\n"
        )
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = r#"
            anonymus = true

            [[issuer]]
            iss = ""
            keys = "http://login.example/jwks.json"
            algorithms = ["ES256", "none"]
            user = 7
            scopes = ["vote"]
            algoritms = "x"

            [[issuer]]
            iss = "https://login.example"
            aud = []
            keys = "https://login.example/jwks.json"
            algorithms = "HS256"
            scopes = "read:*"

            [[issuer]]
            iss = "https://other.example"
            aud = ["votestream"]
            keys = "missing.json"
            algorithms = ["ES256"]
            scopes = ["read:*"]

            [[key]]
            id = "relay"
            sha256 = "not the secret itself"
            scopes = ["vote:p", "relay:p"]

            [[certificate]]
            san = "*.example"
            scopes = ["relay:*"]

            [[certificate]]
            san = "dns:relay.example"
            scopes = ["relay:*"]

            [[certificate]]
            san = "ada@relay.example"
            scopes = ["relay:*"]

            [anonymous]
            scopes = ["vote:*"]
        "#;
        let mistakes = read(text).err().unwrap();
        let expected = [
            "anonymus is not known",
            "issuer 1: iss must be a text",
            "issuer 1: aud is missing",
            "issuer 1: algorithms: \"none\" is not known",
            "issuer 1: keys: \"http://login.example/jwks.json\" must be an https:// URL",
            "issuer 1: user must be a text",
            "issuer 1: \"vote\" is not a scope",
            "issuer 1: algoritms is not known",
            "issuer 2: aud must be a list",
            "issuer 2: algorithms: HS256 and its like need keys from a file",
            "issuer 3: keys: ",
            "key 1: sha256 must be the SHA-256",
            "key 1: \"vote:p\" needs a token",
            "certificate 1: san must be one DNS name or URI",
            "certificate 2: san must be one DNS name or URI",
            "certificate 3: san must be one DNS name or URI",
            "anonymous: \"vote:*\" needs a token",
        ];
        for words in expected {
            assert!(mistakes.iter().any(|mistake| mistake.starts_with(words)), "{words:?} in {mistakes:#?}");
        }
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    }

    #[test]
    fn users_of_two_issuers_are_kept_apart() {
        let key = |more: &str| {
            format!("[[key]]\nid = \"k\"\nsha256 = \"{}\"\nscopes = [\"relay:*\"]\n{more}\n", "a".repeat(64))
        };
        let namespace = "namespace = \"n\"";
        for (text, good) in [
            (issuer("one", ""), true),
            (issuer("one", "") + &key(""), true),
            (issuer("one", "") + &issuer("two", ""), false),
            (issuer("one", namespace) + &issuer("two", ""), false),
            (issuer("one", namespace) + &issuer("two", "namespace = \"m\""), true),
            (issuer("one", namespace) + &issuer("two", namespace), true),
            (issuer("one", namespace) + &key(""), false),
            (issuer("one", namespace) + &key(namespace), true),
            (issuer("one", "") + &issuer("one", ""), false),
            (String::new(), false),
            ("[anonymous]\nscopes = [\"read:*\"]".into(), true),
        ] {
            assert_eq!(read(&text).is_ok(), good, "{text}: {:?}", read(&text).err());
        }
    }

    #[test]
    fn keys_that_can_be_guessed_are_refused() {
        let read = |k: &str, more: &str| {
            let dir = tempfile::tempdir().unwrap();
            let keys = format!(r#"{{"keys": [{{"kty": "oct", "kid": "one", "k": "{k}"}}{more}]}}"#);
            std::fs::write(dir.path().join("keys.json"), keys).unwrap();
            Rules::read(&issuer("one", ""), &dir.path().join("auth.toml"), Revoked::default(), None).err()
        };
        let good = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA";
        assert_eq!(read(good, ""), None);
        for (k, more, words) in [
            ("", "", "its secret has 0 bytes"),
            ("QQ", "", "its secret has 1 bytes"),
            (good, &format!(r#", {{"kty": "oct", "kid": "one", "k": "{good}"}}"#)[..], "another key has the same kid"),
        ] {
            let mistakes = read(k, more).unwrap_or_default();
            assert!(mistakes.len() == 1 && mistakes[0].contains(words), "{words}: {mistakes:?}");
        }
    }

    #[test]
    fn parts_that_did_not_change_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("keys.json"), KEYS).unwrap();
        let path = dir.path().join("auth.toml");
        let first = Rules::read(&issuer("one", "namespace = \"n\""), &path, Revoked::default(), None).unwrap();
        let two = issuer("one", "namespace = \"n\"") + &issuer("two", "namespace = \"m\"");
        let second = Rules::read(&two, &path, Revoked::default(), Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&first.issuers[0], &second.issuers[0]) && second.version != first.version);
        let moved = issuer("one", "namespace = \"other\"");
        let mistakes = Rules::read(&moved, &path, Revoked::default(), Some(&second)).err().unwrap();
        assert!(mistakes.len() == 1 && mistakes[0].starts_with("issuer one: namespace has changed"), "{mistakes:?}");
        let other = issuer("one", "namespace = \"n\"").replace("HS256", "HS512");
        let third = Rules::read(&other, &path, Revoked::default(), Some(&second)).unwrap();
        assert!(!Arc::ptr_eq(&first.issuers[0], &third.issuers[0]));
    }
}
