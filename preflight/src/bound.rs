//! Bounds what is read of an answer.
//!
//! Must never change an answer that is within the bound. The SDK reads an answer to its end, however long it is, and what
//! answers may be a proxy or a wrong endpoint.

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeDeserializationInterceptorContextMut},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{body::SdkBody, config_bag::ConfigBag};
use http_body_util::Limited;

/// Most bytes of an answer. The longest, a table or a service with its events, has some tens of kB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Fails calls whose answer is longer than that.
#[derive(Debug)]
pub(crate) struct Bound;

impl Intercept for Bound {
    fn name(&self) -> &'static str {
        "Bound"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(whole, ANSWER_BYTES_MAX));
        Ok(())
    }
}
