//! Tally arithmetic: from a window to what it adds, and from stored tallies to results.
//!
//! Owns which outcome of storing a vote changes which sum. Must stay pure: everything here depends only on the window
//! and on stored facts, so that a window that is applied again adds the same.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    Poll, PollId, Position,
    consume::window::{Selected, Window},
    model::routing,
    port::{Group, PortError, TallyDelta, TallyRow, VoteOutcome, VoteWrite},
    record::batch::Batch,
};

/// The votes that a window stores: the last one of each (poll, user).
///
/// # Errors
///
/// If a selected vote names a poll that the window does not carry, which the window's builder rules out.
pub fn last_votes<'a>(window: &'a Window) -> Result<Vec<VoteWrite<'a>>, PortError> {
    let polls: HashMap<&PollId, u32> = window.polls.iter().map(|poll| &poll.id).zip(0..).collect();
    let votes = window.selected.iter().map(Selected::len).sum();
    let mut last: Vec<(&'a Selected, u32, u32)> = Vec::with_capacity(votes);
    // Places in `last`, by a hash of user and poll. Users choose their ids, so the hash has a seed that they cannot
    // know. The seed changes only how long this takes, never the result.
    let seed = RandomState::new().hash_one(());
    let mut known: HashTable<(u64, u32)> = HashTable::with_capacity(votes);
    for selected in &window.selected {
        // Looked up once per dictionary entry, not once per vote.
        let entries: Vec<_> = selected.batch.dictionary.iter().map(|(poll, _)| polls.get(poll).copied()).collect();
        for index in selected.indices() {
            let poll = entries[selected.batch.choices[index] as usize]
                .ok_or_else(|| PortError::permanent("a selected vote names a poll that its window does not carry"))?;
            let vote = (selected, index as u32, poll);
            let user_id = selected.batch.user_id(index);
            let hash = xxh3_64_with_seed(user_id.as_bytes(), seed.wrapping_add(u64::from(poll)));
            let same = |&(other, place): &(u64, u32)| {
                let (of, at, in_poll) = last[place as usize];
                other == hash && in_poll == poll && of.batch.user_id(at as usize) == user_id
            };
            match known.entry(hash, same, |&(hash, _)| hash) {
                Entry::Occupied(place) => last[place.get().1 as usize] = vote,
                Entry::Vacant(slot) => {
                    slot.insert((hash, last.len() as u32));
                    last.push(vote);
                }
            }
        }
    }
    let write = |(selected, index, poll): (&'a Selected, u32, u32)| {
        let (batch, poll) = (&selected.batch, &window.polls[poll as usize]);
        let user_id = batch.user_id(index as usize);
        VoteWrite {
            poll_id: Cow::Borrowed(&poll.id),
            bucket: routing::bucket(user_id, poll.buckets),
            user_id: Cow::Borrowed(user_id),
            option_id: batch.dictionary[batch.choices[index as usize] as usize].1.clone(),
            position: Position { sequence: selected.sequence, index },
            accepted_at: batch.accepted_at[index as usize],
        }
    };
    Ok(last.into_iter().map(write).collect())
}

/// What the votes of one window add to `counted`, collected while they are being stored.
#[derive(Debug)]
pub struct Counted<'a> {
    polls: FxHashMap<&'a PollId, FxHashMap<Arc<str>, i64>>,
    superseded: BTreeSet<PollId>,
}

impl<'a> Counted<'a> {
    /// Nothing counted yet, for every poll that the window touches.
    pub fn new(window: &'a Window) -> Self {
        let polls = window.polls.iter().map(|poll| (&poll.id, FxHashMap::default())).collect();
        Self { polls, superseded: BTreeSet::new() }
    }

