//! A poll in a form in which options are found fast.
//!
//! Owns how an option is found by the bytes of its id, which happens once per vote, and whether the poll takes the
//! vote.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use crate::{
    Closing, Poll, PollHasher, PollId, PollSource, Refusal, Timestamp,
    model::{
        poll::check_option_id,
        pseudonym::{PollPseudonyms, PseudonymKeys},
        refusal::NoSuchOption,
        text,
    },
};

/// A poll, and its options in a form that is fast to search.
#[derive(Debug)]
pub struct IndexedPoll {
    poll: Arc<Poll>,
    hasher: PollHasher,
    /// Makes the pseudonyms of the poll's users. Derived for the first vote that needs it.
    pseudonyms: OnceLock<PollPseudonyms>,
    /// For polls with few options of up to 15 bytes each: the bytes and their number. Empty for all other polls.
    short: Vec<u128>,
    /// For polls with many options, or with long ones.
    by_id: HashMap<Arc<str>, u32>,
    /// Options by how they look. Built for the first vote that names no option of the poll, since most polls never get
    /// such a vote.
    by_look: OnceLock<HashMap<String, u32>>,
}

/// Up to this many options are compared one by one.
const OPTIONS_SCANNED_MAX: usize = 32;

impl IndexedPoll {
    /// Indexes a poll.
    pub fn new(poll: Arc<Poll>) -> Self {
        let ids = || poll.options.iter().map(|option| &option.id);
        let short: Option<Vec<u128>> = ids().map(|id| number(id.as_bytes())).collect();
        let (short, by_id) = match short.filter(|short| short.len() <= OPTIONS_SCANNED_MAX) {
            Some(short) => (short, HashMap::new()),
            None => (Vec::new(), ids().cloned().zip(0..).collect()),
        };
        Self {
            hasher: PollHasher::new(&poll.id),
            pseudonyms: OnceLock::new(),
            short,
            by_id,
            by_look: OnceLock::new(),
            poll,
        }
    }

    /// The poll.
    #[inline]
    pub fn poll(&self) -> &Arc<Poll> {
        &self.poll
    }

    /// Whether this is the id of the poll.
    #[inline]
    pub fn is(&self, poll_id: &[u8]) -> bool {
        self.poll.id.as_str().as_bytes() == poll_id
    }

    /// Computes routing hashes of the poll's votes.
    #[inline]
    pub fn hasher(&self) -> &PollHasher {
        &self.hasher
    }

    /// Whether the users of the poll are stored under pseudonyms.
    #[inline]
    pub fn is_pseudonymous(&self) -> bool {
        self.poll.pseudonym_key.is_some()
    }

    /// What makes the pseudonyms of the poll's users, from the keys of this process; `None` if they are stored as they
    /// are. All calls for one poll must bring the same keys, or more.
    ///
    /// # Errors
    ///
    /// If the poll's key is not among them.
    #[inline]
    pub fn pseudonyms(&self, keys: &PseudonymKeys) -> Result<Option<&PollPseudonyms>, Refusal> {
        match (self.poll.pseudonym_key, self.pseudonyms.get()) {
            (None, _) => Ok(None),
            (Some(_), Some(derived)) => Ok(Some(derived)),
            (Some(id), None) => {
                let key = keys.get(id).ok_or_else(|| Refusal::KeyMissing(self.poll.id.clone(), id))?;
                Ok(Some(self.pseudonyms.get_or_init(|| key.for_poll(&self.poll.id))))
            }
        }
    }

    /// Id of the poll.
    #[inline]
    pub fn id(&self) -> &PollId {
        &self.poll.id
    }

    /// The option that a vote names, if the poll takes the vote at this moment.
    ///
    /// # Errors
    ///
    /// Why it does not.
    #[inline]
    pub fn admits(&self, option_id: &[u8], now: Timestamp) -> Result<&Arc<str>, Refusal> {
        let poll = &*self.poll;
        let Some(option) = self.option(option_id) else {
            return Err(self.refuse(option_id));
        };
        if poll.source != PollSource::Ingest {
            Err(Refusal::WrongSource(poll.id.clone()))
        } else if now < poll.opens_at {
            Err(Refusal::NotOpen(poll.id.clone()))
        } else if now >= poll.closes_at || poll.closing != Closing::No {
            Err(Refusal::Closed(poll.id.clone()))
        } else {
            Ok(option)
        }
    }

    /// Why a vote is refused that names no option of the poll.
    #[cold]
    fn refuse(&self, option_id: &[u8]) -> Refusal {
        let option = match check_option_id(option_id) {
            Ok(option) => option,
            Err(invalid) => return invalid.into(),
        };
        let look_alike = self.look_alike(option).cloned();
        let missing = NoSuchOption { poll: self.poll.id.clone(), option: option.into(), look_alike };
        Refusal::NoSuchOption(missing.into())
    }

