//! What is said of an account: one line a check.
//!
//! Must never say go while one line says no-go.

use serde::Serialize;

/// All checks.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether the account is as planned.
    pub go: bool,
    /// The checks, in the order in which they were made.
    pub lines: Vec<Line>,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Line {
    /// What was looked at.
    pub what: String,
    /// Whether it is as planned.
    pub go: bool,
    /// What was found.
    pub found: String,
    /// What is planned.
    pub needed: String,
    /// What to do, if it is not as planned.
    pub to_do: Option<String>,
    /// Whether AWS gave no answer at all.
    #[serde(skip)]
    pub(crate) unanswered: bool,
}

/// So many calls without any answer end the checks: the network or the region is wrong, and each further one would take its
/// whole time.
const UNANSWERED_MAX: usize = 2;

impl Report {
    /// Whether it is of no use to ask on. The first time, a line says so.
    pub(crate) fn is_over(&mut self) -> bool {
        let over = self.lines.iter().filter(|line| line.unanswered).count() >= UNANSWERED_MAX;
        if over && self.lines.last().is_some_and(|line| line.unanswered) {
            self.add(Line::no_go("everything else", "not asked", "an answer of AWS", "see above, then repeat"));
        }
        over
    }

    pub(crate) fn add(&mut self, line: Line) {
        self.go = line.go && (self.go || self.lines.is_empty());
        self.lines.push(line);
    }
}

impl Line {
    pub(crate) fn go(what: impl Into<String>, found: impl ToString, needed: impl ToString) -> Self {
        Self {
            what: what.into(),
            go: true,
            found: found.to_string(),
            needed: needed.to_string(),
            to_do: None,
            unanswered: false,
        }
    }

    pub(crate) fn no_go(
        what: impl Into<String>,
        found: impl ToString,
        needed: impl ToString,
        to_do: impl Into<String>,
    ) -> Self {
        Self { go: false, to_do: Some(to_do.into()), ..Self::go(what, found, needed) }
    }

    /// Go if there is enough.
    pub(crate) fn enough(what: impl Into<String>, found: u64, needed: u64, to_do: impl FnOnce() -> String) -> Self {
        match found >= needed {
            true => Self::go(what, found, needed),
            false => Self::no_go(what, found, needed, to_do()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_no_go_is_enough() {
        let of = |all: &[bool]| {
            let mut report = Report::default();
            for go in all {
                report.add(Line { go: *go, ..Line::go("x", 1, 1) });
            }
            report.go
        };
        assert!(of(&[true, true]) && !of(&[]));
        assert!(!of(&[false, true]) && !of(&[true, false]) && !of(&[true, false, true]));
    }
}
