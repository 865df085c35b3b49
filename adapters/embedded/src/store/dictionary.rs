//! Short numbers for polls and their options, so that a stored vote needs neither id.
//!
//! Owns the numbering. A poll gets a number at its first vote. Its options are numbered in the order of their first
//! votes. Must never change a number. Must never let a vote be stored before its numbers: a flush writes both.
//!
//! Value in the keyspace `numbers`, under the poll's id: number u32, number of options u32, then each option.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use fjall::Keyspace;
use votestream_core::{PollId, port::PortError};

use super::{
    Inner,
    flush::{Change, Target},
    moments::is_mark,
};
use crate::codec::{Corrupt, Decoder, Encoder};

/// Largest number of a poll: a key holds the number and one bit, and the keys of the largest number are not used for
/// votes.
const POLL_MAX: u32 = (u32::MAX >> 1) - 1;

/// All numbers.
#[derive(Default)]
pub(super) struct Dictionary {
    polls: HashMap<Arc<str>, u32>,
    /// Options of each numbered poll.
    options: HashMap<u32, Options>,
    /// Polls whose numbers have changed since they were stored.
    changed: BTreeSet<Arc<str>>,
}

/// The numbered options of a poll.
#[derive(Default)]
pub(super) struct Options {
    list: Vec<Arc<str>>,
    places: HashMap<Arc<str>, u16>,
}

impl Options {
    fn new(list: Vec<Arc<str>>) -> Result<Self, Corrupt> {
        let places = list.iter().enumerate().map(|(at, id)| Ok((id.clone(), u16::try_from(at).map_err(|_| Corrupt)?)));
        Ok(Self { places: places.collect::<Result<_, _>>()?, list })
    }

    /// The number of an option.
    pub(super) fn number(&self, id: &str) -> Option<u16> {
        self.places.get(id).copied()
    }

    /// The option with a stored number.
    pub(super) fn id(&self, number: u16) -> Result<&Arc<str>, PortError> {
        self.list.get(usize::from(number)).ok_or_else(|| Corrupt.in_a("vote: its option has no number"))
    }
}

impl Dictionary {
    /// Reads all numbers.
    pub(super) fn load(numbers: &Keyspace) -> Result<Self, LoadError> {
        let mut loaded = Self::default();
        for guard in numbers.iter() {
            let (poll, value) = guard.into_inner().map_err(LoadError::Database)?;
            if is_mark(&poll) {
                continue;
            }
            let damaged = || LoadError::Damaged(format!("number of poll {:?}", String::from_utf8_lossy(&poll)));
            let (number, options) = decode(&value).map_err(|_| damaged())?;
            let poll = std::str::from_utf8(&poll).map_err(|_| damaged())?;
            loaded.polls.insert(poll.into(), number);
            if loaded.options.insert(number, options).is_some() {
                return Err(damaged());
            }
        }
        Ok(loaded)
    }

    /// Takes the changed numbers, in their stored form.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        let changed = std::mem::take(&mut self.changed);
        let change = |poll: Arc<str>| {
            let number = *self.polls.get(&poll)?;
            let value = encode(number, &self.options.get(&number)?.list);
            Some(Change { target: Target::Dictionary, key: poll.as_bytes().to_vec(), value })
        };
        changed.into_iter().filter_map(change).collect()
    }

    /// The number that the next poll gets. Polls are never deleted, so there are no gaps.
    pub(super) fn next(&self) -> u32 {
        self.polls.len() as u32
    }

    /// A poll's number.
    pub(super) fn poll(&self, poll: &PollId) -> Option<u32> {
        self.polls.get(poll.as_str()).copied()
    }

    /// The options of a numbered poll.
    pub(super) fn options(&self, poll: u32) -> Result<&Options, PortError> {
        self.options.get(&poll).ok_or_else(|| Corrupt.in_a("vote: its poll has no number"))
    }
}

/// Why the numbers could not be read.
pub(super) enum LoadError {
    Database(fjall::Error),
    Damaged(String),
}

fn encode(number: u32, options: &[Arc<str>]) -> Vec<u8> {
    let mut value = Encoder::default();
    value.u32(number).u32(options.len() as u32);
    for option in options {
        value.text(option);
    }
    value.0
}

fn decode(value: &[u8]) -> Result<(u32, Options), Corrupt> {
    let mut value = Decoder(value);
    let number = value.u32()?;
    let options = Options::new(value.list(Decoder::shared_text)?)?;
    value.end()?;
    Ok((number, options))
}

impl Inner {
    /// Numbers a poll and one of its options, unless they have numbers.
    pub(super) fn number(&self, poll: &PollId, option: &Arc<str>) -> Result<(), PortError> {
        let mut numbers = self.numbers.write();
        let number = match numbers.poll(poll) {
            Some(number) => number,
            None => numbers.next(),
        };
        let known = numbers.options.get(&number);
        if known.is_some_and(|known| known.number(option).is_some()) {
            return Ok(());
        }
        let mut list = known.map(|known| known.list.clone()).unwrap_or_default();
        list.push(option.clone());
        let full = |_| PortError::permanent(format!("poll {poll} holds votes for too many options"));
        let options = Options::new(list).map_err(full)?;
        if number > POLL_MAX {
            return Err(PortError::permanent("the embedded store holds votes of too many polls"));
        }
        let poll: Arc<str> = poll.as_str().into();
        numbers.polls.insert(poll.clone(), number);
        numbers.changed.insert(poll);
        numbers.options.insert(number, options);
        Ok(())
    }
}
