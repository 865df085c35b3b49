//! User ids in the form that batches keep.
//!
//! Most user ids are a UUID, or a UUID after a fixed prefix (`eu-west-1:` of an identity pool). Its 16 bytes say the
//! same as its 36 characters, and need no compression. Must never change an id: only a text that can be restored letter
//! by letter counts as a UUID.

use crate::model::{
    limits::USER_ID_BYTES_MAX,
    poll::{InvalidField, check_user_id},
};

/// Length of a UUID in text (RFC 9562, section 4).
pub const UUID_TEXT_BYTES: usize = 36;

/// A valid user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserId<'a> {
    /// Any text.
    Text(&'a str),
    /// A UUID in lower case, possibly after other text.
    Uuid {
        /// What stands before it; usually nothing.
        prefix: &'a str,
        /// Its bytes.
        uuid: [u8; 16],
    },
}

impl<'a> UserId<'a> {
    /// Checks an id, as [`check_user_id`] does.
    ///
    /// # Errors
    ///
    /// As [`check_user_id`].
    #[inline(always)]
    pub fn check(bytes: &'a [u8]) -> Result<Self, InvalidField> {
        // A UUID alone is always valid, so nothing else needs a check.
        if let Some(uuid) = bytes.try_into().ok().and_then(parse_uuid) {
            return Ok(Self::Uuid { prefix: "", uuid });
        }
        check_user_id(bytes).map(Self::of)
    }

    /// The form of a text that is a valid id.
    pub fn of(text: &'a str) -> Self {
        let uuid = text.as_bytes().last_chunk::<UUID_TEXT_BYTES>().and_then(parse_uuid);
        match uuid {
            // A UUID is ASCII, so the cut falls between two characters.
            Some(uuid) => Self::Uuid { prefix: &text[..text.len() - UUID_TEXT_BYTES], uuid },
            None => Self::Text(text),
        }
    }

    /// Length of the text, in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Uuid { prefix, .. } => prefix.len() + UUID_TEXT_BYTES,
        }
    }

    /// Whether there is no text. No valid id is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text.
    pub fn to_text(&self) -> String {
        match self {
            Self::Text(text) => (*text).to_owned(),
            Self::Uuid { prefix, uuid } => {
                let mut text = String::with_capacity(self.len());
                text.push_str(prefix);
                text.extend(uuid_text(*uuid).map(char::from));
                text
            }
        }
    }
}

impl<'a> From<&'a str> for UserId<'a> {
    /// [`Self::of`].
    fn from(text: &'a str) -> Self {
        Self::of(text)
    }
}

impl<'a> From<&'a String> for UserId<'a> {
    /// [`Self::of`].
    fn from(text: &'a String) -> Self {
        Self::of(text)
    }
}

/// Longest text that may stand before a UUID.
pub(crate) const PREFIX_BYTES_MAX: usize = USER_ID_BYTES_MAX - UUID_TEXT_BYTES;

/// The same byte eight times.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Number of characters between `9` and `a`.
const TO_LETTERS: u64 = (b'a' - b'9' - 1) as u64;

/// Where the hyphens stand.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// The bytes of a UUID in its canonical text: 32 hex digits in lower case and four hyphens. `None` for any other text.
#[inline(always)]
pub fn parse_uuid(text: &[u8; UUID_TEXT_BYTES]) -> Option<[u8; 16]> {
    let digits = |a: usize, b: usize| {
        let mut digits = [0; 8];
        digits[..4].copy_from_slice(&text[a..a + 4]);
        digits[4..].copy_from_slice(&text[b..b + 4]);
        u64::from_be_bytes(digits)
    };
    let parts = [digits(0, 4), digits(9, 14), digits(19, 24), digits(28, 32)];
    // Eight digits at a time, each in its own byte, and no branch depends on a single digit.
    let (mut uuid, mut wrong) = ([0; 16], 0);
    for (part, four) in parts.into_iter().zip(uuid.as_chunks_mut::<4>().0) {
        let is_letter = (part >> 6) & each(1);
        let values = (part & each(0x0f)) + is_letter * 9;
        // A character that is not a digit gives a value above 15, or would be written in another way.
        wrong |= (values & each(0xf0)) | (written(values) ^ part);
        let pairs = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
        let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
        *four = ((fours | fours >> 16) as u32).to_be_bytes();
    }
    let hyphens = HYPHENS.iter().fold(true, |all, &at| all & (text[at] == b'-'));
    (wrong == 0 && hyphens).then_some(uuid)
}

