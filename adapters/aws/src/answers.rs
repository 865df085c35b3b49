//! Refuses answers without content to calls that ask for some.
//!
//! Must never change a request or an answer. A proxy or a load balancer on the way can answer 200 with nothing in it. The SDK
//! reads that as an answer in which every field has its default: no record and no next iterator, which is the end of a shard;
//! no item, which is a poll that does not exist; no page, which is a recount of zero.

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::AfterDeserializationInterceptorContextRef},
        orchestrator::Metadata,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;

/// Operations whose answer has no content by their documentation (Kinesis API Reference). The others of both services answer
/// with a JSON object.
const WITHOUT_CONTENT: [&str; 5] =
    ["CreateStream", "DeleteStream", "DeregisterStreamConsumer", "MergeShards", "SplitShard"];

/// Refuses answers that are empty.
#[derive(Debug)]
pub(crate) struct RefuseEmpty;

impl Intercept for RefuseEmpty {
    fn name(&self) -> &'static str {
        "RefuseEmpty"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        // A subscription's answer is a stream, whose bytes are not there yet.
        let is_empty = response.body().bytes().is_some_and(<[u8]>::is_empty);
        let has_none = |call: &Metadata| WITHOUT_CONTENT.contains(&call.name());
        if response.status().is_success() && is_empty && !call.load::<Metadata>().is_some_and(has_none) {
            return Err("the answer is empty".into());
        }
        Ok(())
    }
}
