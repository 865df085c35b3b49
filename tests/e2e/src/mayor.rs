//! The mayoral election of Minneapolis in 2013, vote by vote: each voter casts the third choice, then the second, then the
//! first, so that the first choices count in the end.
//!
//! Owns the cast vote record and its official result. Must never know how votes are sent.

use std::path::Path;

use votestream_proto::v1::GetFinalResultsResponse;

/// Votes that are cast.
pub const VOTES: usize = 209_426;
/// First choices, each of one voter.
const VOTERS: u64 = 79_415;
/// Candidates who got a vote in any choice.
const CANDIDATES: usize = 36;
/// First choices of some candidates.
const OFFICIAL: [(&str, u64); 4] =
    [("BETSY HODGES", 28_962), ("MARK ANDREW", 19_648), ("DON SAMUELS", 8_350), ("CAM WINTON", 7_533)];

/// Rounds of votes, as user and option: three for so many voters, then three for the next ones. `None`, with the reason on
/// stderr, if the record is not there.
///
/// # Panics
///
/// If the record cannot be read.
pub fn rounds(voters_at_a_time: usize) -> Option<Vec<Vec<(String, String)>>> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/minneapolis-mayor-2013-cast-vote-record.csv");
    let Ok(mut ballots) = csv::Reader::from_path(&file) else {
        eprintln!("skipped: {} is not there", file.display());
        return None;
    };
    let ballots: Vec<_> = ballots.records().enumerate().map(|(voter, ballot)| (voter, ballot.unwrap())).collect();
    let mut rounds = Vec::new();
    for some in ballots.chunks(voters_at_a_time) {
        for choice in (0..3).rev() {
            let choices = some.iter().map(|(voter, ballot)| (voter, &ballot[choice]));
            let chosen = choices.filter(|(_, choice)| !["undervote", "overvote"].contains(choice));
            rounds.push(chosen.map(|(voter, choice)| (format!("voter-{voter}"), choice.to_owned())).collect());
        }
    }
    Some(rounds)
}

/// The options of a poll for these rounds.
pub fn options(rounds: &[Vec<(String, String)>]) -> Vec<&str> {
    let mut options: Vec<_> = rounds.iter().flatten().map(|(_, option)| option.as_str()).collect();
    options.sort_unstable();
    options.dedup();
    options
}

/// Checks that a final result is the official one.
///
/// # Panics
///
/// If it is not.
pub fn must_be_official(result: &GetFinalResultsResponse) {
    assert_eq!(result.total_votes, VOTERS);
    assert_eq!(result.options.len(), CANDIDATES);
    for (name, count) in OFFICIAL {
        let found = result.options.iter().find(|option| option.option_id == name).map(|option| option.votes);
        assert_eq!(found, Some(count), "{name}");
    }
}
