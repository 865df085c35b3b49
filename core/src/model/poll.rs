//! Polls and the ids that clients choose, with their limits.
//!
//! Owns what a valid id and a valid poll is. Bad input is refused here, with an error that names the field and the
//! limit.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use crate::{
    Timestamp,
    model::{
        limits::{OPTION_ID_BYTES_MAX, OPTIONS_MAX, POLL_ID_BYTES_MAX, TITLE_BYTES_MAX, USER_ID_BYTES_MAX},
        pseudonym::KeyId,
        text,
    },
};

/// Why a field is invalid. The text is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidField {
    /// The field is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// The field is too long.
    #[error("{field} is {len} bytes long, the limit is {max}")]
    TooLong {
        /// Name of the field, as in the .proto files.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The field is not UTF-8.
    #[error("{0} is not valid UTF-8")]
    NotUtf8(&'static str),
    /// The field holds control characters.
    #[error("{0} holds a control character")]
    ControlCharacter(&'static str),
    /// The field begins or ends with white space.
    #[error("{0} starts or ends with white space")]
    Surrounded(&'static str),
    /// The field holds nothing but white space.
    #[error("{0} is blank")]
    Blank(&'static str),
    /// The field holds a line break that is not a control character.
    #[error("{0} holds a line break")]
    LineBreak(&'static str),
    /// The field begins with a mark that would be drawn on the character before it.
    #[error("{0} starts with a mark that belongs to the character before it")]
    LeadingMark(&'static str),
    /// The field holds a character that changes the direction of text.
    #[error("{field} holds a character that changes the direction of text, U+{code_point:04X}")]
    Direction {
        /// Name of the field, as in the .proto files.
        field: &'static str,
        /// The character.
        code_point: u32,
    },
    /// The field holds a character that is not drawn.
    #[error("{field} holds an invisible character, U+{code_point:04X}")]
    Invisible {
        /// Name of the field, as in the .proto files.
        field: &'static str,
        /// The character.
        code_point: u32,
    },
    /// The poll id has a special meaning as a step of a path.
    #[error("poll_id must not be \".\" or \"..\", which have a special meaning in a URL")]
    PollIdDots,
    /// The poll id holds a character outside its alphabet.
    #[error("poll_id may hold ASCII letters, digits and \"-\", \"_\", \".\", \"~\" only")]
    PollIdAlphabet,
    /// No options, or too many.
    #[error("options holds {0} entries, the limits are 1 and {OPTIONS_MAX}")]
    OptionCount(usize),
    /// Two options have one id.
    #[error("options names {0:?} twice")]
    DuplicateOption(String),
    /// Two options look alike.
    #[error("options: {one:?} and {other:?} look alike")]
    LookAlike {
        /// Id of one of the two.
        one: String,
        /// Id of the other one.
        other: String,
    },
    /// The poll would close before it opens.
    #[error("closes_at must be later than opens_at")]
    ClosesBeforeOpening,
}

impl InvalidField {
    /// Name of the field, as in the .proto files.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Empty(field)
            | Self::TooLong { field, .. }
            | Self::NotUtf8(field)
            | Self::ControlCharacter(field)
            | Self::Surrounded(field)
            | Self::Blank(field)
            | Self::LineBreak(field)
            | Self::LeadingMark(field)
            | Self::Direction { field, .. }
            | Self::Invisible { field, .. } => field,
            Self::PollIdAlphabet | Self::PollIdDots => "poll_id",
            Self::OptionCount(_) | Self::DuplicateOption(_) | Self::LookAlike { .. } => "options",
            Self::ClosesBeforeOpening => "closes_at",
        }
    }
}

/// Checks an id that may hold any text: not empty, within `max` bytes, UTF-8, no control characters.
///
/// # Errors
///
/// Says what is wrong, and with which field.
#[inline]
pub fn check_text<'a>(field: &'static str, bytes: &'a [u8], max: usize) -> Result<&'a str, InvalidField> {
    if bytes.is_empty() {
        return Err(InvalidField::Empty(field));
    }
    if bytes.len() > max {
        return Err(InvalidField::TooLong { field, len: bytes.len(), max });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| InvalidField::NotUtf8(field))?;
    // No early exit, so that the compiler can check many bytes at a time.
    let plain = bytes.iter().fold(true, |plain, &byte| plain & (0x20..0x7f).contains(&byte));
    if !plain && text.chars().any(char::is_control) {
        return Err(InvalidField::ControlCharacter(field));
    }
    Ok(text)
}

/// Checks a user id. Another system chose it, and nobody reads it. So its look does not matter, and white space at its
/// ends is part of it: without it, two users could become one.
///
/// # Errors
///
/// As [`check_text`].
#[inline]
pub fn check_user_id(bytes: &[u8]) -> Result<&str, InvalidField> {
    check_text("user_id", bytes, USER_ID_BYTES_MAX)
}

/// Checks the option id of a vote, or of a stored poll. There are more rules for the options of a new poll, see
/// [`crate::model::text`].
///
/// # Errors
///
/// As [`check_text`].
pub fn check_option_id(bytes: &[u8]) -> Result<&str, InvalidField> {
    check_text("option_id", bytes, OPTION_ID_BYTES_MAX)
}

/// Id of a poll: 1 to 64 bytes of ASCII letters, digits and `-_.~`, so that it fits into URLs and composite keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollId(Arc<str>);

impl PollId {
    /// Checks the id.
    ///
    /// # Errors
    ///
    /// As [`Self::check`].
    pub fn new(id: &str) -> Result<Self, InvalidField> {
        Self::check(id.as_bytes()).map(|id| Self(id.into()))
    }

    /// Checks the bytes of an id without keeping them.
    ///
    /// # Errors
    ///
    /// If it is empty, too long, or holds a character that poll ids may not have.
    pub fn check(bytes: &[u8]) -> Result<&str, InvalidField> {
        let id = check_text("poll_id", bytes, POLL_ID_BYTES_MAX)?;
        if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte)) {
            return Err(InvalidField::PollIdAlphabet);
        }
        Ok(id)
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for PollId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PollId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One choice of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollOption {
    /// The id that votes name.
    pub id: Arc<str>,
    /// Title for people; may be empty.
    pub title: String,
}

/// Where the votes of a poll come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollSource {
    /// From the ingest service.
    #[default]
    Ingest,
    /// From other producers that write to the stream themselves.
    Stream,
}

/// When readers may see the results of a poll. Part of its definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Always.
    #[default]
    Live,
    /// Once the final result is stored; nothing before.
    WhenFinal,
    /// Once somebody releases them, see [`crate::port::PollStore::release`]; neither interim nor final results before.
    OnRelease,
}

/// Whether a poll was closed early. That takes two steps, see [`crate::port::PollStore::begin_close`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Closing {
    /// Nobody has asked to close it.
    #[default]
    No,
    /// Somebody has asked: ingest takes no more votes. `closes_at` may still change.
    Asked,
    /// `closes_at` never changes again.
    Done,
}

/// A poll as stored. Only `closing`, `closes_at` (to an earlier time), `needs_recount`, `final_result` and `released_at`
/// ever change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Unique id.
    pub id: PollId,
    /// Title for people.
    pub title: String,
    /// Choices in the order in which they are shown.
    pub options: Vec<PollOption>,
    /// First moment at which a vote is accepted.
    pub opens_at: Timestamp,
    /// First moment at which a vote is no longer accepted.
    pub closes_at: Timestamp,
    /// Whether it was closed early.
    pub closing: Closing,
    /// Where votes come from.
    pub source: PollSource,
    /// Votes per second that the poll was sized for.
    pub expected_peak: u64,
    /// Over how many partitions the poll's votes are spread.
    pub buckets: u32,
    /// When readers may see its results.
    pub visibility: Visibility,
    /// When its results were released, if they were. Never changes afterwards.
    pub released_at: Option<Timestamp>,
    /// The key that makes pseudonyms of this poll's users; `None` if user ids are stored as they are. Chosen when the
    /// poll is created, for ever: under two keys one person would be two.
    pub pseudonym_key: Option<KeyId>,
    /// Set when stored data contradicted itself; the poll does not become final before a recount.
    pub needs_recount: bool,
    /// The final result, once it is known.
    pub final_result: Option<FinalResult>,
}

