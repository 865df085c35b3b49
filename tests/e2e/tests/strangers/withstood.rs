//! Attacks that the product has always withstood, and must continue to withstand.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use votestream_e2e::hostile::Attack;

use super::*;

/// How long each attack runs.
const LASTS: Duration = Duration::from_millis(1_200);
/// Attackers at once.
const ATTACKERS: usize = 2;

/// Runs the attacks one after the other while honest voters vote, and then judges.
async fn withstands(test: &str, attacks: &[Attack]) {
    let (mut server, mut rng) = start(test).await;
    for &attack in attacks {
        let until = Instant::now() + LASTS;
        let attackers: Vec<_> =
            (0..ATTACKERS).map(|_| tokio::spawn(attack.run(target(&server), rng.random(), until))).collect();
        server.a_vote_gets_through(&format!("beside {attack:?}")).await;
        let mut attempts = 0;
        for attacker in attackers {
            attempts += attacker.await.unwrap().attempts;
        }
        assert!(attempts > 0, "{attack:?} did nothing");
        server.lives();
        let grew = server.memory_grew();
        assert!(grew < MEMORY_MAX, "after {attack:?} memory has grown by {} MiB", grew >> 20);
        server.comes_to_rest(REST).await;
        server.voters_go_on(rng.random());
    }
    server.a_vote_gets_through("after the attacks").await;
    server.counts_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_calls_and_headers() {
    use Attack::{Continuations, HeaderBomb, Provocations, Resets, SmallFrames};
    withstands("calls and headers", &[Resets, Continuations, HeaderBomb, Provocations, SmallFrames]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames() {
    use Attack::{EmptyFrames, Noise, Pings, Priorities, Settings, UnknownFrames, WindowUpdates};
    withstands("frames", &[Settings, Pings, Priorities, WindowUpdates, EmptyFrames, UnknownFrames, Noise]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_http() {
    use Attack::{BadChunks, ContradictingLengths, EndlessHeader, EndlessHeaders, EndlessRequestLine, UnreadPipeline};
    let attacks = [EndlessRequestLine, EndlessHeader, EndlessHeaders, BadChunks, ContradictingLengths, UnreadPipeline];
    withstands("broken HTTP", &attacks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_content() {
    use Attack::{BadFrames, BadProtobuf, DeepJson, Dribble, LargeJson, Silence};
    withstands("malformed content", &[BadProtobuf, BadFrames, DeepJson, LargeJson, Dribble, Silence]).await;
}
