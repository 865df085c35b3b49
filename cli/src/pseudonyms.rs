//! The keys of pseudonyms on one machine.
//!
//! Owns the key file of a data directory, which is made when a stack first starts there. Must never replace a file that
//! is there, whatever is wrong with it: a lost key cannot be made again.

use std::{io, path::Path};

use ring::rand::{SecureRandom, SystemRandom};
use votestream_core::{
    KeyId, PollId, PseudonymKeys,
    model::pseudonym::{KEY_BYTES, PseudonymKey},
    port::{PollStore, PortError},
};
use votestream_embedded::PSEUDONYM_KEYS;
use votestream_process::config::pseudonyms::{self, KeyFileError, KeySource};

use crate::failure::Failure;

/// Polls of one call to the store.
const PAGE: usize = 100;
/// Most polls that are looked at for missing keys. An operator is warned by the first.
const POLLS_MAX: usize = 10_000;

/// Where a stack takes its keys from.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    /// From its data directory, where they are made if there are none.
    Directory,
    /// From another file, or from nowhere. Polls that were created before have their keys from the data directory.
    Given(PseudonymKeys),
}

impl Keys {
    /// Reads the keys that the flag names.
    pub(crate) fn of(flag: Option<&str>) -> Result<Self, Failure> {
        match flag.map(KeySource::from) {
            None => Ok(Self::Directory),
            Some(KeySource::None) => Ok(Self::Given(PseudonymKeys::default())),
            Some(KeySource::File(path)) => read(&path).map(Self::Given),
        }
    }

    /// The keys of a stack on this data directory, which this process has open.
    pub(crate) fn on(self, directory: &Path) -> Result<PseudonymKeys, Failure> {
        let path = directory.join(PSEUDONYM_KEYS);
        let stored = match pseudonyms::read(&path) {
            Err(KeyFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failure(&path, &error)),
            Ok(keys) => Some(keys),
        };
        match (self, stored) {
            (Self::Directory, Some(stored)) => Ok(stored),
            (Self::Given(given), stored) => Ok(given.with_others(&stored.unwrap_or_default())),
            (Self::Directory, None) => {
                let key = new_key()?;
                pseudonyms::write(&path, &key)
                    .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
                Ok(PseudonymKeys::new([key]))
            }
        }
    }
}

fn new_key() -> Result<PseudonymKey, Failure> {
    let mut bytes = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Failure::failed("the system gives no random bytes for a key"))?;
    Ok(PseudonymKey::new(bytes))
}

/// Reads a file with keys.
pub(crate) fn read(path: &Path) -> Result<PseudonymKeys, Failure> {
    pseudonyms::read(path).map_err(|error| failure(path, &error))
}

fn failure(path: &Path, error: &KeyFileError) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()))
}

/// Polls that are not final and whose key is not there, with the key. Their votes are refused.
pub(crate) async fn missing(polls: &dyn PollStore, keys: &PseudonymKeys) -> Result<Vec<(PollId, KeyId)>, PortError> {
    let (mut missing, mut after, mut seen) = (Vec::new(), None, 0);
    loop {
        let page = polls.list(after.as_ref(), PAGE).await?;
        seen += page.len();
        let is_last = page.len() < PAGE || seen >= POLLS_MAX;
        after = page.last().map(|poll| poll.id.clone());
        missing.extend(page.into_iter().filter(|poll| poll.final_result.is_none()).filter_map(|poll| {
            let key = poll.pseudonym_key.filter(|key| keys.get(*key).is_none())?;
            Some((poll.id, key))
        }));
        if is_last {
            return Ok(missing);
        }
    }
}