/// The final result of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalResult {
    /// Votes per option, in the poll's order of options.
    pub votes: Vec<u64>,
    /// When it became final.
    pub finalized_at: Timestamp,
}

/// Writes per second that one DynamoDB partition takes (Amazon DynamoDB Developer Guide, "Best practices for partition
/// keys").
pub const PARTITION_WRITES_PER_SECOND: u64 = 1_000;
/// Buckets for each of these partitions. Buckets fall on partitions by their hash. With one for each, some partition
/// gets five or six and takes as many times as long as the others; with sixteen, the hottest gets little more than
/// twice its share (`votestream plan` has the model).
pub const BUCKETS_PER_PARTITION: u64 = 16;
/// Most buckets of a poll: a recount needs a query for each, and the key of a vote has five digits for its bucket.
pub const BUCKETS_MAX: u32 = 65_536;

impl Poll {
    /// Checks the definition of a new poll, and derives its buckets from the expected peak.
    ///
    /// # Errors
    ///
    /// Names the first field that breaks a limit, or that would look different from what it is.
    pub fn new(
        id: PollId,
        title: String,
        options: Vec<PollOption>,
        opens_at: Timestamp,
        closes_at: Timestamp,
        source: PollSource,
        expected_peak: u64,
    ) -> Result<Self, InvalidField> {
        let poll = Self::defined(id, title, options, opens_at, closes_at, source, expected_peak)?;
        poll.check_shown()?;
        Ok(poll)
    }