    /// Adds the outcomes of `writes`. There must be one outcome for each write.
    ///
    /// # Errors
    ///
    /// If the store answered with another number of outcomes: the sums would be wrong.
    pub fn add(&mut self, writes: &[VoteWrite<'_>], outcomes: &[VoteOutcome]) -> Result<(), PortError> {
        if writes.len() != outcomes.len() {
            let (sent, answered) = (writes.len(), outcomes.len());
            return Err(PortError::permanent(format!("{sent} votes were written, {answered} outcomes came back")));
        }
        for (write, outcome) in writes.iter().zip(outcomes) {
            let previous = match outcome {
                VoteOutcome::Inserted => None,
                VoteOutcome::Replaced { previous } => Some(previous),
                // What the earlier attempt did, as the stored vote shows it.
                VoteOutcome::AlreadyStored { previous } => previous.as_ref(),
                VoteOutcome::Superseded => {
                    self.superseded.insert(write.poll_id.clone().into_owned());
                    continue;
                }
            };
            let Some(counts) = self.polls.get_mut(&*write.poll_id) else {
                return Err(PortError::permanent("a stored vote names a poll that its window does not carry"));
            };
            move_sum(counts, &write.option_id, 1);
            if let Some(previous) = previous {
                move_sum(counts, previous, -1);
            }
        }
        Ok(())
    }

    /// Polls with votes that are earlier in the stream than the stored ones. Such votes add nothing.
    pub fn superseded(&self) -> &BTreeSet<PollId> {
        &self.superseded
    }

    /// The deltas, one for every poll that the window touches, in the order of the poll ids.
    pub fn into_deltas(self) -> Vec<TallyDelta> {
        sorted_deltas(self.polls.into_iter().map(|(poll_id, counts)| (poll_id.clone(), counts)))
    }
}

fn move_sum(counts: &mut HashMap<Arc<str>, i64, impl BuildHasher>, option: &Arc<str>, by: i64) {
    match counts.get_mut(option) {
        Some(count) => *count += by,
        None => {
            counts.insert(option.clone(), by);
        }
    }
}

/// Deltas in the order of poll and option ids, without options that add 0. A poll stays even if all its options add 0.
pub fn sorted_deltas<S>(polls: impl IntoIterator<Item = (PollId, HashMap<Arc<str>, i64, S>)>) -> Vec<TallyDelta> {
    let delta = |(poll_id, counts): (PollId, HashMap<Arc<str>, i64, S>)| {
        let mut counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count != 0).collect();
        counts.sort_unstable();
        TallyDelta { poll_id, counts }
    };
    let mut deltas: Vec<_> = polls.into_iter().map(delta).collect();
    deltas.sort_unstable_by(|a, b| a.poll_id.cmp(&b.poll_id));
    deltas
}

/// What the votes of one batch add to `submitted`: every vote counts. One number per dictionary entry.
pub fn submitted(selected: &Selected) -> Vec<i64> {
    let batch: &Batch = &selected.batch;
    let mut counts = vec![0; batch.dictionary.len()];
    match &selected.only {
        None => batch.choices.iter().for_each(|&choice| counts[choice as usize] += 1),
        Some(only) => only.iter().for_each(|&index| counts[batch.choices[index as usize] as usize] += 1),
    }
    counts
}

/// Why stored tallies give no result. None of these can happen while the protocol is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InconsistentTallies {
    /// The sum over all shards is below zero.
    #[error("the {group} tallies of option {option:?} add up to {sum}", group = .group.as_str())]
    Negative {
        /// The group.
        group: Group,
        /// The option.
        option: Arc<str>,
        /// The sum.
        sum: i128,
    },
    /// A tally names an option that the poll does not have.
    #[error("a {group} tally names the option {option:?}, which the poll does not have", group = .group.as_str())]
    UnknownOption {
        /// The group.
        group: Group,
        /// The option.
        option: Arc<str>,
    },
}

