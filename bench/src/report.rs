//! The results of a run of the benchmarks: tables, printed as Markdown while they grow, and written to `report.md` with
//! charts beside it.
//!
//! Owns the order of the parts, and what happens if one fails: its rows stay, the report says that it failed, the other
//! parts go on, and the command ends with an error. Must never hold a figure that no part has measured, except figures
//! that the table says were published elsewhere.

mod chart;
mod machine;

use std::{
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;

pub(crate) use self::chart::{Chart, Series};

/// The report's file name.
const FILE: &str = "report.md";

/// One field of a table.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    /// A figure, and the number of decimals to show.
    Number(f64, usize),
    /// Anything else.
    Text(String),
}

/// A figure; or none, if the divisor was too small to be measured.
pub(crate) fn number(value: f64, decimals: usize) -> Cell {
    if value.is_finite() { Cell::Number(value, decimals) } else { none() }
}

/// A field without a figure.
pub(crate) fn none() -> Cell {
    Cell::Text(String::new())
}

impl Cell {
    /// The figure, if it is one.
    fn value(&self) -> Option<f64> {
        match self {
            Self::Number(value, _) => Some(*value),
            Self::Text(_) => None,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value, decimals) => f.write_str(&grouped(*value, *decimals)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Number(count as f64, 0)
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::Number(count as f64, 0)
    }
}

/// A number with commas between its thousands.
fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (sign, plain) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, fraction) = plain.split_once('.').map_or((plain, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut text = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(fraction) = fraction {
        text.push('.');
        text += fraction;
    }
    text
}

/// A table that grows row by row. The first column names the row.
pub(crate) struct Table {
    title: String,
    note: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
    charts: Vec<Chart>,
}

impl Table {
    /// Adds a row, and prints it.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut cells: Vec<_> = cells.into_iter().collect();
        cells.resize_with(self.columns.len(), none);
        let row = line(&cells);
        self.rows.push(cells);
        if self.rows.len() == 1 {
            println!("\n{}\n\n{}", self.title, self.head());
        }
        println!("{row}");
    }

    /// Adds a chart that is drawn from this table.
    pub(crate) fn chart(&mut self, chart: Chart) {
        self.charts.push(chart);
    }

    fn head(&self) -> String {
        let words = self.rows.first().is_some_and(|row| row[0].value().is_none());
        let rule = (0..self.columns.len()).map(|at| if at == 0 && words { "---" } else { "---:" });
        format!("{}\n|{}|", line(&self.columns), rule.collect::<Vec<_>>().join("|"))
    }

    fn markdown(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n{}\n", self.head(), rows.join("\n"))
    }
}

fn line(cells: &[impl fmt::Display]) -> String {
    let mut line = String::from("|");
    for cell in cells {
        // Writing into a string cannot fail.
        write!(line, " {cell} |").ok();
    }
    line
}

/// One part of the benchmarks, as far as it has run.
struct Part {
    name: String,
    seconds: f64,
    tables: Vec<Table>,
    failures: Vec<String>,
}

/// Everything that a run has found.
pub(crate) struct Report {
    /// Small sizes, which show whether everything runs, but not how fast.
    pub(crate) quick: bool,
    /// Sizes that take an hour.
    pub(crate) many: bool,
    out: Option<PathBuf>,
    started: String,
    parts: Vec<Part>,
}

impl Report {
    /// An empty report. With a directory, everything is also written there.
    pub(crate) fn new(quick: bool, many: bool, out: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(out) = &out {
            fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        }
        let report = Self { quick, many, out, started: machine::facts(), parts: Vec::new() };
        println!("{}", report.started);
        Ok(report)
    }

    /// One of two sizes, by whether the run is a quick one.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Runs a part. If it fails, the report says so, and the next part can still run.
    pub(crate) fn part(&mut self, name: &str, run: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let start = Instant::now();
        self.parts.push(Part { name: name.to_owned(), seconds: 0.0, tables: Vec::new(), failures: Vec::new() });
        if let Err(error) = run(self) {
            self.failed(format!("{error:#}"));
        }
        if let Some(part) = self.parts.last_mut() {
            part.seconds = start.elapsed().as_secs_f64();
        }
        // Written after each part, so that an interruption does not lose what was found.
        self.write()
    }

    /// Begins a table in the part that runs.
    pub(crate) fn table(&mut self, title: &str, note: &str, columns: &[&str]) -> &mut Table {
        let table = Table {
            title: title.to_owned(),
            note: note.split_whitespace().collect::<Vec<_>>().join(" "),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: Vec::new(),
            charts: Vec::new(),
        };
        if self.parts.is_empty() {
            self.parts.push(Part { name: String::new(), seconds: 0.0, tables: Vec::new(), failures: Vec::new() });
        }
        let at = self.parts.len() - 1;
        self.parts[at].tables.push(table);
        let last = self.parts[at].tables.len() - 1;
        &mut self.parts[at].tables[last]
    }

