//! Who looks at results, and whether they may see them.
//!
//! Owns the one decision about hidden results: every way to a count asks [`Viewer::check`]. Must never let a reader see a
//! count of a poll that hides its results from readers.

use http::Extensions;
use votestream_core::{Poll, Visibility};
use votestream_server::{
    Caller,
    identity::{Action, Denied},
};

use crate::status::CallError;

/// Who looks at the results of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Viewer {
    /// Sees results once the poll shows them.
    Reader,
    /// Administers the poll, and sees everything.
    Manager,
}

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It reads results.
    Read,
    /// It administers a poll: it creates, closes, releases or recounts it.
    Administer,
}

/// Whoever makes a request with these extensions, and what it may see of a poll. The only place that knows. Without
/// identity there are no managers who would see more than others: what a poll hides is hidden from everybody.
///
/// # Errors
///
/// If its credential does not allow the act.
pub(crate) fn viewer_of(extensions: &Extensions, poll: &str, act: Act) -> Result<(Viewer, Caller), Denied> {
    let caller = Caller::of(extensions);
    let sees_all = match act {
        Act::Read => {
            caller.require(Action::Read, poll)?;
            !caller.is_everybody() && caller.may(Action::Manage, poll.as_bytes())
        }
        Act::Administer => {
            caller.require(Action::Manage, poll)?;
            true
        }
    };
    Ok((if sees_all { Viewer::Manager } else { Viewer::Reader }, caller))
}

impl Viewer {
    /// Whether this viewer may see counts of the poll.
    ///
    /// # Errors
    ///
    /// If they may not; it says until when.
    pub(crate) fn check(self, poll: &Poll) -> Result<(), CallError> {
        match self {
            Self::Manager => Ok(()),
            Self::Reader if poll.shows_results() => Ok(()),
            Self::Reader => Err(CallError::hidden(poll.visibility)),
        }
    }
}

/// Until when results of this visibility are hidden, as a sentence.
pub(crate) fn hidden_until(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Live => "the results of this poll are shown",
        Visibility::WhenFinal => "the results of this poll are shown once they are final",
        Visibility::OnRelease => "the results of this poll are shown once somebody releases them",
    }
}

#[cfg(test)]
mod tests {
    use votestream_core::Timestamp;

    use super::*;

    #[test]
    fn readers_see_what_is_shown_and_managers_everything() {
        let poll = crate::testing::poll("p", 0, 1);
        for visibility in [Visibility::Live, Visibility::WhenFinal, Visibility::OnRelease] {
            let poll = poll.clone().with_visibility(visibility);
            assert_eq!(Viewer::Reader.check(&poll).is_ok(), visibility == Visibility::Live);
            assert!(Viewer::Manager.check(&poll).is_ok());
        }
        let poll = poll.with_visibility(Visibility::OnRelease);
        assert!(Viewer::Reader.check(&Poll { released_at: Some(Timestamp(1)), ..poll }).is_ok());
    }
}
