//! Limits on what clients may send. Each is part of the public contract: the .proto files repeat them.

/// Longest poll id, in bytes. It is part of a partition key.
pub const POLL_ID_BYTES_MAX: usize = 64;
/// Longest user id, in bytes. Long enough for any UUID, e-mail address or opaque subject claim of OpenID Connect (255
/// characters).
pub const USER_ID_BYTES_MAX: usize = 256;
/// Longest option id, in bytes.
pub const OPTION_ID_BYTES_MAX: usize = 128;
/// Longest title of a poll or an option, in bytes.
pub const TITLE_BYTES_MAX: usize = 512;
/// Most options of a poll. A tally item holds one number an option, and a DynamoDB item holds 400 KB.
pub const OPTIONS_MAX: usize = 1_000;
/// Largest message of votes, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest message of a call with one vote, in bytes. A vote with the longest ids takes less than an eighth of it; the
/// rest is for fields that later versions may add.
pub const SINGLE_VOTE_BYTES_MAX: usize = 4 << 10;

const _: () = assert!(
    8 * (POLL_ID_BYTES_MAX + USER_ID_BYTES_MAX + OPTION_ID_BYTES_MAX + 16) <= SINGLE_VOTE_BYTES_MAX,
    "the longest vote fits",
);
const _: () = assert!(OPTIONS_MAX * (OPTION_ID_BYTES_MAX + 16) < 400_000, "a tally item fits into DynamoDB's 400 KB");
