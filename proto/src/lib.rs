//! The gRPC API of Votestream, package `votestream.v1`.
//!
//! Owns the wire format: the generated messages and services, the descriptors for server reflection, and
//! [`ReceivedVotes`], which are read in place instead of copying every string. Must never hold a rule of the domain:
//! `votestream-core` decides what a valid vote is. Only the services use these types.

mod codec;
mod frames;
#[cfg(feature = "json")]
pub mod json;
mod votes;

pub use codec::SmallBufferCodec;
pub use frames::{FrameError, FrameReader, Frames};
pub use votes::{MalformedMessage, ReceivedVotes, VoteBytes, VotesMessage};

/// Generated from `votestream/v1/*.proto` by `tests/generated.rs`; the documentation of every field is there.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::missing_errors_doc)]
pub mod v1 {
    include!("../generated/votestream.v1.rs");
}

/// The encoded `FileDescriptorSet` of the API, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("../generated/descriptors.bin");
