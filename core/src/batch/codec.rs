//! Placeholder.
use super::RecordBody;
use bytes::Bytes;
/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);
/// Reads a record.
pub fn decode(_data: &[u8]) -> Result<RecordBody, DecodeError> {
    Err(DecodeError(String::new()))
}
/// A marker record.
pub fn encode_marker() -> Bytes {
    Bytes::new()
}