    /// The option of this id.
    #[inline]
    pub fn option(&self, id: &[u8]) -> Option<&Arc<str>> {
        let at = if self.by_id.is_empty() {
            let id = number(id)?;
            self.short.iter().position(|&known| known == id)?
        } else {
            *self.by_id.get(std::str::from_utf8(id).ok()?)? as usize
        };
        Some(&self.poll.options.get(at)?.id)
    }

    /// The option that looks like an id that the poll does not have. It is named to the client, who may have written
    /// the same letters in other bytes. The cost is about that of rejecting the vote, however many options there are.
    pub fn look_alike(&self, id: &str) -> Option<&Arc<str>> {
        let by_look = self.by_look.get_or_init(|| {
            let looks = self.poll.options.iter().map(|option| text::skeleton(&option.id));
            looks.zip(0..).collect()
        });
        // Plain ASCII looks like itself, and most refused votes hold nothing else.
        let is_plain = id.bytes().all(|byte| byte.is_ascii_graphic());
        let at = *if is_plain { by_look.get(id) } else { by_look.get(&text::skeleton(id)) }?;
        Some(&self.poll.options.get(at as usize)?.id)
    }
}

/// Up to 15 bytes and their number, as one number.
#[inline]
fn number(bytes: &[u8]) -> Option<u128> {
    // Two reads that overlap, since copying a few bytes of unknown number would be a function call.
    let text = match bytes.len() {
        0 => 0,
        1..4 => {
            let at = |at: usize| u128::from(bytes[at]) << (8 * at);
            at(0) | at(bytes.len() / 2) | at(bytes.len() - 1)
        }
        len @ 4..8 => {
            let (first, last) = (bytes.first_chunk()?, bytes.last_chunk()?);
            u128::from(u32::from_le_bytes(*first)) | u128::from(u32::from_le_bytes(*last)) << (8 * (len - 4))
        }
        len @ 8..16 => {
            let (first, last) = (bytes.first_chunk()?, bytes.last_chunk()?);
            u128::from(u64::from_le_bytes(*first)) | u128::from(u64::from_le_bytes(*last)) << (8 * (len - 8))
        }
        _ => return None,
    };
    Some(text | (bytes.len() as u128) << 120)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::PollOption;

    proptest! {
        #[test]
        fn numbers_are_the_bytes(bytes in prop::collection::vec(any::<u8>(), 0..18)) {
            let mut padded = [0; 16];
            let expected = (bytes.len() < 16).then(|| {
                padded[..bytes.len()].copy_from_slice(&bytes);
                padded[15] = bytes.len() as u8;
                u128::from_le_bytes(padded)
            });
            prop_assert_eq!(number(&bytes), expected);
        }

        #[test]
        fn finds_what_a_search_finds(
            ids in prop::collection::btree_set("[a-c]{1,2}|[^\\p{Cc}]{1,20}", 1..50), other in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let options: Vec<_> = ids.iter().map(|id| PollOption { id: id.as_str().into(), title: String::new() }).collect();
            let id = PollId::new("p").unwrap();
            let (from, to) = (Timestamp(0), Timestamp(1));
            let poll = Arc::new(Poll::defined(id, String::new(), options, from, to, PollSource::Ingest, 0).unwrap());
            let index = IndexedPoll::new(poll.clone());
            let plain = |id: &[u8]| poll.options.iter().map(|option| &option.id).find(|known| known.as_bytes() == id);
            for id in ids.iter().map(|id| id.as_bytes()).chain([&other[..], b"a\0", b"", b"a", b"cc"]) {
                prop_assert_eq!(index.option(id), plain(id));
            }
        }
    }

    #[test]
    fn an_id_in_other_bytes_finds_what_it_looks_like() {
        let options = ["caf\u{e9}", "tea"].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
        let (id, from, to) = (PollId::new("p").unwrap(), Timestamp(0), Timestamp(1));
        let poll = Poll::new(id, String::new(), options, from, to, PollSource::Ingest, 0).unwrap();
        let index = IndexedPoll::new(Arc::new(poll));
        let look_alike = |id: &str| index.look_alike(id).map(|id| id.to_string());
        assert_eq!(look_alike("cafe\u{301}"), Some("caf\u{e9}".into()));
        assert_eq!(look_alike(" tea"), Some("tea".into()));
        assert_eq!(look_alike("Tea"), None);
        // It is only a hint: a vote names its option byte by byte.
        assert_eq!(index.option("cafe\u{301}".as_bytes()), None);
    }
}
