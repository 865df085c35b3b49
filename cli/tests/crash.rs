//! `kill -9` of a real `votestream up` in the middle of a stream, again and again, on one data directory.
//!
//! The client is a relay as the API describes it: after a broken stream it sends again from `durable_through` on, in
//! order. So in the end every vote is acknowledged, and the last vote of each user is known.

mod up;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio_stream::StreamExt;
use votestream_proto::{
    VotesMessage,
    v1::{
        ClosePollRequest, CreatePollRequest, GetFinalResultsRequest, GetInterimResultsRequest, PollOption,
        RecountRequest, ingest_service_client::IngestServiceClient, poll_service_client::PollServiceClient,
        results_service_client::ResultsServiceClient,
    },
};

use up::Up;

const KILLS: usize = 8;
const VOTES: usize = 120_000;
const VOTES_PER_MESSAGE: usize = 50;
const OPTIONS: [&str; 3] = ["a", "b", "c"];

fn start(dir: &Path) -> Up {
    Up::start_with("127.0.0.1:0", |command| {
        command.arg("--data-dir").arg(dir).stderr(Stdio::inherit());
    })
}

/// Streams `votes` from `*durable` on until all are durable, the stream breaks, or `stop_at` votes are durable.
async fn relay(up: &Up, votes: &[(String, &'static str)], durable: &mut usize, stop_at: usize) {
    let Ok(mut client) = IngestServiceClient::connect(up.ingest.clone()).await else { return };
    let start = *durable;
    let messages: Vec<_> = votes[start..]
        .chunks(VOTES_PER_MESSAGE)
        .map(|votes| {
            let mut message = VotesMessage::default();
            votes.iter().for_each(|(user, option)| message.push("p", user, option));
            message
        })
        .collect();
    let Ok(answers) = client.stream_votes(tokio_stream::iter(messages)).await else { return };
    let mut answers = answers.into_inner();
    while let Some(Ok(answer)) = answers.next().await {
        assert_eq!(answer.rejections, [], "nothing is to be rejected");
        *durable = start + answer.durable_through as usize;
        if *durable >= stop_at {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_vote_is_lost_and_none_counted_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    let votes: Vec<(String, &str)> = (0..VOTES)
        .map(|_| (format!("user-{}", rng.random_range(0..VOTES / 3)), OPTIONS[rng.random_range(0..3)]))
        .collect();
    let last: HashMap<_, _> = votes.iter().cloned().collect();
    let mut model = BTreeMap::<&str, u64>::new();
    last.values().for_each(|option| *model.entry(option).or_default() += 1);

    let mut up = start(dir.path());
    let mut polls = PollServiceClient::connect(up.results.clone()).await.unwrap();
    let request = CreatePollRequest {
        poll_id: "p".into(),
        options: OPTIONS.iter().map(|&id| PollOption { option_id: id.into(), title: String::new() }).collect(),
        closes_at: Some((SystemTime::now() + Duration::from_secs(3_600)).into()),
        ..CreatePollRequest::default()
    };
    polls.create_poll(request).await.unwrap();

    let (mut durable, mut sent_again, mut kills_under_way) = (0, 0, 0);
    for kill in 1..=KILLS {
        relay(&up, &votes, &mut durable, VOTES * kill / (KILLS + 1)).await;
        kills_under_way += usize::from(durable < VOTES);
        // Votes after durable_through may have been stored all the same.
        sent_again += VOTES - durable;
        up.kill();
        up = start(dir.path());
    }
    assert!(kills_under_way >= KILLS / 2, "only {kills_under_way} kills hit a stream under way");
    relay(&up, &votes, &mut durable, VOTES).await;
    assert_eq!(durable, VOTES);

    let mut polls = PollServiceClient::connect(up.results.clone()).await.unwrap();
    let mut results = ResultsServiceClient::connect(up.results.clone()).await.unwrap();
    polls.close_poll(ClosePollRequest { poll_id: "p".into() }).await.unwrap();
    let request = GetFinalResultsRequest { poll_id: "p".into(), wait: true };
    let waiting = tokio::time::timeout(Duration::from_secs(120), results.get_final_results(request.clone()));
    let result = waiting.await.unwrap().unwrap().into_inner();
    let shown: BTreeMap<_, _> = result.options.iter().map(|option| (option.option_id.as_str(), option.votes)).collect();
    assert_eq!(shown, model);

    let interim =
        results.get_interim_results(GetInterimResultsRequest { poll_id: "p".into() }).await.unwrap().into_inner();
    let submitted = interim.total_submitted as usize;
    assert!(
        (VOTES..=VOTES + sent_again).contains(&submitted),
        "{submitted} submitted of {VOTES} + at most {sent_again}"
    );

    // After another crash the result is the same, and the recount agrees.
    up.kill();
    let up = start(dir.path());
    let mut results = ResultsServiceClient::connect(up.results.clone()).await.unwrap();
    assert_eq!(results.get_final_results(request).await.unwrap().into_inner(), result);
    let recount = results.recount(RecountRequest { poll_id: "p".into() }).await.unwrap().into_inner();
    assert!(recount.matches && recount.r#final, "{recount:?}");
    up.kill();
}
