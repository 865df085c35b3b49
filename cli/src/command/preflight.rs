//! `votestream preflight`: whether an AWS account is as a plan wants it.
//!
//! Owns how the report is shown. Must never ask AWS itself: `votestream_preflight` does that.

use std::{io::Read, path::Path};

use votestream_preflight::{Account, Options, Plan, Report};

use crate::{
    args::{Global, PreflightArgs},
    failure::{Answer, Failure, Outcome},
    output,
};

/// A plan has some 15 kB.
const PLAN_BYTES_MAX: u64 = 1 << 20;

pub(super) async fn run(global: &Global, args: PreflightArgs) -> Outcome {
    let plan = read(&args.plan)?;
    let options = Options { name: args.name, region: args.region };
    let account = Account::from_environment(options).await.ok_or_else(|| {
        Failure::usage("no AWS region is set: give --region, set AWS_REGION, or choose a profile that has one")
    })?;
    let report = votestream_preflight::check(&account, &plan).await;
    if global.json {
        output::json(&report)?;
    } else {
        output::lines(&describe(&report))?;
    }
    Ok(Answer::yes_if(report.go))
}

fn read(path: &Path) -> Result<Plan, Failure> {
    let shown = path.display();
    let mut text = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().take(PLAN_BYTES_MAX).read_to_end(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(PLAN_BYTES_MAX).read_to_end(&mut text)),
    };
    read.map_err(|error| Failure::usage(format!("cannot read {shown}: {error}")))?;
    Plan::from_json(&text).map_err(|error| Failure::usage(format!("{shown}: {error}")))
}

fn describe(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for line in &report.lines {
        let verdict = if line.go { "go   " } else { "NO-GO" };
        // The file and the answers may have anything in them.
        let [what, found, needed] = [&line.what, &line.found, &line.needed].map(|text| output::printable(text));
        lines.push(format!("{verdict}  {what}: {found}, planned {needed}"));
        lines.extend(line.to_do.iter().map(|to_do| format!("       {}", output::printable(to_do))));
    }
    let refused = report.lines.iter().filter(|line| !line.go).count();
    lines.push(match report.go {
        true => format!("GO: all {} checks", report.lines.len()),
        false => format!("NO-GO: {refused} of {} checks", report.lines.len()),
    });
    lines
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::plan::{self, tests::event};

    #[test]
    fn what_plan_prints_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        serde_json::to_writer(&mut file, &plan::plan(event(1_000_000, 30_000_000, 30)).unwrap()).unwrap();
        file.flush().unwrap();
        assert!(read(file.path()).is_ok(), "{:?}", read(file.path()).err());
        for (text, expected) in [("{}", "not the output"), ("{\"plan_version\": 9}", "not the output")] {
            std::fs::write(file.path(), text).unwrap();
            let error = format!("{:?}", read(file.path()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        assert!(read(Path::new("/nowhere/plan.json")).is_err());
    }
}
