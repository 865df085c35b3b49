//! Pseudonyms: what is stored of a user instead of their id, and the keys that make them.
//!
//! Owns how a pseudonym is computed, and how keys and their ids are written. Must never change: under another function
//! one person would have two votes. Must never show a key, whatever is printed.
//!
//! A pseudonym is a UUID of version 8 that holds SipHash-2-4-128(k, namespace ‖ 0 ‖ user), where k is derived from a key
//! and the id of the poll (HKDF-SHA256). So one person has other pseudonyms in other polls, and nobody without the key
//! can tell whose they are, or choose ids that all go to one shard.

use std::{collections::HashSet, fmt, hash::Hasher, str::FromStr, sync::Arc};

use ring::hkdf;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::{
    PollId,
    model::{
        hex::{from_hex, to_hex},
        user_id::UUID_TEXT_BYTES,
    },
};

/// Length of a key, in bytes.
pub const KEY_BYTES: usize = 32;
/// Most keys of a process. Every rotation adds one, and polls live for a year at most.
pub const KEYS_MAX: usize = 64;

/// What keeps our derivations apart from others of the same key.
const SALT: &[u8] = b"votestream pseudonyms 1";
/// What is derived from a key.
const KEY_ID: &[u8] = b"key id";
const POLL: &[u8] = b"poll\0";

/// Id of a key. It is derived from the key, so two keys never have the same one by mistake, and it says nothing about
/// the key. Written as 16 hex digits in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// A text is not the id of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key is 16 hex digits in lower case")]
pub struct NoKeyId;

impl FromStr for KeyId {
    type Err = NoKeyId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self).ok_or(NoKeyId)
    }
}

/// A secret of 32 random bytes.
#[derive(Clone)]
pub struct PseudonymKey([u8; KEY_BYTES]);

/// Says which key it is, and not what it is.
impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PseudonymKey({})", self.id())
    }
}

impl PseudonymKey {
    /// The key of these bytes, which must be random.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// A key as it is written in a file: 64 hex digits in lower case. `None` if the text is no key.
    pub fn from_text(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }

    /// The key as text, for a file that only its owner may read.
    pub fn to_secret_text(&self) -> String {
        to_hex(&self.0)
    }

    /// Id of the key.
    pub fn id(&self) -> KeyId {
        KeyId(self.derive(&[KEY_ID]))
    }

    /// What makes the pseudonyms of one poll.
    pub fn for_poll(&self, poll: &PollId) -> PollPseudonyms {
        PollPseudonyms(SipHasher24::new_with_key(&self.derive(&[POLL, poll.as_str().as_bytes()])))
    }

    fn derive<const N: usize>(&self, label: &[&[u8]]) -> [u8; N] {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut derived = [0; N];
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&self.0);
        let filled = prk.expand(label, Length(N)).and_then(|key| key.fill(&mut derived));
        // It fails for more than 8,160 bytes.
        filled.expect("HKDF gives this many bytes");
        derived
    }
}

/// Makes the pseudonyms of one poll.
#[derive(Clone)]
pub struct PollPseudonyms(SipHasher24);

/// Says nothing: the hasher holds the derived key.
impl fmt::Debug for PollPseudonyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PollPseudonyms")
    }
}

impl PollPseudonyms {
    /// The pseudonym of a user: the bytes of a UUID. The empty namespace is the default one. A user id has no control
    /// character, so the zero before it says where it begins, whatever the namespace is.
    #[inline]
    pub fn of(&self, namespace: &str, user: &str) -> [u8; 16] {
        // Hashing one contiguous slice is faster than hashing parts, and nearly all ids fit into a small one.
        const JOINED: usize = 64;
        let (namespace, user) = (namespace.as_bytes(), user.as_bytes());
        let len = namespace.len() + 1 + user.len();
        let hash = if let (true, Ok(user)) = (namespace.is_empty(), user.try_into()) {
            self.0.hash(&after_zero(user))
        } else if len <= JOINED {
            let mut bytes = [0; JOINED];
            bytes[..namespace.len()].copy_from_slice(namespace);
            bytes[namespace.len() + 1..len].copy_from_slice(user);
            self.0.hash(&bytes[..len])
        } else {
            let mut hasher = self.0;
            hasher.write(namespace);
            hasher.write(&[0]);
            hasher.write(user);
            hasher.finish128()
        };
        // RFC 9562: version 8 is for values of one's own making. The bits are set before the bytes are written: one of them
        // changed in memory would be waited for.
        let first = hash.h1 & !(0xf0 << 48) | 0x80 << 48;
        let second = hash.h2 & !0xc0 | 0x80;
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&first.to_le_bytes());
        uuid[8..].copy_from_slice(&second.to_le_bytes());
        uuid
    }
}

