//! `votestream audit`: counts the stored votes again and shows both counts.
//!
//! Owns how the comparison is shown. Must never call a difference an error while the poll is not final, and never hide
//! a difference.

use std::time::Duration;

use indicatif::HumanCount;

use votestream_client::json;

use crate::{
    args::{AuditArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
};

/// A recount reads every vote: 100 million of them at 100,000 a second take 17 minutes.
pub(super) const RECOUNT_TIMEOUT: Duration = Duration::from_secs(3_600);

pub(super) async fn run(global: &Global, args: AuditArgs) -> Outcome {
    let results = global.connect_results().await?;
    let response = results.recount(&args.poll, RECOUNT_TIMEOUT).await;
    let recount = json::Recount::from(response.map_err(|error| Failure::client("the recount", error))?);
    if global.json {
        output::json(&recount)?;
    } else {
        output::lines(&describe(&recount))?;
    }
    Ok(Answer::yes_if(recount.matches))
}

fn describe(recount: &json::Recount) -> Vec<String> {
    let mut lines = vec![format!("{:>15}  {:>15}  option", "counted", "recounted")];
    lines.extend(recount.options.iter().map(|option| {
        format!(
            "{:>15}  {:>15}  {}{}",
            HumanCount(option.counted).to_string(),
            HumanCount(option.recounted).to_string(),
            output::printable(&option.option_id),
            if option.counted == option.recounted { "" } else { "  DIFFERS" },
        )
    }));
    lines.push(match (recount.matches, recount.is_final) {
        (true, true) => "exact: the stored votes give the final result".to_owned(),
        (true, false) => format!("equal so far; not final: {}", output::printable(&recount.progress)),
        (false, false) => {
            format!("different, as votes are still being counted; not final: {}", output::printable(&recount.progress))
        }
        (false, true) => "DIFFERENT, although the result is final".to_owned(),
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_marked() {
        let option = |counted| json::RecountOption { option_id: "a".into(), counted, recounted: 2 };
        let mut recount = json::Recount {
            poll_id: "p".into(),
            options: vec![option(2), option(3)],
            matches: false,
            is_final: true,
            progress: String::new(),
        };
        let lines = describe(&recount);
        assert!(!lines[1].contains("DIFFERS") && lines[2].ends_with("a  DIFFERS"), "{lines:?}");
        assert!(lines[3].starts_with("DIFFERENT"));
        recount.is_final = false;
        assert!(describe(&recount)[3].starts_with("different, as votes are still being counted"));
    }
}
