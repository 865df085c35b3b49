//! What the status that ended a call proves.
//!
//! Owns the reading of statuses and of their details, as `ingest.proto` documents them. Must never take silence for proof: what
//! a status does not say is unknown.

use std::{error::Error, time::Duration};

use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt;

/// Domain of the `google.rpc.ErrorInfo` of our services.
const DOMAIN: &str = "votestream.v1";
/// Its reason in the UNAVAILABLE of a vote that was certainly not stored.
const NOT_STORED: &str = "VOTE_NOT_STORED";
/// Its reason in the FAILED_PRECONDITION of results that readers may not see yet.
const RESULTS_HIDDEN: &str = "RESULTS_HIDDEN";

/// Whether the vote of a call that ended so was certainly not stored, and may be stored later.
pub(crate) fn is_not_stored(status: &Status) -> bool {
    if let Some(source) = status.source() {
        return is_not_connected(source);
    }
    if status.code() == Code::Unavailable {
        let info = status.get_details_error_info();
        return info.is_some_and(|info| info.domain == DOMAIN && info.reason == NOT_STORED);
    }
    // The service's own has it; proxies and connections have not.
    status.code() == Code::ResourceExhausted && status.get_details_retry_info().is_some()
}

/// Whether no connection came about, so that nothing was sent.
fn is_not_connected(error: &(dyn Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(some) = error {
        if some.is::<ConnectError>() {
            return true;
        }
        error = some.source();
    }
    false
}

/// Whether the service does not show these results yet.
pub(crate) fn hides_results(status: &Status) -> bool {
    let info = status.get_details_error_info();
    status.code() == Code::FailedPrecondition
        && info.is_some_and(|info| info.domain == DOMAIN && info.reason == RESULTS_HIDDEN)
}

/// How long the service asks to wait before the next attempt.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Whether a stream that ended so may end otherwise the next time. `None` is an end without a reason.
pub(crate) fn may_pass(status: Option<&Status>) -> bool {
    const PASSING: [Code; 7] = [
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::Cancelled,
        Code::Unknown,
        Code::Internal,
        Code::DeadlineExceeded,
        Code::Aborted,
    ];
    status.is_none_or(|status| status.source().is_some() || PASSING.contains(&status.code()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn unavailable(domain: &str, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
        Status::with_error_details(Code::Unavailable, "x", details)
    }

    #[test]
    fn only_the_services_own_words_prove_that_a_vote_was_not_stored() {
        let retry = |after| ErrorDetails::with_retry_info(Some(after));
        let crowded = Status::with_error_details(Code::ResourceExhausted, "x", retry(Duration::from_millis(500)));
        assert!(is_not_stored(&unavailable(DOMAIN, NOT_STORED)) && is_not_stored(&crowded));
        assert_eq!(retry_after(&crowded), Some(Duration::from_millis(500)));
        let unproven = [
            unavailable("example.com", NOT_STORED),
            unavailable(DOMAIN, "OTHER"),
            Status::unavailable("a proxy has no backend"),
            Status::resource_exhausted("a proxy takes no more"),
            Status::cancelled("x"),
            Status::unknown("x"),
            Status::deadline_exceeded("x"),
        ];
        for status in unproven {
            assert!(!is_not_stored(&status), "{status:?}");
        }
    }

    #[test]
    fn hidden_results_are_told_from_other_failed_preconditions() {
        let details = |reason: &str, domain: &str| ErrorDetails::with_error_info(reason, domain, HashMap::new());
        let hidden = |code, details| hides_results(&Status::with_error_details(code, "x", details));
        assert!(hidden(Code::FailedPrecondition, details(RESULTS_HIDDEN, DOMAIN)));
        assert!(!hidden(Code::FailedPrecondition, details(NOT_STORED, DOMAIN)));
        assert!(!hidden(Code::FailedPrecondition, details(RESULTS_HIDDEN, "example.com")));
        assert!(!hidden(Code::Unavailable, details(RESULTS_HIDDEN, DOMAIN)));
        assert!(!hides_results(&Status::failed_precondition("the poll closes at 7")));
    }

    #[test]
    fn a_connection_that_broke_proves_nothing_and_one_that_never_was_does() {
        let broken = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        assert!(!is_not_stored(&broken) && may_pass(Some(&broken)));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(is_not_stored(&Status::from_error(Box::new(ConnectError(Box::new(refused))))));
    }

    #[test]
    fn what_is_wrong_stays_wrong() {
        assert!(may_pass(None) && may_pass(Some(&Status::unavailable("it stops"))));
        assert!(!may_pass(Some(&Status::invalid_argument("too large"))));
        assert!(!may_pass(Some(&Status::permission_denied("no"))));
    }
}