/// The canonical text of a UUID.
#[inline]
pub fn uuid_text(uuid: [u8; 16]) -> [u8; UUID_TEXT_BYTES] {
    let mut text = [b'-'; UUID_TEXT_BYTES];
    for (four, (a, b)) in uuid.as_chunks::<4>().0.iter().zip([(0, 4), (9, 14), (19, 24), (28, 32)]) {
        let fours = u64::from(u32::from_be_bytes(*four));
        let pairs = (fours | fours << 16) & 0x0000_ffff_0000_ffff;
        let bytes = (pairs | pairs << 8) & 0x00ff_00ff_00ff_00ff;
        let digits = written((bytes | bytes << 4) & each(0x0f)).to_be_bytes();
        text[a..a + 4].copy_from_slice(&digits[..4]);
        text[b..b + 4].copy_from_slice(&digits[4..]);
    }
    text
}

/// Eight values below 16 as hex digits.
#[inline]
fn written(values: u64) -> u64 {
    // 118 and a value of 10 or more reach 128.
    let is_letter = ((values + each(118)) >> 7) & each(1);
    values + each(b'0') + is_letter * TO_LETTERS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plainly(uuid: [u8; 16]) -> String {
        let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    proptest! {
        #[test]
        fn a_uuid_is_its_text(uuid: [u8; 16]) {
            let text = plainly(uuid);
            prop_assert_eq!(&uuid_text(uuid)[..], text.as_bytes());
            prop_assert_eq!(UserId::check(text.as_bytes()), Ok(UserId::Uuid { prefix: "", uuid }));
        }

        #[test]
        fn only_what_comes_back_is_a_uuid(uuid: [u8; 16], at in 0..UUID_TEXT_BYTES, byte: u8) {
            let mut text = uuid_text(uuid);
            text[at] = byte;
            if let Some(read) = parse_uuid(&text) {
                prop_assert_eq!(uuid_text(read), text);
            } else {
                // One letter was replaced, so only this one can be wrong.
                let hex = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                prop_assert!(if HYPHENS.contains(&at) { byte != b'-' } else { !hex }, "{byte} at {at}");
            }
        }

        #[test]
        fn ids_come_back(prefix in "[^\\p{Cc}]{0,40}", uuid: [u8; 16], is_uuid: bool) {
            let text = if is_uuid { prefix.clone() + &plainly(uuid) } else { prefix.clone() + "x" };
            let id = UserId::check(text.as_bytes()).unwrap();
            prop_assert_eq!(matches!(id, UserId::Uuid { .. }), is_uuid);
            prop_assert_eq!((id.to_text(), id.len()), (text.clone(), text.len()));
        }

        #[test]
        fn refuses_what_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let id = UserId::check(&bytes).map(|id| id.to_text());
            prop_assert_eq!(id, check_user_id(&bytes).map(str::to_owned));
        }
    }

    #[test]
    fn every_wrong_digit_is_noticed() {
        for at in (0..UUID_TEXT_BYTES).filter(|at| !HYPHENS.contains(at)) {
            for byte in 0..=u8::MAX {
                let mut text = *b"00000000-0000-0000-0000-000000000000";
                text[at] = byte;
                let hex = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                assert_eq!(parse_uuid(&text).is_some(), hex, "{byte} at {at}");
            }
        }
    }
}
