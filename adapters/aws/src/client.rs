//! Connects the SDK to AWS, and says what its errors mean.
//!
//! Owns the SDK's configuration (standard AWS variables, time limits, no SDK retries) and the one translation from SDK
//! errors to [`PortError`]. Must never retry: if the SDK repeated a call by itself, the call could take effect twice
//! and the caller would not know.

use std::{error::Error as StdError, fmt::Write as _, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::{Credentials, provider::error::CredentialsError};
use aws_smithy_runtime_api::client::{
    http::SharedHttpClient, orchestrator::HttpResponse, result::SdkError,
    stalled_stream_protection::StalledStreamProtectionConfig,
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use votestream_core::{
    TimeBounds,
    clock::{SystemClock, WatchedClock},
    observe::metrics,
    port::{Effect, PortError},
};

use crate::{
    answers::RefuseEmpty,
    connections::{AbandonStalled, Connections, HttpClients},
    date::ReadDate,
};

/// Longest time to connect. Within a region that takes milliseconds, unless a packet is lost: the first one of a connection is
/// sent again after one second and after two more (RFC 6298, 2.1 and 5.5). The last tenth is for the handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3_100);
/// Longest time for one call, connecting included. This is half of the shortest answer deadline over a network (D of
/// `TimeBounds::DISTRIBUTED`), so that after a lost answer there is time for one more try.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const _: () =
    assert!(CONNECT_TIMEOUT.as_millis() < CALL_TIMEOUT.as_millis(), "a call that had to connect has time left");
const _: () = assert!(
    2 * CALL_TIMEOUT.as_millis() <= TimeBounds::DISTRIBUTED.answer_deadline.as_millis(),
    "after a call without an answer there is time for another"
);

/// How to reach AWS. A field that is `None` is taken from the standard AWS variables and profiles.
#[derive(Clone, Debug, Default)]
pub struct AwsConfig {
    /// Region; if `None`, `AWS_REGION`.
    pub region: Option<String>,
    /// Endpoint of Kinesis; if `None`, `AWS_ENDPOINT_URL_KINESIS`, then `AWS_ENDPOINT_URL`, then AWS itself.
    pub kinesis_endpoint: Option<String>,
    /// Endpoint of DynamoDB; if `None`, `AWS_ENDPOINT_URL_DYNAMODB`, then `AWS_ENDPOINT_URL`, then AWS itself.
    pub dynamodb_endpoint: Option<String>,
    /// Credentials of the caller; if `None`, the SDK's chain: variables, profile, web identity, the container's role,
    /// the machine's role.
    pub credentials: Option<Credentials>,
    /// Another HTTP client, for example one that fails on purpose.
    pub http_client: Option<SharedHttpClient>,
    /// Certificates in PEM of the authorities that are trusted instead of the system's. Without them, the standard variables
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` say which the system's are.
    pub ca_certificates: Option<String>,
    /// Longest time for one call; zero stands for the default.
    pub call_timeout: Duration,
}

impl AwsConfig {
    /// Configuration for a stand-in on this machine. A stand-in wants a region and a signature, but checks neither.
    pub fn stand_in() -> Self {
        Self {
            region: Some("us-east-1".into()),
            credentials: Some(Credentials::new("stand-in", "stand-in", None, None, "stand-in")),
            ..Self::default()
        }
    }
}

/// The clients of both services.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Kinesis Data Streams.
    pub kinesis: aws_sdk_kinesis::Client,
    /// DynamoDB.
    pub dynamodb: aws_sdk_dynamodb::Client,
    /// The machine's clock, compared with the time in every answer.
    pub clock: Arc<WatchedClock>,
    pub(crate) http_clients: HttpClients,
}

impl Clients {
    /// Makes the clients of this configuration. Reads variables and files; does not connect.
    pub async fn new(config: &AwsConfig) -> Self {
        let http_clients = HttpClients::new(config.http_client.clone(), config.ca_certificates.as_deref());
        let shared = sdk_config(config, &http_clients).await;
        let (to_kinesis, to_dynamodb) =
            (Connections::new(http_clients.clone()), Connections::new(http_clients.clone()));
        let clock = Arc::new(WatchedClock::new(Arc::new(SystemClock::new()), TimeBounds::DISTRIBUTED.clock_skew_max));
        let mut kinesis = aws_sdk_kinesis::config::Builder::from(&shared)
            .http_client(to_kinesis.client())
            .interceptor(ReadDate(clock.clone()))
            .interceptor(RefuseEmpty)
            .interceptor(AbandonStalled(to_kinesis));
        if let Some(endpoint) = &config.kinesis_endpoint {
            kinesis = kinesis.endpoint_url(endpoint);
        }
        let mut dynamodb = aws_sdk_dynamodb::config::Builder::from(&shared)
            .http_client(to_dynamodb.client())
            .interceptor(ReadDate(clock.clone()))
            .interceptor(RefuseEmpty)
            .interceptor(AbandonStalled(to_dynamodb));
        if let Some(endpoint) = &config.dynamodb_endpoint {
            dynamodb = dynamodb.endpoint_url(endpoint);
        }
        Self {
            kinesis: aws_sdk_kinesis::Client::from_conf(kinesis.build()),
            dynamodb: aws_sdk_dynamodb::Client::from_conf(dynamodb.build()),
            clock,
            http_clients,
        }
    }
}

async fn sdk_config(config: &AwsConfig, http_clients: &HttpClients) -> SdkConfig {
    let call = if config.call_timeout.is_zero() { CALL_TIMEOUT } else { config.call_timeout };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT.min(call))
        .operation_attempt_timeout(call)
        .operation_timeout(call)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        // An idle subscription is not a stalled download. Calls have their own time limit.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // For credentials. Each service gets clients of its own.
        .http_client(http_clients.one());
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(credentials) = &config.credentials {
        loader = loader.credentials_provider(credentials.clone());
    }
    loader.load().await
}

/// What effect a failed call may have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No effect; a later try may work.
    Refused,
    /// No effect; AWS does not take who calls for somebody who may. It says so of good credentials, too, a few times a day
    /// among millions of calls, and while a change of permissions is on its way: a later try may work.
    Unauthorized,
    /// No effect; a later try fails, too.
    Permanent,
    /// The effect is unknown.
    Unknown,
}

impl Verdict {
    /// Judges an error code of AWS. Codes: "Common errors" and the errors of each operation in the API references of
    /// Kinesis and DynamoDB.
    pub(crate) fn of_code(code: &str, status: Option<u16>) -> Self {
        match code {
            // AWS refused the request for its rate, or before it read the request.
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "LimitExceededException"
            | "KMSThrottlingException"
            | "ResourceInUseException"
            | "TransactionInProgressException"
            | "ExpiredIteratorException"
            | "ExpiredNextTokenException" => Self::Refused,
            // Who calls, and whether they may ("Common errors", and DynamoDB's "Error handling"). Newer services end their names
            // with "Exception", older ones do not.
            "AccessDenied"
            | "AccessDeniedException"
            | "AuthFailure"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "KMSAccessDeniedException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "NotAuthorized"
            | "RequestExpired"
            | "SignatureDoesNotMatch"
            | "UnrecognizedClientException" => Self::Unauthorized,
            "InternalFailure"
            | "InternalFailureException"
            | "InternalServerError"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
            | "RequestTimeout" => Self::Unknown,
            _ if status.is_none_or(|status| status >= 500) => Self::Unknown,
            _ => Self::Permanent,
        }
    }

    /// The error of this verdict.
    pub(crate) fn error(self, message: impl Into<String>) -> PortError {
        match self {
            Self::Refused | Self::Unauthorized => PortError::refused(message),
            Self::Permanent => PortError::permanent(message),
            Self::Unknown => PortError::unknown(message),
        }
    }
}

/// A failed call, for callers inside the adapter who want to know more than a port tells.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What effect the call may have had.
    pub(crate) verdict: Verdict,
    /// What happened, for logs.
    pub(crate) message: String,
}

impl Failure {
    /// What a failed call means. `what` names the call for logs.
    pub(crate) fn of<E>(what: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let verdict = judge(error, status);
        if verdict == Verdict::Unauthorized {
            metrics::engine_unauthorized();
        }
        Self { verdict, message: describe(what, error) }
    }

    pub(crate) fn new(verdict: Verdict, message: impl Into<String>) -> Self {
        Self { verdict, message: message.into() }
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        let verdict = match error.effect {
            _ if !error.retryable => Verdict::Permanent,
            Effect::None => Verdict::Refused,
            Effect::Unknown => Verdict::Unknown,
        };
        Self { verdict, message: error.message }
    }
}

impl From<Failure> for PortError {
    fn from(failure: Failure) -> Self {
        failure.verdict.error(failure.message)
    }
}

/// What a failed call means to those who use the port. `what` names the call for logs.
pub(crate) fn port_error<E>(what: &str, error: &SdkError<E, HttpResponse>) -> PortError
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    Failure::of(what, error).into()
}

/// Like [`port_error`], for errors of any answer type: events of a stream have no HTTP status.
pub(crate) fn judge<E, R>(error: &SdkError<E, R>, status: Option<u16>) -> Verdict
where
    E: ProvideErrorMetadata + StdError + 'static,
    R: std::fmt::Debug,
{
    match error {
        SdkError::ConstructionFailure(_) => Verdict::Permanent,
        // Only a call that failed before or while connecting was certainly not sent.
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(cause) if chain(cause).any(|cause| cause.is::<CredentialsError>()) => Verdict::Unauthorized,
            Some(cause) if chain(cause).any(did_not_connect) => Verdict::Refused,
            _ => Verdict::Unknown,
        },
        SdkError::ServiceError(service) => match service.err().code() {
            Some(code) => Verdict::of_code(code, status),
            // Stand-ins and proxies between us and AWS answer without a code. With a status below 400 the call took
            // place, but its answer was cut off and cannot be read.
            None if status.is_some_and(|status| (400..500).contains(&status) && status != 429 && status != 408) => {
                Verdict::Permanent
            }
            None => Verdict::Unknown,
        },
        // `_` stands for errors that later versions of the SDK may add.
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) | _ => Verdict::Unknown,
    }
}

fn did_not_connect(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect())
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The error in words: the code and message from AWS if there are any, otherwise the chain of causes.
pub(crate) fn describe<E, R>(what: &str, error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata + StdError + 'static,
    R: std::fmt::Debug + 'static,
{
    let mut text = format!("{what}: ");
    if let SdkError::ServiceError(service) = error
        && let Some(code) = service.err().code()
    {
        text += code;
        if let Some(message) = service.err().message() {
            text.push_str(": ");
            text.push_str(message);
        }
        return text;
    }
    for (at, cause) in chain(error).enumerate() {
        // Writing to a string cannot fail.
        write!(text, "{}{cause}", if at == 0 { "" } else { ": " }).ok();
    }
    text
}
