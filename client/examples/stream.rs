//! Casts many votes over one stream, which resumes by itself: `stream INGEST_URL POLL OPTION VOTES`.

use std::{env, error::Error};

use votestream_client::{Client, Outcome, StreamOptions, StreamOver, Vote, VoteSender};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [ingest, poll_id, option_id, votes] = &arguments[..] else {
        return Err("usage: stream INGEST_URL POLL OPTION VOTES".into());
    };
    let client = Client::builder().ingest_address(ingest.parse()?).connect_ingest().await?;

    // If the connection breaks, the stream connects again and sends what has no outcome yet, in its order.
    let (sender, mut outcomes) = client.stream_votes(StreamOptions::default());
    let casting = tokio::spawn(cast(sender, poll_id.clone(), option_id.clone(), votes.parse()?));

    // Outcomes are read while votes are cast: what nobody reads holds back the sender.
    let mut durable = 0_u64;
    while let Some((number, outcome)) = outcomes.next().await {
        match outcome {
            Outcome::Durable => durable += 1,
            Outcome::Rejected { cause, reason } => println!("vote {number} was rejected ({cause:?}): {reason}"),
            Outcome::Unknown { reason } => println!("vote {number}: {reason}"),
        }
    }
    // The stream has given up if this is an error; every vote that it took has its outcome all the same.
    if let Err(over) = casting.await? {
        println!("not all votes were cast: {over}");
    }
    if let Some(failure) = outcomes.failure() {
        println!("the stream broke: {failure}");
    }
    println!("{durable} votes are stored");
    Ok(())
}

/// Casts one vote of each user. When the sender is dropped, no more votes come, and the outcomes end with the last of them.
async fn cast(sender: VoteSender, poll_id: String, option_id: String, votes: u64) -> Result<(), StreamOver> {
    for user in 0..votes {
        let user_id = format!("user-{user}");
        // Waits for room if votes come faster than the service takes them.
        sender.push(Vote { poll_id: &poll_id, user_id: &user_id, option_id: &option_id }).await?;
    }
    Ok(())
}
