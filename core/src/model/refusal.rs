//! Why a vote is refused.
//!
//! Owns the reasons and the fields at fault. Each service turns a [`Refusal`] into the codes of its protocol, in one
//! place. No code may read the text to find out the reason.

use std::{fmt, sync::Arc};

use crate::{KeyId, PollId, model::poll::InvalidField};

/// Why a vote is not durable, or may not be durable. Its text is for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes of the vote are not a protobuf message.
    Unreadable,
    /// An id breaks a limit.
    Invalid(InvalidField),
    /// There is no such poll.
    NoSuchPoll(PollId),
    /// The poll has no such option. Shared, since many votes in a row often name the same unknown option.
    NoSuchOption(Arc<NoSuchOption>),
    /// The poll is not open yet.
    NotOpen(PollId),
    /// The poll is closed, or is being closed.
    Closed(PollId),
    /// The poll takes its votes from the stream.
    WrongSource(PollId),
    /// The caller may not cast this vote. The text says why.
    NotAllowed(Arc<str>),
    /// The poll cannot be read at the moment.
    PollUnreadable(PollId),
    /// The process lacks the key that makes pseudonyms of the poll's users.
    KeyMissing(PollId, KeyId),
    /// The clock of the process contradicts those of the engines.
    ClockContradicted,
    /// The stream did not take the vote in any attempt.
    NotStored,
    /// Nobody knows whether the stream took the vote.
    OutcomeUnknown,
}

/// An option that a poll does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchOption {
    /// The poll.
    pub poll: PollId,
    /// The option id in the vote.
    pub option: Box<str>,
    /// The option that looks like it, if there is one.
    pub look_alike: Option<Arc<str>>,
}

impl Refusal {
    /// The field at fault, as the .proto files name it; `None` if no field is at fault.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(invalid) => Some(invalid.field()),
            Self::NoSuchOption(_) => Some("option_id"),
            Self::NoSuchPoll(_) | Self::NotOpen(_) | Self::Closed(_) | Self::WrongSource(_) => Some("poll_id"),
            Self::Unreadable
            | Self::NotAllowed(_)
            | Self::PollUnreadable(_)
            | Self::KeyMissing(..)
            | Self::ClockContradicted
            | Self::NotStored
            | Self::OutcomeUnknown => None,
        }
    }

    /// Whether the vote was accepted first, so that this is its outcome.
    pub fn is_outcome(&self) -> bool {
        matches!(self, Self::NotStored | Self::OutcomeUnknown)
    }
}

impl From<InvalidField> for Refusal {
    fn from(invalid: InvalidField) -> Self {
        Self::Invalid(invalid)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("vote: not a valid protobuf message"),
            Self::Invalid(invalid) => invalid.fmt(f),
            Self::NoSuchPoll(poll) => write!(f, "poll_id: there is no poll \"{poll}\""),
            Self::NoSuchOption(missing) => {
                let NoSuchOption { poll, option, look_alike } = &**missing;
                write!(f, "option_id: poll \"{poll}\" has no option {option:?}")?;
                match look_alike {
                    // With their code points, since nobody can see the difference.
                    Some(known) => {
                        write!(f, "; \"{}\" looks like \"{}\"", option.escape_default(), known.escape_default())
                    }
                    None => Ok(()),
                }
            }
            Self::NotOpen(poll) => write!(f, "poll \"{poll}\" is not open yet"),
            Self::Closed(poll) => write!(f, "poll \"{poll}\" is closed"),
            Self::WrongSource(poll) => write!(f, "poll \"{poll}\" takes its votes from the stream"),
            Self::NotAllowed(reason) => f.write_str(reason),
            Self::PollUnreadable(poll) => write!(f, "poll \"{poll}\" cannot be read at the moment, retry the vote"),
            Self::KeyMissing(poll, key) => write!(
                f,
                "poll \"{poll}\" needs the pseudonym key {key}, which this server does not have; the vote was not stored, \
                 retry it"
            ),
            Self::ClockContradicted => f.write_str(
                "the clock of this server differs from the engines' by more than the protocol allows; the vote was not \
                 stored, retry it",
            ),
            Self::NotStored => f.write_str("the vote stream is unavailable; the vote was not stored, retry it"),
            Self::OutcomeUnknown => {
                f.write_str("no answer from the vote stream in time; whether the vote was stored is unknown")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_at_fault_stands_first_where_the_text_names_it() {
        let poll = || PollId::new("lunch").unwrap();
        let refusals = [
            Refusal::Invalid(InvalidField::Empty("user_id")),
            Refusal::NoSuchPoll(poll()),
            Refusal::NoSuchOption(NoSuchOption { poll: poll(), option: "soup".into(), look_alike: None }.into()),
        ];
        for refusal in refusals {
            let field = refusal.field().unwrap();
            assert!(refusal.to_string().starts_with(field), "{refusal}");
        }
        assert_eq!(Refusal::Closed(poll()).field(), Some("poll_id"));
        assert_eq!(Refusal::OutcomeUnknown.field(), None);
    }
}
