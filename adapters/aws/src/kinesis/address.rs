//! How calls name the stream.
//!
//! Must never send both forms: some stand-ins refuse that, and AWS needs only one.

use std::{fmt, sync::Arc};

/// The stream's name, within the account and the region of the caller, or its ARN, which may be of another account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StreamAddress {
    /// For the parameter `StreamName`.
    Name(Arc<str>),
    /// For the parameter `StreamARN`, with its region.
    Arn { arn: Arc<str>, region: Arc<str> },
}

impl StreamAddress {
    /// Reads a name, or an ARN: `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME`.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if !text.starts_with("arn:") {
            return Ok(Self::Name(text.into()));
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        match parts[..] {
            [_, partition, "kinesis", region, account, resource]
                if !partition.is_empty()
                    && !region.is_empty()
                    && account.len() == 12
                    && resource.strip_prefix("stream/").is_some_and(|name| !name.is_empty() && !name.contains('/')) =>
            {
                Ok(Self::Arn { arn: text.into(), region: region.into() })
            }
            _ => Err(format!("{text:?} is not the ARN of a stream, arn:aws:kinesis:REGION:ACCOUNT:stream/NAME")),
        }
    }

    /// The region that an ARN names.
    pub(super) fn region(&self) -> Option<&str> {
        match self {
            Self::Name(_) => None,
            Self::Arn { region, .. } => Some(region),
        }
    }

    /// The parameter `StreamName`.
    pub(super) fn name(&self) -> Option<String> {
        match self {
            Self::Name(name) => Some(name.to_string()),
            Self::Arn { .. } => None,
        }
    }

    /// The parameter `StreamARN`.
    pub(super) fn arn(&self) -> Option<String> {
        match self {
            Self::Name(_) => None,
            Self::Arn { arn, .. } => Some(arn.to_string()),
        }
    }
}

impl fmt::Display for StreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) | Self::Arn { arn: text, .. } => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_a_name_or_an_arn() {
        let named = StreamAddress::new("votes").unwrap();
        assert_eq!((named.name(), named.arn(), named.region()), (Some("votes".into()), None, None));
        for arn in [
            "arn:aws:kinesis:eu-west-1:123456789012:stream/votes",
            "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/v",
        ] {
            let stream = StreamAddress::new(arn).unwrap();
            assert_eq!((stream.name(), stream.arn()), (None, Some(arn.into())));
            assert_eq!(stream.region(), arn.split(':').nth(3));
            assert_eq!(stream.to_string(), arn);
        }
        for wrong in [
            "arn:aws:dynamodb:eu-west-1:123456789012:table/votes",
            "arn:aws:kinesis:eu-west-1:123456789012:votes",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/votes/consumer/a:1",
            "arn:aws:kinesis::123456789012:stream/votes",
            "arn:aws:kinesis:eu-west-1:1234:stream/votes",
            "arn:",
        ] {
            assert!(StreamAddress::new(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