    /// Over how many partition keys the votes of a poll with this expected peak are spread.
    pub fn buckets_for(expected_peak: u64) -> u32 {
        let buckets = expected_peak.saturating_mul(BUCKETS_PER_PARTITION).div_ceil(PARTITION_WRITES_PER_SECOND);
        buckets.clamp(1, u64::from(BUCKETS_MAX)) as u32
    }

    /// Checks that people see what the poll is, and can tell its options apart.
    fn check_shown(&self) -> Result<(), InvalidField> {
        if matches!(self.id.as_str(), "." | "..") {
            return Err(InvalidField::PollIdDots);
        }
        text::check_new_title("title", &self.title)?;
        let mut seen = HashMap::new();
        for option in &self.options {
            text::check_new_option_id(&option.id)?;
            text::check_new_title("options.title", &option.title)?;
            // Only ids are compared: two candidates may have the same name, and a title does not decide which option a
            // vote counts for.
            if let Some(other) = seen.insert(text::skeleton(&option.id), &option.id) {
                return Err(InvalidField::LookAlike { one: other.to_string(), other: option.id.to_string() });
            }
        }
        Ok(())
    }

    /// A poll with these fields. It may have been stored before there were rules about how ids and titles look.
    ///
    /// # Errors
    ///
    /// Names the first field that breaks a limit.
    pub fn defined(
        id: PollId,
        title: String,
        options: Vec<PollOption>,
        opens_at: Timestamp,
        closes_at: Timestamp,
        source: PollSource,
        expected_peak: u64,
    ) -> Result<Self, InvalidField> {
        let title_max = |field, title: &str| match title.len() {
            len if len > TITLE_BYTES_MAX => Err(InvalidField::TooLong { field, len, max: TITLE_BYTES_MAX }),
            _ => Ok(()),
        };
        title_max("title", &title)?;
        if options.is_empty() || options.len() > OPTIONS_MAX {
            return Err(InvalidField::OptionCount(options.len()));
        }
        let mut seen = HashSet::new();
        for option in &options {
            check_option_id(option.id.as_bytes())?;
            title_max("options.title", &option.title)?;
            if !seen.insert(&*option.id) {
                return Err(InvalidField::DuplicateOption(option.id.to_string()));
            }
        }
        if closes_at <= opens_at {
            return Err(InvalidField::ClosesBeforeOpening);
        }
        let buckets = Self::buckets_for(expected_peak);
        Ok(Self {
            id,
            title,
            options,
            opens_at,
            closes_at,
            closing: Closing::No,
            source,
            expected_peak,
            buckets,
            visibility: Visibility::default(),
            released_at: None,
            pseudonym_key: None,
            needs_recount: false,
            final_result: None,
        })
    }

    /// The same poll with this visibility.
    pub fn with_visibility(self, visibility: Visibility) -> Self {
        Self { visibility, ..self }
    }

    /// The same poll with pseudonyms under this key, or with plain user ids. A poll with source STREAM always has plain
    /// ones: other producers write its user ids.
    pub fn with_pseudonym_key(self, key: Option<KeyId>) -> Self {
        Self { pseudonym_key: key.filter(|_| self.source == PollSource::Ingest), ..self }
    }

    /// Whether readers may see results of this poll. Once true, it stays true.
    pub fn shows_results(&self) -> bool {
        match self.visibility {
            Visibility::Live => true,
            Visibility::WhenFinal => self.final_result.is_some(),
            Visibility::OnRelease => self.released_at.is_some(),
        }
    }

    /// Whether both have the same definition, whatever has happened to them since. `closes_at` is part of the
    /// definition only until somebody closes the poll early. The key of its pseudonyms is no part: the service chooses
    /// it, and the one of the stored poll stays.
    pub fn same_definition(&self, other: &Self) -> bool {
        let fixed = |poll: &Self| (poll.opens_at, poll.source, poll.expected_peak, poll.visibility);
        (&self.id, &self.title, &self.options, fixed(self)) == (&other.id, &other.title, &other.options, fixed(other))
    }

