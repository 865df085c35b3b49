//! The account: clients of the services that are asked, and why a call failed.
//!
//! Owns retries and time limits. Must never write.

use std::{error::Error, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::{bound::Bound, clock::Watch, report::Line};

/// Where the account is, and what the deployment is called.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The CDK app's setting `name`.
    pub name: String,
    /// The region; if `None`, that of the environment or the profile.
    pub region: Option<String>,
}

/// How long and how often AWS is asked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for one try.
    pub try_for: Duration,
    /// Tries of a call that is throttled or not answered.
    pub tries: u32,
    /// Pause before the second try, at most; it doubles with each.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { try_for: Duration::from_secs(5), tries: 4, pause: Duration::from_millis(500) }
    }
}

/// Clients of the services that are asked.
#[derive(Debug)]
pub struct Account {
    pub(crate) name: String,
    pub(crate) clock: Watch,
    pub(crate) quotas: aws_sdk_servicequotas::Client,
    pub(crate) kinesis: aws_sdk_kinesis::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) ecs: aws_sdk_ecs::Client,
    pub(crate) balancers: aws_sdk_elasticloadbalancingv2::Client,
    pub(crate) certificates: aws_sdk_acm::Client,
}

impl Account {
    /// The account of the environment or the profile. `None` if no region is set anywhere.
    pub async fn from_environment(options: Options) -> Option<Self> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https(),
        );
        if let Some(region) = options.region {
            loader = loader.region(Region::new(region));
        }
        let config = loader.load().await;
        config.region().is_some_and(|region| !region.as_ref().is_empty()).then_some(())?;
        Some(Self::new(options.name, &config, Limits::default()))
    }

    /// The account of a configuration.
    pub fn new(name: String, config: &SdkConfig, limits: Limits) -> Self {
        let clock = Watch::default();
        let retries = RetryConfig::standard().with_max_attempts(limits.tries).with_initial_backoff(limits.pause);
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(limits.try_for).build();
        let config = config.to_builder().retry_config(retries).timeout_config(timeouts).build();
        // Each service has a configuration of its own, and the clock is read in the answers of all.
        macro_rules! client {
            ($service:ident) => {
                $service::Client::from_conf(
                    $service::config::Builder::from(&config).interceptor(clock.clone()).interceptor(Bound).build(),
                )
            };
        }
        Self {
            name,
            quotas: client!(aws_sdk_servicequotas),
            kinesis: client!(aws_sdk_kinesis),
            dynamodb: client!(aws_sdk_dynamodb),
            ecs: client!(aws_sdk_ecs),
            balancers: client!(aws_sdk_elasticloadbalancingv2),
            certificates: client!(aws_sdk_acm),
            clock,
        }
    }
}

/// The last cause of an error: the others only say that something failed.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

/// The line of a check whose call failed. `action` is what a policy has to allow.
pub(crate) fn unseen<E>(
    what: impl Into<String>,
    needed: impl ToString,
    action: &str,
    error: &SdkError<E, HttpResponse>,
) -> Line
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let status = error.raw_response().map(|response| format!("HTTP {}", response.status().as_u16()));
    let code = error.code().or(status.as_deref()).unwrap_or_default();
    let (found, to_do) = match error {
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => {
            let found = format!("not seen: AWS did not answer ({})", innermost(error));
            let to_do = "look at the region, the credentials and the network, then repeat";
            return Line { unanswered: true, ..Line::no_go(what, found, needed, to_do) };
        }
        _ if code.contains("AccessDenied") || code.contains("NotAuthorized") => {
            (format!("not seen: denied ({code})"), format!("allow {action} to whoever runs this, then repeat"))
        }
        _ if code.contains("Throttl") || code.contains("TooManyRequests") || code.contains("LimitExceeded") => {
            (format!("not seen: throttled ({code})"), "repeat in a minute".to_owned())
        }
        _ if code.contains("NotFound") => {
            (format!("does not exist ({code})"), "deploy it, or give its name by --name".to_owned())
        }
        // `_` stands for errors that later versions of the SDK may add.
        SdkError::ConstructionFailure(_) | SdkError::ResponseError(_) | SdkError::ServiceError(_) | _ => (
            format!("not seen: {code} {}", error.message().unwrap_or_default()).trim_end().to_owned(),
            format!("find out why {action} fails, then repeat"),
        ),
    };
    Line::no_go(what, found, needed, to_do)
}
