//! Keeps the votes that were written last in memory.
//!
//! Owns a bounded copy of decided votes, so that replacing a vote seldom needs to read tables. Must never hold an old
//! value of a vote: it is changed together with the pending votes, under one lock.

/// Longest key that is remembered: a poll and a UUID.
pub(super) const KEY_BYTES: usize = 20;
/// Longest value that is remembered.
pub(super) const VALUE_BYTES: usize = 19;
/// Number of votes that fit: two million, 80 MB once all places are used.
const PLACES: usize = 1 << 21;
/// Places of a set. With one place per set, a million votes would overwrite a fifth of themselves; with four, hardly
/// any.
const WAYS: usize = 4;

/// Key, length of the value, value. A length of 0 means an empty place.
type Place = [u8; KEY_BYTES + 1 + VALUE_BYTES];

/// Sets of places. The hash of a key decides its set.
pub(super) struct HotVotes(Vec<[Place; WAYS]>);

impl Default for HotVotes {
    fn default() -> Self {
        // Zeroed memory costs nothing until it is written.
        Self(vec![[[0; _]; WAYS]; PLACES / WAYS])
    }
}

fn is_of(place: &Place, key: &[u8; KEY_BYTES]) -> bool {
    place[KEY_BYTES] > 0 && place[..KEY_BYTES] == *key
}

impl HotVotes {
    fn set(key_hash: u64) -> usize {
        (key_hash >> (64 - (PLACES / WAYS).ilog2())) as usize
    }

    /// The stored vote, if it is here.
    pub(super) fn get(&self, key: &[u8], key_hash: u64) -> Option<&[u8]> {
        let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
        let place = self.0[Self::set(key_hash)].iter().find(|place| is_of(place, key))?;
        Some(&place[KEY_BYTES + 1..][..usize::from(place[KEY_BYTES])])
    }

    /// Remembers a decided vote: in the place of this key, in an empty place, or in the place of another key of the
    /// set.
    pub(super) fn put(&mut self, key: &[u8], key_hash: u64, value: &[u8]) {
        let Ok(key) = <&[u8; KEY_BYTES]>::try_from(key) else { return };
        let set = &mut self.0[Self::set(key_hash)];
        let found = set.iter().position(|place| is_of(place, key));
        if value.is_empty() || value.len() > VALUE_BYTES {
            if let Some(at) = found {
                set[at][KEY_BYTES] = 0;
            }
            return;
        }
        let at = found.or_else(|| set.iter().position(|place| place[KEY_BYTES] == 0));
        let place = &mut set[at.unwrap_or(key_hash as usize % WAYS)];
        place[..KEY_BYTES].copy_from_slice(key);
        place[KEY_BYTES] = value.len() as u8;
        place[KEY_BYTES + 1..][..value.len()].copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key[KEY_BYTES - 4..].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn the_last_value_of_a_key_or_nothing() {
        let mut recent = HotVotes::default();
        assert_eq!(recent.get(&key(0), 1), None);
        recent.put(&key(0), 1, &[1, 2]);
        recent.put(&key(0), 1, &[3]);
        assert_eq!(recent.get(&key(0), 1), Some(&[3][..]));
        recent.put(&key(0), 1, &[4; VALUE_BYTES + 1]);
        assert_eq!(recent.get(&key(0), 1), None, "a value that does not fit must not leave an older one");
        recent.put(&[1; 3], 1, &[1]);
        assert_eq!(recent.get(&[1; 3], 1), None);
    }

    #[test]
    fn keys_of_a_full_set_displace_one_another() {
        let mut recent = HotVotes::default();
        let ways = WAYS as u32;
        // The first bits are the same: one set. The last bits choose the place that is overwritten when the set is
        // full.
        (0..ways).for_each(|number| recent.put(&key(number), number.into(), &[number as u8]));
        assert!((0..ways).all(|number| recent.get(&key(number), number.into()) == Some(&[number as u8][..])));
        recent.put(&key(9), 1, &[9]);
        let here = |recent: &HotVotes, number: u32| recent.get(&key(number), number.into()).is_some();
        assert_eq!((0..ways).map(|number| here(&recent, number)).collect::<Vec<_>>(), [true, false, true, true]);
        assert_eq!(recent.get(&key(9), 1), Some(&[9][..]));
        // An empty place is used before another one is overwritten.
        recent.put(&key(2), 2, &[]);
        recent.put(&key(1), 1, &[1]);
        assert_eq!((0..ways).map(|number| here(&recent, number)).collect::<Vec<_>>(), [true, true, false, true]);
        recent.put(&key(5), u64::MAX, &[5]);
        assert!(recent.get(&key(5), u64::MAX).is_some() && recent.get(&key(5), 1).is_none());
    }
}