    /// The last table of the part that runs, if it has one.
    pub(crate) fn last_table(&mut self) -> Option<&mut Table> {
        self.parts.last_mut()?.tables.last_mut()
    }

    /// Notes that something in the part that runs has failed, while the rest of the part goes on.
    pub(crate) fn failed(&mut self, what: String) {
        eprintln!("failed: {what}");
        if let Some(part) = self.parts.last_mut() {
            part.failures.push(what);
        }
    }

    /// Returns an error if something in the run has failed.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let failed: Vec<_> =
            self.parts.iter().filter(|part| !part.failures.is_empty()).map(|part| part.name.as_str()).collect();
        anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        if let Some(out) = &self.out {
            println!("\nwritten: {}", out.join(FILE).display());
        }
        Ok(())
    }

    fn write(&self) -> anyhow::Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        for chart in self.parts.iter().flat_map(|part| &part.tables).flat_map(|table| &table.charts) {
            // A chart of an earlier run must not be taken for one of this run.
            fs::remove_file(chart_path(out, chart)).ok();
        }
        let mut text = format!("# Benchmark report\n\n{}\n", self.started);
        if self.quick {
            text += "\nMade with `--quick`: everything ran, but sizes are too small for figures that mean anything.\n";
        }
        for part in &self.parts {
            for table in &part.tables {
                text += &format!("\n## {}\n\n", table.title);
                if !table.note.is_empty() {
                    text += &wrapped(&table.note);
                    text.push('\n');
                }
                text += &table.markdown();
                for chart in &table.charts {
                    if chart.draw(table, &chart_path(out, chart))? {
                        text += &format!("\n![{}]({}.svg)\n", chart.title, chart.file);
                    }
                }
            }
            for failure in &part.failures {
                text += &format!("\n**`{}` failed:** {}\n", part.name, failure.replace('\n', " "));
            }
        }
        text += "\n## Time taken\n\n| part | seconds | |\n|---|---:|---|\n";
        for part in &self.parts {
            let end = if part.failures.is_empty() { "" } else { "failed" };
            text += &format!("| {} | {:.0} | {end} |\n", part.name, part.seconds);
        }
        let path = out.join(FILE);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn chart_path(out: &Path, chart: &Chart) -> PathBuf {
    out.join(chart.file).with_extension("svg")
}

/// A paragraph in lines of readable width.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 120;
    let (mut lines, mut width) = (String::new(), 0);
    for word in text.split(' ') {
        if width > 0 && width + 1 + word.len() > WIDTH {
            lines.push('\n');
            width = 0;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines += word;
        width += word.len();
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(grouped(1_234_567.0, 0), "1,234,567");
        assert_eq!(grouped(-1_234.56, 1), "-1,234.6");
        assert_eq!(grouped(999.0, 0), "999");
        assert_eq!(grouped(0.25, 2), "0.25");
    }

    #[test]
    fn what_fails_is_reported_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new(false, false, Some(dir.path().to_owned())).unwrap();
        let bad = |report: &mut Report| {
            report.table("Bad", "", &["what", "figure"]).row(["one".into(), number(1.0, 1)]);
            anyhow::bail!("no engine")
        };
        let good = |report: &mut Report| {
            let table = report.table("Good", "A note.", &["votes", "ours, ns", "theirs, ns"]);
            for votes in [100_usize, 1_000, 10_000] {
                table.row([votes.into(), number(votes as f64, 2), number(3.0, 2)]);
            }
            let series = [Series::new(1, "ours"), Series::new(2, "<theirs> & others")];
            table.chart(Chart::lines("good-lines", "Lines", "votes", "ns", &series));
            table.chart(Chart::bars("good-bars", "Bars", "ns", &series));
            table.chart(Chart::bars("good-none", "Nothing to draw", "ns", &[Series::new(0, "")]).only("absent"));
            Ok(())
        };
        report.part("bad", bad).unwrap();
        report.part("good", good).unwrap();
        assert_eq!(report.finish().unwrap_err().to_string(), "failed: bad");
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("**`bad` failed:** no engine"), "{text}");
        assert!(text.contains("| what | figure |\n|---|---:|\n| one | 1.0 |"), "{text}");
        assert!(
            text.contains("| votes | ours, ns | theirs, ns |\n|---:|---:|---:|\n| 100 | 100.00 | 3.00 |"),
            "{text}"
        );
        for chart in ["good-lines", "good-bars"] {
            assert!(text.contains(&format!("]({chart}.svg)")), "{text}");
            let svg = fs::read_to_string(dir.path().join(chart).with_extension("svg")).unwrap();
            assert!(svg.trim_end().ends_with("</svg>") && svg.contains("&lt;theirs&gt; &amp; others"), "{svg}");
        }
        assert!(!dir.path().join("good-none.svg").exists());
    }
}
