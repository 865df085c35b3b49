//! Refusals that pass: how to recognise them, and how long a refused call is tried again.
//!
//! Owns the pauses of all retries of this adapter. Must never repeat a call that may have taken effect: every other error
//! goes back to the caller, who knows whether a retry is safe.

use std::{error::Error as StdError, time::Duration};

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use rand::RngExt;
use tokio::time::Instant;
use votestream_core::observe::metrics;

use super::meter::Meter;

/// How long a throttled call is tried again. An on-demand table doubles its capacity in the background. A partition
/// splits within minutes; the caller's own, longer pauses are better for that.
const RETRY_FOR: Duration = Duration::from_secs(8);
/// What DynamoDB answers when it does not know who calls. Its "Error handling" calls this one retryable: it happens in passing,
/// to a caller with valid credentials.
const UNRECOGNIZED: &str = "UnrecognizedClientException";
/// How often a call is tried again after that answer. Credentials that are wrong stay wrong, and their owner wants to know.
const UNRECOGNIZED_RETRIES_MAX: usize = 2;
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// Pauses between attempts, with full jitter, up to a deadline.
pub(super) struct Retries {
    deadline: Instant,
    next: Duration,
}

impl Retries {
    pub(super) fn new() -> Self {
        Self { deadline: Instant::now() + RETRY_FOR, next: PAUSE_FIRST }
    }

    /// Waits before the next attempt; `false` if there is no time for one.
    pub(super) async fn pause(&mut self) -> bool {
        let pause = self.next.mul_f64(rand::rng().random_range(0.1..=1.0));
        self.next = (self.next * 2).min(PAUSE_LONGEST);
        if Instant::now() + pause > self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

/// Whether the error code of a call or of one statement means throttling. Codes: Amazon DynamoDB API Reference, "Common
/// errors" and `BatchStatementError`.
pub(super) fn is_throttle(code: &str) -> bool {
    matches!(
        code,
        "ProvisionedThroughputExceededException"
            | "ProvisionedThroughputExceeded"
            | "ThrottlingException"
            | "ThrottlingError"
            | "Throttling"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
    )
}

/// Makes a call, and repeats it while there is time and DynamoDB refuses it in passing: for its rate, or because it does not
/// know the caller just now.
pub(super) async fn repeat_refused<O, E, F>(
    meter: &Meter,
    mut call: impl FnMut() -> F,
) -> Result<O, SdkError<E, HttpResponse>>
where
    E: ProvideErrorMetadata + StdError + 'static,
    F: Future<Output = Result<O, SdkError<E, HttpResponse>>>,
{
    let (mut retries, mut unrecognized) = (Retries::new(), 0);
    loop {
        meter.request();
        let result = call().await;
        match result.as_ref().err().and_then(ProvideErrorMetadata::code) {
            Some(UNRECOGNIZED) if unrecognized < UNRECOGNIZED_RETRIES_MAX => {
                unrecognized += 1;
                metrics::engine_unauthorized();
            }
            Some(code) if is_throttle(code) => meter.throttled(1),
            _ => return result,
        }
        if !retries.pause().await {
            return result;
        }
    }
}
