//! Attributes of items: how values are written, and how they are read back.
//!
//! Must never panic on a stored item, whatever it holds. A damaged item is an error that names the attribute.

use std::{collections::HashMap, str::FromStr};

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use votestream_core::{SequenceNumber, Timestamp, port::PortError};

/// An item in the SDK's form.
pub(super) type Item = HashMap<String, AttributeValue>;

/// Largest item (Amazon DynamoDB Developer Guide, "Quotas and limits").
pub(super) const ITEM_BYTES_MAX: usize = 400_000;

pub(super) fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub(super) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(super) fn time(value: Timestamp) -> AttributeValue {
    number(value.0)
}

pub(super) fn binary(bytes: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

pub(super) fn sequence(value: SequenceNumber) -> AttributeValue {
    binary(value.to_bytes())
}

/// A stored item is not what was written. A retry does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attribute {attribute:?} is missing or damaged")]
pub(super) struct Damaged {
    attribute: String,
}

impl Damaged {
    pub(super) fn at(attribute: &str) -> Self {
        Self { attribute: attribute.to_owned() }
    }

    /// The error for callers; `table` names where the item was found.
    pub(super) fn in_table(self, table: &str) -> PortError {
        PortError::permanent(format!("table {table} holds an item that cannot be read: {self}"))
    }
}

/// Reads the attributes of an item.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a Item);

impl<'a> Reader<'a> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn required<T>(&self, name: &str, read: impl FnOnce(&'a AttributeValue) -> Option<T>) -> Result<T, Damaged> {
        self.0.get(name).and_then(read).ok_or_else(|| Damaged::at(name))
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str, Damaged> {
        self.required(name, |value| value.as_s().ok().map(String::as_str))
    }

    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&'a str>, Damaged> {
        if self.has(name) { self.text(name).map(Some) } else { Ok(None) }
    }

    pub(super) fn number<T: FromStr>(&self, name: &str) -> Result<T, Damaged> {
        self.required(name, as_number)
    }

    pub(super) fn time(&self, name: &str) -> Result<Timestamp, Damaged> {
        self.number(name).map(Timestamp)
    }

    pub(super) fn bool(&self, name: &str) -> Result<bool, Damaged> {
        self.required(name, |value| value.as_bool().ok().copied())
    }

    pub(super) fn binary(&self, name: &str) -> Result<&'a [u8], Damaged> {
        self.required(name, |value| value.as_b().ok().map(AsRef::as_ref))
    }

    pub(super) fn bytes<const N: usize>(&self, name: &str) -> Result<[u8; N], Damaged> {
        self.binary(name)?.try_into().map_err(|_| Damaged::at(name))
    }

    pub(super) fn sequence(&self, name: &str) -> Result<SequenceNumber, Damaged> {
        self.bytes(name).map(SequenceNumber::from_bytes)
    }

    pub(super) fn optional_sequence(&self, name: &str) -> Result<Option<SequenceNumber>, Damaged> {
        if self.has(name) { self.sequence(name).map(Some) } else { Ok(None) }
    }

    /// A list. `read` converts each entry.
    pub(super) fn list<T>(
        &self,
        name: &str,
        read: impl FnMut(&'a AttributeValue) -> Option<T>,
    ) -> Result<Vec<T>, Damaged> {
        self.required(name, |value| value.as_l().ok()?.iter().map(read).collect())
    }
}

/// A number of any width up to 38 digits.
pub(super) fn as_number<T: FromStr>(value: &AttributeValue) -> Option<T> {
    value.as_n().ok()?.parse().ok()
}
