//! Shows the results of a poll as they change, and the final one: `watch RESULTS_URL POLL`.

use std::{env, error::Error};

use votestream_client::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [results, poll_id] = &arguments[..] else {
        return Err("usage: watch RESULTS_URL POLL".into());
    };
    let client = Client::builder().results_address(results.parse()?).connect_results().await?;

    // The first update comes at once, the others when counts change. The last one comes when the poll has become final.
    let mut updates = client.watch_results(poll_id);
    while let Some(update) = updates.next().await {
        let update = update?;
        println!("so far: {} users, {} votes", update.total_counted, update.total_submitted);
    }

    // Now the result is there, and never changes.
    let result = client.final_results(poll_id).await?;
    for option in result.options {
        println!("final: {} {}", option.option_id, option.votes);
    }
    Ok(())
}
