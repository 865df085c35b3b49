//! What somebody sees who looks before they build: `up --demo` fills the page with a show that votes.

mod up;

use std::time::{Duration, Instant};

use up::Up;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_show_votes_by_itself() {
    let up = Up::start_with("127.0.0.1:0", |command| {
        command.arg("--demo");
    });
    let begun = Instant::now();
    let counts = loop {
        let (code, shown, stderr) = up.json(&["results", "song-1"], "");
        // The first poll may not be there yet.
        if code == 0 && shown["total_counted"].as_u64() > Some(500) {
            break shown["options"].as_array().unwrap().clone();
        }
        assert!(begun.elapsed() < PATIENCE, "{shown} {stderr}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(counts.iter().all(|option| option["counted"].as_u64() > Some(0)), "everybody has fans: {counts:?}");
    // The other poll of the round hides its results, and the next round is announced.
    assert_eq!(up.json(&["results", "encore-1"], "").0, 1);
    let (_, next, _) = up.json(&["poll", "get", "song-2"], "");
    assert_eq!(next["poll"]["state"], "POLL_STATE_SCHEDULED", "{next}");
}
