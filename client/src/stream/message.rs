//! Messages of votes that are being built.

use tokio::time::Instant;
use votestream_proto::{ReceivedVotes, VotesMessage};

use crate::Vote;

/// Room for a vote with a 36-character user id, in bytes.
const VOTE_BYTES: usize = 64;

/// A message to send.
#[derive(Debug)]
pub struct Outgoing<T> {
    /// The votes.
    pub message: VotesMessage,
    /// How many.
    pub votes: u64,
    /// When it should have been sent, if that was planned: a message that had to wait for earlier ones was slow all the same.
    pub due: Option<Instant>,
    /// What the observer knows the message by.
    pub tag: T,
}

/// A message that is filled vote by vote.
#[derive(Debug, Default)]
pub struct MessageBuilder {
    message: VotesMessage,
    votes: u64,
}

impl MessageBuilder {
    /// An empty message with room for so many votes of 36-character user ids.
    pub fn new(votes: usize) -> Self {
        Self { message: VotesMessage::with_capacity(votes * VOTE_BYTES), votes: 0 }
    }

    /// Adds a vote.
    pub fn push(&mut self, vote: Vote<'_>) {
        self.message.push(vote.poll_id, vote.user_id, vote.option_id);
        self.votes += 1;
    }

    /// Votes in it.
    pub fn votes(&self) -> u64 {
        self.votes
    }

    /// Its size on the wire, in bytes.
    pub fn bytes(&self) -> usize {
        self.message.wire_len()
    }

    /// The message, due at this moment if that was planned.
    pub fn finish<T>(self, due: Option<Instant>, tag: T) -> Outgoing<T> {
        Outgoing { message: self.message, votes: self.votes, due, tag }
    }
}