/// A zero, and the text of a UUID after it. Most user ids are UUIDs.
///
/// Every eight bytes are written as the hash reads them. Where a copy is read in other pieces than it was written in, the
/// processor waits until it has reached its cache, which takes half as long as the hash.
#[inline(always)]
fn after_zero(user: &[u8; UUID_TEXT_BYTES]) -> [u8; UUID_TEXT_BYTES + 1] {
    let mut bytes = [0; UUID_TEXT_BYTES + 1];
    bytes[1..8].copy_from_slice(&user[..7]);
    for at in [8, 16, 24] {
        bytes[at..at + 8].copy_from_slice(&user[at - 1..at + 7]);
    }
    bytes[32..].copy_from_slice(&user[31..]);
    bytes
}

/// The keys that a process has. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PseudonymKeys {
    keys: Arc<[(KeyId, PseudonymKey)]>,
    active: Option<KeyId>,
}

impl PseudonymKeys {
    /// These keys, of which new polls get the first.
    pub fn new(keys: impl IntoIterator<Item = PseudonymKey>) -> Self {
        let keys: Arc<[_]> = keys.into_iter().map(|key| (key.id(), key)).collect();
        Self { active: keys.first().map(|(id, _)| *id), keys }
    }

    /// The same keys and those of `others`, which new polls do not get.
    #[must_use]
    pub fn with_others(self, others: &Self) -> Self {
        let more = others.keys.iter().filter(|(id, _)| self.get(*id).is_none());
        Self { keys: self.keys.iter().chain(more).cloned().collect(), ..self }
    }

    /// The same keys, of which new polls get none.
    #[must_use]
    pub fn without_active(self) -> Self {
        Self { active: None, ..self }
    }

    /// Reads the text of a file: a key a line, the first one for new polls. Empty lines and those that start with `#`
    /// are left out.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, without a word of the text.
    pub fn from_text(text: &str) -> Result<Self, Vec<String>> {
        let (mut keys, mut mistakes, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for (at, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match PseudonymKey::from_text(line) {
                None => {
                    mistakes.push(format!("line {} is not a key of {} hex digits in lower case", at + 1, 2 * KEY_BYTES))
                }
                Some(key) if !seen.insert(key.id()) => mistakes.push(format!("line {} repeats a key", at + 1)),
                Some(key) => keys.push(key),
            }
        }
        if keys.is_empty() && mistakes.is_empty() {
            mistakes.push("it holds no key".to_owned());
        }
        if keys.len() > KEYS_MAX {
            mistakes.push(format!("it holds {} keys, the limit is {KEYS_MAX}", keys.len()));
        }
        if mistakes.is_empty() { Ok(Self::new(keys)) } else { Err(mistakes) }
    }

    /// Id of the key that new polls get; `None` if their user ids are stored as they are.
    pub fn active(&self) -> Option<KeyId> {
        self.active
    }

    /// The key of this id.
    pub fn get(&self, id: KeyId) -> Option<&PseudonymKey> {
        self.keys.iter().find(|(known, _)| *known == id).map(|(_, key)| key)
    }

    /// Ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|(id, _)| *id)
    }
}