/// Sums of a group over all shards, in the poll's order of options. Single tallies may be negative, sums never are.
///
/// # Errors
///
/// If a tally names an option that the poll does not have, or a sum is negative.
pub fn sums(poll: &Poll, group: Group, rows: &[TallyRow]) -> Result<Vec<u64>, InconsistentTallies> {
    let index: HashMap<&str, usize> = poll.options.iter().map(|option| &*option.id).zip(0..).collect();
    let mut sums = vec![0i128; poll.options.len()];
    for (option, count) in rows.iter().filter(|row| row.group == group).flat_map(|row| &row.counts) {
        let Some(&index) = index.get(&**option) else {
            return Err(InconsistentTallies::UnknownOption { group, option: option.clone() });
        };
        sums[index] += i128::from(*count);
    }
    let unsigned = |(sum, option): (i128, &crate::PollOption)| {
        u64::try_from(sum).map_err(|_| InconsistentTallies::Negative { group, option: option.id.clone(), sum })
    };
    sums.into_iter().zip(&poll.options).map(unsigned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::Entry;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        HashRange, PollOption, PollSource, SequenceNumber, ShardId, Timestamp,
        record::batch::{BatchId, OpenBatch},
    };

    const POLLS: [&str; 2] = ["p", "q"];
    const OPTIONS: [&str; 3] = ["x", "y", "z"];

    fn poll(id: &str) -> Poll {
        let options = OPTIONS.map(|id| PollOption { id: id.into(), title: String::new() }).to_vec();
        let (id, opens, closes) = (PollId::new(id).unwrap(), Timestamp(0), Timestamp(9));
        Poll::new(id, String::new(), options, opens, closes, PollSource::Ingest, 5_000).unwrap()
    }

    #[derive(Clone, Debug)]
    struct Vote {
        poll: usize,
        user: u8,
        option: usize,
        counts: bool,
    }

    fn vote() -> impl Strategy<Value = Vote> {
        (0..2usize, 0..6u8, 0..3usize, prop::bool::weighted(0.8)).prop_map(|(poll, user, option, counts)| Vote {
            poll,
            user,
            option,
            counts,
        })
    }

    /// A window of records from `first` on; a vote that does not count is left out of the selection.
    fn window(first: u64, records: &[Vec<Vote>]) -> Window {
        let mut selected = Vec::new();
        for (record, sequence) in records.iter().zip(first..) {
            let mut open = OpenBatch::default();
            for vote in record {
                let entry = open.entry(&PollId::new(POLLS[vote.poll]).unwrap(), &OPTIONS[vote.option].into());
                open.push(entry, &format!("user {}", vote.user), 0, Timestamp(1));
            }
            let only = (0..).zip(record).filter(|(_, vote)| vote.counts).map(|(index, _)| index).collect();
            let id = BatchId { producer: 1, number: sequence };
            let batch = Arc::new(open.to_batch(id, HashRange::ALL.into(), String::new()));
            let only = if record.iter().all(|vote| vote.counts) { None } else { Some(only) };
            selected.push(Selected { sequence: SequenceNumber::from_u64(sequence), batch, only });
        }
        Window {
            shard: ShardId::new("shard"),
            epoch: 1,
            start: SequenceNumber::from_u64(first - 1),
            end: SequenceNumber::from_u64(first + records.len() as u64 - 1),
            selected,
            polls: POLLS.map(|id| Arc::new(poll(id))).to_vec(),
        }
    }

    type StoredVote = (Position, Arc<str>, Option<Arc<str>>);

    /// The contracts of the stores, as maps.
    #[derive(Default)]
    struct Stores {
        votes: HashMap<(PollId, Arc<str>), StoredVote>,
        tallies: HashMap<PollId, (SequenceNumber, HashMap<Arc<str>, i64>)>,
    }

    impl Stores {
        fn write(&mut self, vote: &VoteWrite<'_>) -> VoteOutcome {
            let new = (vote.position, vote.option_id.clone());
            match self.votes.entry(vote.key()) {
                Entry::Vacant(slot) => {
                    slot.insert((new.0, new.1, None));
                    VoteOutcome::Inserted
                }
                Entry::Occupied(mut slot) => match slot.get().0.cmp(&vote.position) {
                    std::cmp::Ordering::Less => {
                        let previous = slot.get().1.clone();
                        slot.insert((new.0, new.1, Some(previous.clone())));
                        VoteOutcome::Replaced { previous }
                    }
                    std::cmp::Ordering::Equal => VoteOutcome::AlreadyStored { previous: slot.get().2.clone() },
                    std::cmp::Ordering::Greater => VoteOutcome::Superseded,
                },
            }
        }

        fn tally(&mut self, end: SequenceNumber, deltas: &[TallyDelta]) {
            for delta in deltas {
                let (position, counts) = self.tallies.entry(delta.poll_id.clone()).or_default();
                if *position < end {
                    *position = end;
                    delta.counts.iter().for_each(|(option, count)| move_sum(counts, option, *count));
                }
            }
        }

        /// Applies a window, but crashes after `votes` votes and `polls` tallies.
        fn apply(&mut self, window: &Window, votes: usize, polls: usize) -> Vec<PollId> {
            let writes = last_votes(window).unwrap();
            let mut counted = Counted::new(window);
            let kept = votes.min(writes.len());
            for write in &writes[..kept] {
                let outcome = self.write(write);
                counted.add(std::slice::from_ref(write), &[outcome]).unwrap();
            }
            let superseded = counted.superseded().iter().cloned().collect::<Vec<_>>();
            if kept == writes.len() && superseded.is_empty() {
                let deltas = counted.into_deltas();
                assert_eq!(deltas.len(), window.polls.len());
                self.tally(window.end, &deltas[..polls.min(deltas.len())]);
            }
            superseded
        }
    }

    proptest! {
        #[test]
        fn counted_is_exact_after_every_window_whatever_crashes(
            windows in prop::collection::vec((
                prop::collection::vec(prop::collection::vec(vote(), 1..5), 1..4),
                prop::collection::vec((0..9usize, 0..3usize), 0..3),
            ), 1..6),
        ) {
            let (mut stores, mut model, mut first) = (Stores::default(), HashMap::new(), 1);
            for (records, crashes) in &windows {
                let window = window(first, records);
                first += records.len() as u64;
                for &(votes, polls) in crashes {
                    prop_assert_eq!(stores.apply(&window, votes, polls), []);
                }
                // The last attempt, and one more by an owner who does not know of it.
                prop_assert_eq!(stores.apply(&window, usize::MAX, usize::MAX), []);
                prop_assert_eq!(stores.apply(&window, usize::MAX, usize::MAX), []);

                for vote in records.iter().flatten().filter(|vote| vote.counts) {
                    model.insert((vote.poll, vote.user), vote.option);
                }
                for (index, id) in POLLS.into_iter().enumerate() {
                    let poll = poll(id);
                    let (position, counts) = stores.tallies[&poll.id].clone();
                    let counts = counts.into_iter().collect();
                    let row = TallyRow { group: Group::Persist, shard: ShardId::new("s"), counts, position };
                    let expected: Vec<u64> = (0..OPTIONS.len())
                        .map(|option| model.iter().filter(|(key, chosen)| key.0 == index && **chosen == option).count())
                        .map(|count| count as u64)
                        .collect();
                    prop_assert_eq!(sums(&poll, Group::Persist, &[row]), Ok(expected));
                }
            }
        }

        #[test]
        fn last_votes_are_one_a_user_and_the_last(records in prop::collection::vec(prop::collection::vec(vote(), 1..9), 1..5)) {
            let window = window(1, &records);
            let mut model = HashMap::new();
            for (record, sequence) in records.iter().zip(1..) {
                for (index, vote) in (0..).zip(record).filter(|(_, vote)| vote.counts) {
                    let position = Position { sequence: SequenceNumber::from_u64(sequence), index };
                    model.insert((POLLS[vote.poll], format!("user {}", vote.user)), (position, OPTIONS[vote.option]));
                }
            }
            let writes = last_votes(&window).unwrap();
            prop_assert_eq!(writes.len(), model.len());
            for write in &writes {
                let (position, option) = model[&(write.poll_id.as_str(), write.user_id.to_string())];
                prop_assert_eq!((write.position, &*write.option_id), (position, option));
                prop_assert_eq!(write.bucket, routing::bucket(&write.user_id, poll(POLLS[0]).buckets));
            }
        }

        #[test]
        fn submitted_counts_every_selected_vote(record in prop::collection::vec(vote(), 1..20)) {
            let window = window(1, std::slice::from_ref(&record));
            let counts = submitted(&window.selected[0]);
            for ((poll, option), count) in window.selected[0].batch.dictionary.iter().zip(counts) {
                let same = |vote: &&Vote| {
                    vote.counts && POLLS[vote.poll] == poll.as_str() && OPTIONS[vote.option] == &**option
                };
                prop_assert_eq!(count, record.iter().filter(same).count() as i64);
            }
        }
    }

    #[test]
    fn an_older_window_is_superseded_and_adds_nothing() {
        let vote = |option| vec![Vote { poll: 0, user: 1, option, counts: true }];
        let mut stores = Stores::default();
        stores.apply(&window(2, &[vote(1)]), usize::MAX, usize::MAX);
        let before = stores.tallies.clone();
        assert_eq!(stores.apply(&window(1, &[vote(0)]), usize::MAX, usize::MAX), [PollId::new("p").unwrap()]);
        assert_eq!(stores.tallies, before);
    }

    #[test]
    fn sums_add_shards_and_refuse_contradictions() {
        let poll = poll("p");
        let row = |group, counts: &[(&str, i64)]| TallyRow {
            group,
            shard: ShardId::new("s"),
            counts: counts.iter().map(|(option, count)| ((*option).into(), *count)).collect(),
            position: SequenceNumber::ZERO,
        };
        let parent = row(Group::Persist, &[("x", 5), ("z", 1)]);
        let child = row(Group::Persist, &[("x", -2), ("y", 2)]);
        let other = row(Group::Tally, &[("x", 100)]);
        assert_eq!(sums(&poll, Group::Persist, &[parent, child.clone(), other]), Ok(vec![3, 2, 1]));
        assert_eq!(
            sums(&poll, Group::Persist, &[child]),
            Err(InconsistentTallies::Negative { group: Group::Persist, option: "x".into(), sum: -2 }),
        );
        assert_eq!(
            sums(&poll, Group::Tally, &[row(Group::Tally, &[("w", 1)])]),
            Err(InconsistentTallies::UnknownOption { group: Group::Tally, option: "w".into() }),
        );
    }
}
