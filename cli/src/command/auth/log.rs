//! `votestream auth log`: checks the chain of an audit log, and shows the acts in it.
//!
//! Owns how acts are shown. Must never show a line behind the place where the chain breaks as if it were true.

use std::{collections::BTreeMap, fs::File, io::BufReader};

use serde::Serialize;
use serde_json::{Value, json};
use votestream_server::audit::{Head, read};

use crate::{
    args::{AuthLogArgs, Global},
    failure::{Answer, Failure, Outcome},
    output,
};

/// One administrative act, or what the log says about itself.
#[derive(Debug, Serialize)]
struct Act {
    /// The line with the intent, or the only line.
    line: u64,
    /// The fields of its lines, without those of the chain.
    #[serde(flatten)]
    fields: serde_json::Map<String, Value>,
}

/// Acts of which no end was read yet, by the number of their line.
#[derive(Debug, Default)]
struct Acts {
    begun: BTreeMap<u64, Act>,
}

/// Stands for the status of an act whose end is not in the log.
const UNKNOWN: &str = "UNKNOWN";

impl Acts {
    /// Takes a line. Returns the act that is complete with it.
    fn take(&mut self, line: Value) -> Option<Act> {
        let Value::Object(mut fields) = line else { return None };
        let number = fields.remove("number").and_then(|number| number.as_u64()).unwrap_or(0);
        fields.remove("prev");
        let kind = fields.remove("kind");
        match kind.as_ref().and_then(Value::as_str) {
            Some("intent") => {
                self.begun.insert(number, Act { line: number, fields });
                None
            }
            Some("outcome") => {
                let of = fields.get("of").and_then(Value::as_u64).unwrap_or(number);
                let mut act = self.begun.remove(&of).unwrap_or(Act { line: number, fields: fields.clone() });
                for name in ["status", "message", "became"] {
                    if let Some(value) = fields.remove(name) {
                        act.fields.insert(name.into(), value);
                    }
                }
                Some(act)
            }
            kind => {
                if let Some(kind) = kind {
                    fields.insert("kind".into(), kind.into());
                }
                Some(Act { line: number, fields })
            }
        }
    }

    /// The acts whose end is not in the log.
    fn rest(self) -> impl Iterator<Item = Act> {
        self.begun.into_values().map(|mut act| {
            act.fields.insert("status".into(), UNKNOWN.into());
            let message = "the log does not say how it ended: it is running, or the process ended before";
            act.fields.insert("message".into(), message.into());
            act
        })
    }
}

pub(super) fn run(global: &Global, args: &AuthLogArgs) -> Outcome {
    let unreadable = |error| Failure::usage(format!("cannot read {}: {error}", args.file.display()));
    let file = File::open(&args.file).map_err(unreadable)?;
    let (mut acts, mut shown, mut found) = (Acts::default(), Vec::new(), args.head.is_none());
    let mut written = Ok(());
    let mut show = |act: Act| {
        if global.json {
            shown.push(act);
        } else if written.is_ok() && !output::is_closed() {
            written = output::line(&describe(&act));
        }
    };
    let checked = read(BufReader::new(file), |line, hash| {
        found |= args.head.as_deref() == Some(hash);
        if let Some(act) = acts.take(line) {
            show(act);
        }
    });
    let checked = checked.map_err(unreadable)?;
    acts.rest().for_each(&mut show);
    written?;
    let mut wrong = checked.as_ref().err().map(ToString::to_string);
    if wrong.is_none() && !found {
        wrong = Some("no line has the hash that was given by --head: lines were removed or changed since".into());
    }
    let head = checked.unwrap_or_default();
    if global.json {
        let Head { lines, hash } = head;
        output::json(
            &json!({ "intact": wrong.is_none(), "broken": wrong, "lines": lines, "head": hash, "acts": shown }),
        )?;
        return Ok(Answer::yes_if(wrong.is_none()));
    }
    match &wrong {
        None => {
            let lines = if head.lines == 1 { "1 line".to_owned() } else { format!("{} lines", head.lines) };
            output::note(&format!("{lines}, and nothing in them was changed"));
            if let Some(hash) = head.hash {
                output::note(
                    "note this hash elsewhere, and give it by --head next time, to see whether lines at the end were removed:",
                );
                output::note(&hash);
            }
        }
        Some(wrong) => output::note(&format!("BROKEN: {wrong}. What is shown comes before that")),
    }
    Ok(Answer::yes_if(wrong.is_none()))
}

/// An act in one line.
fn describe(act: &Act) -> String {
    let text = |name: &str| act.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| act.fields.get(name).and_then(Value::as_u64).unwrap_or_default();
    let start = format!("{:>6}  {}  ", act.line, text("time"));
    let what = match text("kind") {
        "left_out" => format!("{} more calls were refused", number("refusals")),
        "repaired" => format!("a last line of {} bytes was cut off in the middle and removed", number("bytes")),
        _ => {
            let refused = if text("kind") == "refused" { "refused: " } else { "" };
            let poll = [text("act"), text("poll")].join(" ");
            let from = if text("from").is_empty() { String::new() } else { format!(" from {}", text("from")) };
            let message = if text("message").is_empty() { String::new() } else { format!(": {}", text("message")) };
            format!("{refused}{} by {:?}{from}: {}{message}", poll.trim_end(), text("who"), text("status"))
        }
    };
    output::printable(&format!("{start}{what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_and_its_outcome_are_one_act() {
        let mut acts = Acts::default();
        let call = |kind: &str, number: u64| {
            json!({ "number": number, "time": "t", "kind": kind, "act": "close", "poll": "p\u{202e}", "who": "key k",
                    "from": "[::1]:9", "prev": "0" })
        };
        assert!(acts.take(call("intent", 1)).is_none() && acts.take(call("intent", 2)).is_none());
        let mut outcome = call("outcome", 3);
        outcome["of"] = 1.into();
        outcome["status"] = "NOT_FOUND".into();
        outcome["message"] = "there is no poll".into();
        let act = acts.take(outcome).unwrap();
        let line = "     1  t  close p\u{fffd} by \"key k\" from [::1]:9: NOT_FOUND: there is no poll";
        assert_eq!(describe(&act), line);
        let mut refused = call("refused", 4);
        refused["status"] = "PERMISSION_DENIED".into();
        assert!(describe(&acts.take(refused).unwrap()).contains("refused: close p"));
        let left_out = json!({ "number": 5, "time": "t", "kind": "left_out", "refusals": 70, "prev": "0" });
        assert!(describe(&acts.take(left_out).unwrap()).ends_with("70 more calls were refused"));
        let rest: Vec<_> = acts.rest().collect();
        assert!(
            rest.len() == 1 && describe(&rest[0]).contains("     2  t  close") && rest[0].fields["status"] == UNKNOWN
        );
    }
}