    /// Index of an option.
    pub fn option_index(&self, option_id: &str) -> Option<usize> {
        self.options.iter().position(|option| &*option.id == option_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_shown_from_their_time_on() {
        let poll = new_poll("p", "", &[("a", "")]).unwrap();
        let finished = |poll: &Poll| Poll {
            final_result: Some(FinalResult { votes: vec![1], finalized_at: Timestamp(2) }),
            ..poll.clone()
        };
        let released = |poll: &Poll| Poll { released_at: Some(Timestamp(2)), ..poll.clone() };
        for (visibility, plain, is_final, is_released) in [
            (Visibility::Live, true, true, true),
            (Visibility::WhenFinal, false, true, false),
            (Visibility::OnRelease, false, false, true),
        ] {
            let poll = poll.clone().with_visibility(visibility);
            assert_eq!(poll.shows_results(), plain, "{visibility:?}");
            assert_eq!(finished(&poll).shows_results(), is_final, "{visibility:?}");
            assert_eq!(released(&poll).shows_results(), is_released, "{visibility:?}");
            assert_eq!(finished(&released(&poll)).shows_results(), is_final || is_released, "{visibility:?}");
            assert!(poll.same_definition(&released(&poll)), "releasing is no part of the definition");
        }
        assert!(!poll.same_definition(&poll.clone().with_visibility(Visibility::OnRelease)));
    }

    #[test]
    fn a_poll_has_sixteen_buckets_for_each_partition_that_its_peak_fills() {
        for (peak, buckets) in [(0, 1), (1, 1), (62, 1), (63, 2), (1_000, 16), (20_000, 320), (1_000_000, 16_000)] {
            assert_eq!(Poll::buckets_for(peak), buckets, "{peak}");
        }
        assert_eq!([4_096_000, u64::MAX].map(Poll::buckets_for), [BUCKETS_MAX; 2]);
        assert_eq!(new_poll("p", "", &[("a", "")]).unwrap().buckets, Poll::buckets_for(1));
    }

    #[test]
    fn polls_of_the_stream_have_no_pseudonyms() {
        let poll = new_poll("p", "", &[("a", "")]).unwrap();
        let key = Some(KeyId([7; 8]));
        assert_eq!(poll.clone().with_pseudonym_key(key).pseudonym_key, key);
        let stream = Poll { source: PollSource::Stream, ..poll };
        assert_eq!(stream.with_pseudonym_key(key).pseudonym_key, None);
    }

    fn new_poll(id: &str, title: &str, options: &[(&str, &str)]) -> Result<Poll, InvalidField> {
        let options =
            options.iter().map(|(id, title)| PollOption { id: (*id).into(), title: (*title).into() }).collect();
        let (id, times) = (PollId::new(id)?, [Timestamp(0), Timestamp(1)]);
        Poll::new(id, title.into(), options, times[0], times[1], PollSource::Ingest, 1)
    }

    #[test]
    fn options_that_look_alike_are_refused() {
        for pair in
            [[("tea", ""), ("tea ", "")], [("caf\u{e9}", ""), ("cafe\u{301}", "")], [("tea", ""), ("t\u{435}a", "")]]
        {
            let error = new_poll("p", "", &pair).unwrap_err();
            assert!(matches!(error.field(), "options" | "option_id"), "{pair:?}: {error}");
        }
        // People vote by id, so equal titles neither help nor harm.
        assert!(new_poll("p", "", &[("a", "Kim"), ("b", "Kim")]).is_ok());
        let error = new_poll("p", "", &[("tea", "Green"), ("t\u{435}a", "Black")]).unwrap_err();
        assert_eq!(error.to_string(), "options: \"tea\" and \"t\u{435}a\" look alike");
        assert!(new_poll("p", "", &[("Tea", ""), ("tea", "")]).is_ok());
        assert!(new_poll("p", "", &[("a", "b"), ("b", "a")]).is_ok());
    }

    #[test]
    fn what_is_not_shown_as_it_is_is_refused() {
        for (id, title, option, field) in [
            (".", "", ("a", ""), "poll_id"),
            ("..", "", ("a", ""), "poll_id"),
            ("p", "a\nb", ("a", ""), "title"),
            ("p", "a\u{202e}b", ("a", ""), "title"),
            ("p", "", ("a", " "), "options.title"),
            ("p", "", ("a ", ""), "option_id"),
        ] {
            let error = new_poll(id, title, &[option]).unwrap_err();
            assert_eq!(error.field(), field, "{error}");
            // Field names of other protocols are put in place of the one at the start of the message.
            assert!(error.to_string().starts_with(field), "{error}");
        }
        assert!(new_poll("...", "עברית", &[("א", "")]).is_ok());
    }

    #[test]
    fn what_was_stored_before_is_still_a_poll() {
        let options = ["tea", "tea "].map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
        let id = PollId::new("..").unwrap();
        let poll = Poll::defined(id, "a\nb".into(), options, Timestamp(0), Timestamp(1), PollSource::Ingest, 1);
        assert_eq!(poll.unwrap().option_index("tea "), Some(1));
        assert!(check_option_id("tea ".as_bytes()).is_ok());
    }
}
