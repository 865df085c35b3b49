//! Reads the time in each answer of AWS, so that a wrong clock of this machine is noticed.
//!
//! Must never change a request or fail a call. An answer without a time is ignored.

use std::sync::Arc;

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept,
            context::{BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef},
        },
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    DateTime,
    config_bag::{ConfigBag, Storable, StoreReplace},
    date_time::Format,
};
use votestream_core::{Clock, Timestamp, clock::WatchedClock};

/// Reads the `Date` of every answer.
#[derive(Debug)]
pub(crate) struct ReadDate(pub(crate) Arc<WatchedClock>);

/// The time on our clock when the request was sent.
#[derive(Debug)]
struct SentAt(Timestamp);

impl Storable for SentAt {
    type Storer = StoreReplace<Self>;
}

impl Intercept for ReadDate {
    fn name(&self) -> &'static str {
        "ReadDate"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        call.interceptor_state().store_put(SentAt(self.0.now()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(parse);
        if let (Some(date), Some(SentAt(sent_at))) = (date, call.load::<SentAt>()) {
            self.0.answered(*sent_at, date);
        }
        Ok(())
    }
}

fn parse(date: &str) -> Option<Timestamp> {
    Some(Timestamp(DateTime::from_str(date, Format::HttpDate).ok()?.secs().checked_mul(1_000)?))
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::client::{
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
            SharedHttpConnector,
        },
        orchestrator::{HttpRequest, HttpResponse},
    };
    use aws_smithy_types::body::SdkBody;
    use votestream_core::clock::wall_clock;

    use super::*;
    use crate::client::{AwsConfig, Clients};

    /// Answers every call with an error and a time that is this many seconds ahead of this machine.
    #[derive(Clone, Debug)]
    struct Dated(i64);

    impl HttpConnector for Dated {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            let date = DateTime::from_secs(wall_clock().0 / 1_000 + self.0).fmt(Format::HttpDate).unwrap();
            let mut response = HttpResponse::new(400.try_into().unwrap(), SdkBody::from("{}"));
            response.headers_mut().insert("date", date);
            HttpConnectorFuture::new(async move { Ok(response) })
        }
    }

    impl HttpClient for Dated {
        fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
            SharedHttpConnector::new(self.clone())
        }
    }

    #[tokio::test]
    async fn the_answers_of_both_services_are_compared_with_our_clock() {
        for (ahead, trusted) in [(0, true), (3_600, false), (-3_600, false)] {
            for kinesis in [true, false] {
                let http_client = Some(SharedHttpClient::new(Dated(ahead)));
                let clients = Clients::new(&AwsConfig { http_client, ..AwsConfig::stand_in() }).await;
                assert!(clients.clock.is_trusted());
                match kinesis {
                    true => drop(clients.kinesis.list_streams().send().await.unwrap_err()),
                    false => drop(clients.dynamodb.list_tables().send().await.unwrap_err()),
                }
                assert_eq!(clients.clock.is_trusted(), trusted, "{ahead} s, Kinesis: {kinesis}");
            }
        }
    }

    #[test]
    fn dates_are_read_as_http_writes_them() {
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Timestamp(784_111_777_000)));
        assert_eq!(parse("yesterday"), None);
    }
}
