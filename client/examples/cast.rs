//! Casts one vote: `cast INGEST_URL POLL USER OPTION`.

use std::{env, error::Error};

use votestream_client::{Client, Outcome, Vote};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [ingest, poll_id, user_id, option_id] = &arguments[..] else {
        return Err("usage: cast INGEST_URL POLL USER OPTION".into());
    };
    // The connection is kept, and comes back by itself: a program that casts many votes has one client.
    let client = Client::builder().ingest_address(ingest.parse()?).connect_ingest().await?;

    // A vote that was certainly not stored is cast again by the client. What comes back is final.
    match client.cast(Vote { poll_id, user_id, option_id }).await {
        Outcome::Durable => println!("stored, and will be counted"),
        Outcome::Rejected { cause, reason } => println!("rejected ({cause:?}): {reason}"),
        // Whoever casts it again casts a new vote. That is right if the user has not voted otherwise meanwhile.
        Outcome::Unknown { reason } => println!("unknown: {reason}"),
    }
    Ok(())
}
