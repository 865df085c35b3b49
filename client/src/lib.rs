//! The Rust client of Votestream: connects, casts votes, streams them, and reads results.
//!
//! Owns what every client of the API has to get right: time-outs, which failures may be repeated, and the order of votes that
//! are sent again. Must never say that a vote is durable before the service has said so, never repeat a single vote that may
//! have been stored, and never keep more in memory than its settings allow.
//!
//! - [`Client`] connects to both services, [`ClientBuilder`] has the settings.
//! - [`IngestClient::cast`] casts one vote.
//! - [`IngestClient::stream_votes`] casts votes as they come: [`VoteSender`] takes them, [`Outcomes`] has exactly one outcome
//!   for each. It reconnects by itself.
//! - [`IngestClient::stream_messages`] sends whole messages that the caller has built, for programs that have many votes at
//!   hand.
//! - [`Dialer`] opens bare connections for programs that act for many clients, each with a connection of its own.
//! - [`ResultsClient`] creates, reads and closes polls, and reads or watches results.
//!
//! The folder `examples` has a short program for each of the first three.

mod address;
mod cast;
mod connect;
mod dial;
mod error;
mod outcome;
mod results;
mod retry;
mod status;
mod stream;
mod tls;
mod token;
mod watch;

pub use address::{Address, AddressError};
pub use connect::{CALL_TIMEOUT, CONNECT_TIMEOUT, Client, ClientBuilder, IngestClient, KEEP_ALIVE, ResultsClient};
pub use dial::{DialError, Dialed, Dialer, Http, Transport};
pub use error::{ClientError, Service};
pub use outcome::{Cause, Outcome, Vote};
pub use retry::Retry;
pub use stream::{
    COPIES_LAND_WITHIN, Ended, MessageBuilder, Observer, Outcomes, Outgoing, SOURCE_MESSAGES_MAX, StreamOptions,
    StreamOver, UNSETTLED_BYTES_MAX, UNSETTLED_VOTES_MAX, Unsettled, VOTE_BYTES_MAX, VoteSender,
};
pub use token::{Token, TokenError};
/// A message of votes.
pub use votestream_proto::VotesMessage;
/// The messages as JSON.
#[cfg(feature = "json")]
pub use votestream_proto::json;
/// The generated messages of the API, for requests and answers.
pub use votestream_proto::v1;
pub use watch::Watch;
