//! The votes that were written last, in memory.
//!
//! Owns a bounded copy of decided votes, so that a vote that replaces one seldom reads tables. Must never hold another value
//! than the last: it is changed with the votes that are pending, under one lock.

/// Longest key that is remembered: a poll and a UUID.
pub(super) const KEY_BYTES: usize = 20;
/// Longest value that is remembered.
pub(super) const VALUE_BYTES: usize = 19;
/// Votes that fit in: two million, 80 MB once all places are taken.
const PLACES: usize = 1 << 21;

/// Key, length of the value, value; a length of 0 is an empty place.
type Place = [u8; KEY_BYTES + 1 + VALUE_BYTES];

/// Each key has one place, by its hash, which it shares with others: whoever was written last is there.
pub(super) struct Recent(Vec<Place>);

impl Default for Recent {
    fn default() -> Self {
        // Zeroed memory, which costs nothing until it is written.
        Self(vec![[0; _]; PLACES])
    }
}

impl Recent {
    fn place(key_hash: u64) -> usize {
        (key_hash >> (64 - PLACES.ilog2())) as usize
    }

    /// The stored vote, if it is here.
    pub(super) fn get(&self, key: &[u8], key_hash: u64) -> Option<&[u8]> {
        let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
        let (stored, rest) = self.0[Self::place(key_hash)].split_at(KEY_BYTES);
        let len = usize::from(rest[0]);
        (len > 0 && stored == key).then(|| &rest[1..=len])
    }

    /// Remembers what was decided, or forgets what stood in its place.
    pub(super) fn put(&mut self, key: &[u8], key_hash: u64, value: &[u8]) {
        let Ok(key) = <&[u8; KEY_BYTES]>::try_from(key) else { return };
        let place = &mut self.0[Self::place(key_hash)];
        if value.is_empty() || value.len() > VALUE_BYTES {
            if place[..KEY_BYTES] == *key {
                place[KEY_BYTES] = 0;
            }
            return;
        }
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
        let mut recent = Recent::default();
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
    fn keys_that_share_a_place_displace_each_other() {
        let mut recent = Recent::default();
        recent.put(&key(0), 1, &[1]);
        recent.put(&key(1), 2, &[2]);
        assert_eq!(
            (recent.get(&key(0), 1), recent.get(&key(1), 2)),
            (None, Some(&[2][..])),
            "the first bits are the same"
        );
        recent.put(&key(0), u64::MAX, &[1]);
        assert_eq!((recent.get(&key(0), u64::MAX), recent.get(&key(1), 2)), (Some(&[1][..]), Some(&[2][..])));
    }
}
