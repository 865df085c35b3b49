//! Results as bars, in place on a terminal.
//!
//! Owns how results look to people. Must never run past the terminal's width (a wrapped line breaks the redrawing), nor
//! print a control character that came with a title.

use console::{Alignment, Term, measure_text_width, pad_str};
use indicatif::HumanCount;

use crate::{failure::Failure, output};

/// Columns of a bar at the most; more are no easier to read.
const BAR_COLUMNS_MAX: usize = 40;
/// Columns of a label at the most.
const LABEL_COLUMNS_MAX: usize = 30;
/// Options that are drawn at the most; the rest is summed up in one line.
const ROWS_MAX: usize = 20;

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Title, or id.
    pub(crate) label: String,
    /// Its votes.
    pub(crate) count: u64,
}

/// One line for each row: label, bar, count, share.
pub(crate) fn render(rows: &[Row], columns: usize) -> Vec<String> {
    let total: u64 = rows.iter().map(|row| row.count).sum();
    let most = rows.iter().map(|row| row.count).max().unwrap_or(0);
    let shown = &rows[..rows.len().min(ROWS_MAX)];
    let labels: Vec<String> = shown.iter().map(|row| output::printable(&row.label)).collect();
    let counts: Vec<String> = shown.iter().map(|row| HumanCount(row.count).to_string()).collect();
    let label_width = labels.iter().map(|label| measure_text_width(label)).max().unwrap_or(0).min(LABEL_COLUMNS_MAX);
    let count_width = counts.iter().map(String::len).max().unwrap_or(0);
    // Blanks between the columns, and "100.0 %".
    let rest = label_width + count_width + 6 + 7;
    let bar_width = columns.saturating_sub(rest).min(BAR_COLUMNS_MAX);
    let mut lines: Vec<String> = shown
        .iter()
        .zip(labels.iter().zip(&counts))
        .map(|(row, (label, count))| {
            let label = pad_str(label, label_width, Alignment::Left, Some("…"));
            let bar = bar(row.count, most, bar_width);
            format!("{label}  {bar}  {count:>count_width$}  {:>5.1} %", percent(row.count, total))
        })
        .collect();
    if rows.len() > shown.len() {
        let rest: u64 = rows[shown.len()..].iter().map(|row| row.count).sum();
        lines.push(format!("and {} more options with {} votes", rows.len() - shown.len(), HumanCount(rest)));
    }
    lines
}

/// A bar of `width` columns, in eighths of a column.
fn bar(count: u64, most: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = if most == 0 { 0 } else { (width as u128 * 8 * u128::from(count) / u128::from(most)) as usize };
    let drawn = format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]);
    pad_str(&drawn, width, Alignment::Left, None).into_owned()
}

fn percent(count: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { count as f64 * 100.0 / total as f64 }
}

/// Lines on a terminal that are drawn again and again in the same place.
#[derive(Debug)]
pub(crate) struct Canvas {
    term: Term,
    drawn: usize,
}

impl Canvas {
    /// On this terminal.
    pub(crate) fn new(term: Term) -> Self {
        Self { term, drawn: 0 }
    }

    /// Whether it is a terminal at all.
    pub(crate) fn is_terminal(&self) -> bool {
        self.term.is_term()
    }

    /// Columns of the terminal.
    pub(crate) fn columns(&self) -> usize {
        usize::from(self.term.size().1)
    }

    /// Replaces what was drawn before.
    pub(crate) fn draw(&mut self, lines: &[String]) -> Result<(), Failure> {
        let columns = self.columns();
        let text: String = lines
            .iter()
            .map(|line| format!("{}\n", console::truncate_str(line, columns.saturating_sub(1), "…")))
            .collect();
        self.term.clear_last_lines(self.drawn).and_then(|()| self.term.write_str(&text)).map_err(output::closed)?;
        self.drawn = lines.len();
        self.term.flush().map_err(output::closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, count: u64) -> Row {
        Row { label: label.into(), count }
    }

    #[test]
    fn bars_are_in_proportion_and_aligned() {
        let lines = render(&[row("Alpha", 2_000), row("B", 1_000), row("C", 0)], 40);
        assert_eq!(
            lines,
            [
                "Alpha  █████████████████  2,000   66.7 %",
                "B      ████████▌          1,000   33.3 %",
                "C                             0    0.0 %",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let rows = [row(&"長い名前".repeat(20), u64::MAX / 4), row("b\x1b[2Jc", 1)];
        for columns in [80, 100, 200] {
            for line in render(&rows, columns) {
                assert!(measure_text_width(&line) <= columns, "{line}");
                assert!(!line.contains('\x1b'));
            }
        }
    }

    #[test]
    fn no_votes_and_no_options() {
        assert_eq!(render(&[], 80), Vec::<String>::new());
        assert!(render(&[row("a", 0)], 80)[0].ends_with("0    0.0 %"));
    }

    #[test]
    fn many_options_are_summed_up() {
        let rows: Vec<Row> = (0..30).map(|n| row(&format!("o{n}"), 10)).collect();
        let lines = render(&rows, 80);
        assert_eq!(lines.len(), ROWS_MAX + 1);
        assert_eq!(lines[ROWS_MAX], "and 10 more options with 100 votes");
    }
}
