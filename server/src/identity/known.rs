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
/// Number of places for those that were seen once: 256 KiB.
const SEEN: usize = 65_536;
/// Most heads. An issuer has one for each of its keys.
const HEADS_MAX: usize = 64;

/// What is known by one set of rules.
pub(super) struct Known {
    /// Tokens, until they expire.
    credentials: Cache<Digest, Arc<Credential>, ByBytes>,
    /// Parts of the digests of tokens that were seen once.
    seen: Box<[AtomicU32]>,
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
            seen: (0..SEEN).map(|_| AtomicU32::new(0)).collect(),
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
        let place = u32::from_be_bytes([a, b, c, d]) as usize % self.seen.len();
        let part = u32::from_be_bytes([e, f, g, h]);
        self.seen[place].swap(part, Ordering::Relaxed) == part
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
    use crate::identity::{caller::Source, scope::Scopes};

    fn credential() -> Arc<Credential> {
        Arc::new(Credential::of(Source::Anonymous, "".into(), Scopes::default()))
    }

    #[test]
    fn a_cheap_signature_is_remembered_from_the_second_time_on_and_a_dear_one_at_once() {
        let (known, digest) = (Known::default(), [7; 32]);
        known.remember(&digest, &credential(), true);
        assert!(known.credential(&digest).is_none());
        // Another one at the same place.
        let mut other = digest;
        other[7] = 8;
        known.remember(&other, &credential(), true);
        known.remember(&digest, &credential(), true);
        assert!(known.credential(&digest).is_none() && known.credential(&other).is_none());
        known.remember(&digest, &credential(), true);
        assert!(known.credential(&digest).is_some());
        known.remember(&other, &credential(), false);
        assert!(known.credential(&other).is_some());
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