/// What a process logs at its start: which key new polls get, and which others it has.
impl fmt::Display for PseudonymKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.active {
            Some(active) => write!(f, "new polls get the key {active}")?,
            None => f.write_str("none for new polls, whose user ids are stored as they are")?,
        }
        for id in self.ids().filter(|id| Some(*id) != self.active) {
            write!(f, "; also {id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{UserId, model::user_id::uuid_text};

    fn key(byte: u8) -> PseudonymKey {
        PseudonymKey::new([byte; KEY_BYTES])
    }

    fn poll(id: &str) -> PollId {
        PollId::new(id).unwrap()
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        for id in [KeyId([0; 8]), KeyId([0, 1, 2, 0x7f, 0x80, 0xab, 0xcd, 0xef]), KeyId([255; 8])] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "0", "+123456789abcdef", "00000000000000000", "0123456789ABCDEF", "0123456789abcdeg", "ü"] {
            assert_eq!(text.parse::<KeyId>(), Err(NoKeyId), "{text}");
        }
    }

    /// The vectors of SipHash's authors, for the key 00 01 … 0f: one zero byte, which is the empty user of the empty
    /// namespace, and 00 01 … 0e, which is neither but has a zero in front as well.
    #[test]
    fn the_hash_is_siphash_2_4_128() {
        let pseudonyms = PollPseudonyms(SipHasher24::new_with_key(&std::array::from_fn(|at| at as u8)));
        let of = |user: &str| u128::from_be_bytes(pseudonyms.of("", user));
        let uuid = |hash: u128| hash & !(0xf << 76 | 0xc << 60) | 8 << 76 | 8 << 60;
        assert_eq!(of(""), uuid(0xda87_c1d8_6b99_af44_3476_5911_9b22_fc45));
        let user: String = (1..15).map(char::from).collect();
        assert_eq!(of(&user), uuid(0x5493_e999_33b0_a811_7e08_ec0f_97cf_c3d9));
    }

    /// What is stored must be found for ever.
    #[test]
    fn pseudonyms_never_change() {
        let of = |namespace, user| {
            let uuid = key(7).for_poll(&poll("lunch")).of(namespace, user);
            String::from_utf8(uuid_text(uuid).to_vec()).unwrap()
        };
        let long = "x".repeat(256);
        let known = [of("", "ada"), of("a", "ada"), of("", "9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d"), of("ns", &long)];
        assert_eq!(known, PINNED);
        assert_eq!(key(7).id().to_string(), PINNED_ID);
    }

    /// Computed by another program as well, from the definitions of HKDF and SipHash.
    const PINNED: [&str; 4] = [
        "04fa0766-1fef-8e7f-9d7e-cdbbb5892e13",
        "7bfbf920-daae-8f34-9609-db098b14c0d3",
        "cb3a68ff-32f0-8410-aab8-e0e92bc70c73",
        "f235100d-ed65-8f05-96ee-c1aad05f2108",
    ];
    const PINNED_ID: &str = "a62c80ca34e15f35";

    proptest! {
        #[test]
        fn one_person_has_one_pseudonym_and_others_have_others(
            namespaces in prop::collection::vec("[^\\p{Cc}]{0,40}", 2), users in prop::collection::vec("[^\\p{Cc}]{1,80}", 2),
            polls in prop::collection::vec("[a-z]{1,8}", 2), keys in prop::collection::vec(any::<u8>(), 2),
        ) {
            let of = |at: [usize; 4]| {
                key(keys[at[0]]).for_poll(&poll(&polls[at[1]])).of(&namespaces[at[2]], &users[at[3]])
            };
            let same = |at: [usize; 4]| {
                (at[0] == 0 || keys[0] == keys[1]) && (at[1] == 0 || polls[0] == polls[1])
                    && (at[2] == 0 || namespaces[0] == namespaces[1]) && (at[3] == 0 || users[0] == users[1])
            };
            for case in 0..16 {
                let at = std::array::from_fn(|bit| case >> bit & 1);
                prop_assert_eq!(of([0; 4]) == of(at), same(at), "{:?}", at);
            }
            let uuid = of([0; 4]);
            prop_assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
            let text = uuid_text(uuid);
            prop_assert_eq!(UserId::check(&text), Ok(UserId::Uuid { prefix: "", uuid }));
        }

        #[test]
        fn a_namespace_is_no_part_of_a_user(text in "[^\\p{Cc}]{2,90}", cut in 1..90_usize) {
            let cut = text.char_indices().map(|(at, _)| at).rfind(|at| *at > 0 && *at <= cut);
            let pseudonyms = key(1).for_poll(&poll("p"));
            if let Some((namespace, user)) = cut.map(|at| text.split_at(at)) {
                prop_assert_ne!(pseudonyms.of(namespace, user), pseudonyms.of("", &text));
                let exchanged = pseudonyms.of(user, namespace);
                prop_assert_eq!(pseudonyms.of(namespace, user) == exchanged, namespace == user);
            }
        }
    }

    #[test]
    fn a_file_has_its_active_key_first() {
        let text = |byte: u8| key(byte).to_secret_text();
        let keys = PseudonymKeys::from_text(&format!("# made today\n\n {} \r\n{}\n", text(1), text(2))).unwrap();
        assert_eq!((keys.active(), keys.ids().count()), (Some(key(1).id()), 2));
        assert!(keys.get(key(2).id()).is_some() && keys.get(key(3).id()).is_none());
        let more = keys.clone().with_others(&PseudonymKeys::new([key(2), key(3)]));
        assert_eq!((more.active(), more.ids().count()), (Some(key(1).id()), 3));
        let none = PseudonymKeys::default().with_others(&keys);
        assert_eq!((none.active(), none.ids().count()), (None, 2));
        assert_eq!(keys.without_active().active(), None);
    }

    #[test]
    fn mistakes_in_a_file_are_reported_together_and_say_nothing_of_it() {
        let good = key(1).to_secret_text();
        let text = format!("{good}\nsecret\n{good}\n{}\n", good.to_uppercase());
        let mistakes = PseudonymKeys::from_text(&text).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(mistakes[1].contains("line 3 repeats a key"), "{mistakes:?}");
        let said = mistakes.join(" ");
        assert!(!said.contains("secret") && !said.contains(&good), "{said}");
        assert_eq!(PseudonymKeys::from_text("# nothing\n").unwrap_err(), ["it holds no key"]);
        let many: String = (0..=KEYS_MAX as u8).map(|byte| key(byte).to_secret_text() + "\n").collect();
        assert!(PseudonymKeys::from_text(&many).unwrap_err()[0].contains("the limit is 64"));
    }

    #[test]
    fn nothing_that_is_printed_shows_a_key() {
        let (secret, keys) = (key(0xab).to_secret_text(), PseudonymKeys::new([key(0xab)]));
        let pseudonyms = key(0xab).for_poll(&poll("p"));
        let derived = key(0xab).derive::<16>(&[POLL, b"p"]);
        let numbers = derived.as_chunks::<8>().0.iter().map(|half| u64::from_le_bytes(*half).to_string());
        let shown = format!("{keys:?} {keys} {pseudonyms:?} {pseudonyms:#?} {:?}", key(0xab));
        assert!(!shown.contains(&secret) && !shown.contains("171") && shown.contains(&key(0xab).id().to_string()));
        assert!(numbers.into_iter().all(|number| !shown.contains(&number)), "{shown}");
    }

    #[test]
    fn the_short_way_for_uuids_writes_what_the_long_one_does() {
        let user = "0191d7a4-8f5e-7c3b-9a21-5d6e7f809a1b";
        let joined = after_zero(user.as_bytes().try_into().unwrap());
        assert_eq!(joined[..], [&[0][..], user.as_bytes()].concat());
        let pseudonyms = PseudonymKey::new([7; KEY_BYTES]).for_poll(&PollId::new("p").unwrap());
        let mut hasher = pseudonyms.0;
        hasher.write(&joined);
        let (long, short) = (hasher.finish128().as_bytes(), pseudonyms.of("", user));
        assert_eq!((long[0], long[15]), (short[0], short[15]));
    }
}
