//! What was verified before, so that it need not be again.
//!
//! Owns how much of it is remembered, and when. Belongs to one set of rules: other rules start with nothing. Must never hold a
//! token, only its digest; and nothing of one that was not verified.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use quick_cache::{Weighter, sync::Cache};

use super::{caller::Credential, rules::Digest};

/// Memory for credentials that were verified: some 60,000 of usual size.
const CREDENTIALS_BYTES_MAX: u64 = 32 << 20;
/// Number of credentials for which the memory is laid out.
const CREDENTIALS_USUAL: usize = 65_536;
/// Rows of places for those that were seen once, and places of a row: 256 KiB. In rows of one, of 10,000 tokens that come in turns
/// every seventh would always find another one in its place.
const SEEN_ROWS: usize = 16_384;
const SEEN_IN_ROW: usize = 4;
/// Most heads. An issuer has one for each of its keys.
const HEADS_MAX: usize = 64;

/// What is known by one set of rules.
pub(super) struct Known {
    /// Tokens, until they expire.
    credentials: Cache<Digest, Arc<Credential>, ByBytes>,
    /// Parts of the digests of tokens that were seen once.
    seen: Box<[[AtomicU32; SEEN_IN_ROW]]>,
    heads: ArcSwap<Vec<Arc<Head>>>,
}

/// Weighs credentials by their memory.
#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Digest, Arc<Credential>> for ByBytes {
    fn weight(&self, _: &Digest, credential: &Arc<Credential>) -> u64 {
        credential.bytes() as u64
    }
}

/// What the first part of a token says, which all tokens of a key have in common.
pub(super) struct Head {
    /// As it was sent.
    pub(super) text: Box<[u8]>,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<Box<str>>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            credentials: Cache::with_weighter(CREDENTIALS_USUAL, CREDENTIALS_BYTES_MAX, ByBytes),
            seen: (0..SEEN_ROWS).map(|_| Default::default()).collect(),
            heads: ArcSwap::default(),
        }
    }
}

impl Known {
    pub(super) fn credential(&self, digest: &Digest) -> Option<Arc<Credential>> {
        self.credentials.get(digest)
    }

    /// Remembers a credential that was verified; if its signature is a cheap one, from the second time on. Most tokens are sent
    /// once, or over one connection, which remembers them by itself. To remember one costs as much as an HMAC.
    pub(super) fn remember(&self, digest: &Digest, credential: &Arc<Credential>, is_cheap: bool) {
        if !is_cheap || self.was_seen(digest) {
            self.credentials.insert(*digest, credential.clone());
        }
    }

    /// Whether a token was seen before, and not too many others since. From now on it was.
    fn was_seen(&self, digest: &Digest) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        let row = &self.seen[u32::from_be_bytes([a, b, c, d]) as usize % self.seen.len()];
        let part = u32::from_be_bytes([e, f, g, h]);
        if row.iter().any(|place| place.load(Ordering::Relaxed) == part) {
            return true;
        }
        // The oldest one is forgotten. What two threads do to a row at once makes one of their tokens come again.
        row.iter().fold(part, |newer, place| {
            let older = place.load(Ordering::Relaxed);
            place.store(newer, Ordering::Relaxed);
            older
        });
        false
    }

    pub(super) fn head(&self, text: &[u8]) -> Option<Arc<Head>> {
        self.heads.load().iter().find(|head| *head.text == *text).cloned()
    }

    /// Remembers the head of a token that was verified.
    pub(super) fn remember_head(&self, head: &Arc<Head>) {
        let heads = self.heads.load();
        if heads.len() < HEADS_MAX && heads.iter().all(|known| known.text != head.text) {
            // Of two at the same time one may be forgotten. It comes again.
            self.heads.store(Arc::new(heads.iter().chain([head]).cloned().collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{caller::Source, scope::Scopes, verify::digest_of};

    fn credential() -> Arc<Credential> {
        Arc::new(Credential::of(Source::Anonymous, "".into(), Scopes::default()))
    }

    #[test]
    fn a_cheap_signature_is_remembered_from_the_second_time_on_and_a_dear_one_at_once() {
        let (known, digest) = (Known::default(), [7; 32]);
        known.remember(&digest, &credential(), true);
        assert!(known.credential(&digest).is_none());
        // As many others as its row has places.
        let other = |at: u8| {
            let mut other = digest;
            other[7] = 100 + at;
            other
        };
        (0..SEEN_IN_ROW as u8).for_each(|at| known.remember(&other(at), &credential(), true));
        known.remember(&digest, &credential(), true);
        assert!(known.credential(&digest).is_none(), "it was forgotten");
        known.remember(&other(3), &credential(), true);
        known.remember(&digest, &credential(), true);
        assert!(known.credential(&digest).is_some() && known.credential(&other(3)).is_some());
        known.remember(&other(0), &credential(), false);
        assert!(known.credential(&other(0)).is_some());
    }

    #[test]
    fn tokens_that_come_in_turns_are_nearly_all_remembered() {
        let known = Known::default();
        let digests: Vec<_> = (0..10_000_u32).map(|at| digest_of(&at.to_be_bytes())).collect();
        for _ in 0..2 {
            digests.iter().for_each(|digest| known.remember(digest, &credential(), true));
        }
        let remembered = digests.iter().filter(|digest| known.credential(digest).is_some()).count();
        assert!(remembered > 9_900, "{remembered}");
    }

    #[test]
    fn no_more_heads_are_remembered_than_there_is_room_for() {
        let known = Known::default();
        for at in 0..2 * HEADS_MAX {
            let head = Head { text: at.to_string().as_bytes().into(), algorithm: Algorithm::HS256, kid: None };
            known.remember_head(&Arc::new(head));
        }
        assert_eq!(known.heads.load().len(), HEADS_MAX);
        assert!(known.head(b"0").is_some() && known.head(b"63").is_some() && known.head(b"64").is_none());
    }
}
