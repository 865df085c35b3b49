//! Results as bars, which are drawn again in the same place on a terminal.
//!
//! Owns how results look to people. Must never write beyond the terminal's width (a wrapped line breaks the redrawing),
//! never cut a number to fit, and never print a control character from a title.

use console::{Alignment, Term, measure_text_width, pad_str};
use indicatif::HumanCount;

use crate::{failure::Failure, output};

/// Most columns of a bar; more are no easier to read.
const BAR_COLUMNS_MAX: usize = 40;
/// Fewest columns of a bar; fewer show nothing.
const BAR_COLUMNS_MIN: usize = 4;
/// Most columns of a label, unless there is room for more.
const LABEL_COLUMNS_MAX: usize = 30;
/// Fewest columns of a label, before the blanks between the columns are removed.
const LABEL_COLUMNS_MIN: usize = 8;
/// Most options that are drawn; one line sums up the others.
const ROWS_MAX: usize = 20;
/// Columns of "100.0 %".
const PERCENT_COLUMNS: usize = 7;

/// The room for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Title, or id.
    pub(crate) label: String,
    /// Its votes.
    pub(crate) count: u64,
}

/// A heading, the options, and a sentence about all of them. If there is little room, the heading is shortened and the
/// sentence is wrapped.
pub(crate) fn page(heading: &str, kind: &str, rows: &[Row], total: &str, size: Size) -> Vec<String> {
    let room = size.columns.saturating_sub(measure_text_width(kind));
    let mut lines = vec![format!("{}{kind}", shorten(heading, room))];
    let total = wrap(total, size.columns);
    // The line about the other options may take a row, too.
    let rows_max = size.rows.saturating_sub(lines.len() + total.len() + 1).clamp(1, ROWS_MAX);
    lines.extend(render(rows, rows_max, size.columns));
    lines.extend(total);
    lines
}

/// One line for each row: label, bar, count, share. If there is little room, the bar is left out first, then the label
/// is shortened, then the blanks between the columns are reduced, and at last the label gets its own line.
fn render(rows: &[Row], rows_max: usize, columns: usize) -> Vec<String> {
    let total: u64 = rows.iter().fold(0, |sum, row| sum.saturating_add(row.count));
    let most = rows.iter().map(|row| row.count).max().unwrap_or(0);
    let shown = &rows[..rows.len().min(rows_max)];
    let counts: Vec<String> = shown.iter().map(|row| HumanCount(row.count).to_string()).collect();
    let labels: Vec<String> = shown.iter().map(|row| output::printable(&row.label)).collect();
    let longest = labels.iter().map(|label| measure_text_width(label)).max().unwrap_or(0);
    let count_width = counts.iter().map(String::len).max().unwrap_or(0);
    let layout = Layout::new(longest, count_width, columns);
    let mut lines = Vec::new();
    for (row, (label, count)) in shown.iter().zip(labels.iter().zip(&counts)) {
        let bar = (layout.bar > 0).then(|| bar(row.count, most, layout.bar));
        lines.extend(layout.lines(label, bar.as_deref(), count, percent(row.count, total)));
    }
    if rows.len() > shown.len() {
        let rest = rows[shown.len()..].iter().fold(0u64, |sum, row| sum.saturating_add(row.count));
        let line = format!("and {} more options with {} votes", rows.len() - shown.len(), HumanCount(rest));
        lines.extend(wrap(&line, columns));
    }
    lines
}

/// How wide each part of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// 0 if the label has its own line.
    label: usize,
    /// 0 if there is no bar.
    bar: usize,
    count: usize,
    /// Number of blanks between the columns.
    blanks: usize,
    columns: usize,
}

impl Layout {
    fn new(longest: usize, count: usize, columns: usize) -> Self {
        let wide = columns.saturating_sub(count + PERCENT_COLUMNS + 4);
        if wide < longest.min(LABEL_COLUMNS_MIN) {
            let label = columns.saturating_sub(count + PERCENT_COLUMNS + 2);
            // One column would only show "…".
            let label = if label < 2 { 0 } else { label.min(longest) };
            return Self { label, bar: 0, count, blanks: 1, columns };
        }
        // The bar gets a third of the room if the label needs the rest.
        let label = longest.min(LABEL_COLUMNS_MAX).min((wide * 2 / 3).max(LABEL_COLUMNS_MIN));
        let bar = wide.saturating_sub(label + 2).min(BAR_COLUMNS_MAX);
        if bar < BAR_COLUMNS_MIN {
            return Self { label: longest.min(wide), bar: 0, count, blanks: 2, columns };
        }
        Self { label, bar, count, blanks: 2, columns }
    }

    fn lines(&self, label: &str, bar: Option<&str>, count: &str, percent: f64) -> Vec<String> {
        let blanks = " ".repeat(self.blanks);
        let numbers = format!("{count:>width$}{blanks}{percent:>5.1} %", width = self.count);
        if self.label == 0 {
            let numbers = if measure_text_width(&numbers) > self.columns { count.to_owned() } else { numbers };
            return vec![shorten(label, self.columns), numbers];
        }
        let label = shorten(label, self.label);
        let label = pad_str(&label, self.label, Alignment::Left, None);
        vec![match bar {
            Some(bar) => format!("{label}{blanks}{bar}{blanks}{numbers}"),
            None => format!("{label}{blanks}{numbers}"),
        }]
    }
}

/// The text in at most this many columns. A shortened text ends with "…", and is never cut within a character of
/// several code points.
pub(crate) fn shorten(text: &str, columns: usize) -> String {
    if measure_text_width(text) <= columns {
        return text.to_owned();
    }
    let Some(room) = columns.checked_sub(1) else { return String::new() };
    let mut end = 0;
    let mut before = '\0';
    for (at, c) in text.char_indices() {
        // A mark, a variation selector, and what comes after a joiner belong to the character before.
        let continues = before == '\u{200d}' || measure_text_width(c.encode_utf8(&mut [0; 4])) == 0;
        before = c;
        if continues {
            continue;
        }
        if measure_text_width(&text[..at]) > room {
            break;
        }
        end = at;
    }
    format!("{}…", &text[..end])
}

/// The words in lines of at most this many columns. A word that is wider gets its own line.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + 1 + measure_text_width(word) <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
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
    /// Widths of the lines that were drawn last time.
    drawn: Vec<usize>,
}

impl Canvas {
    /// A canvas on this terminal.
    pub(crate) fn new(term: Term) -> Self {
        Self { term, drawn: Vec::new() }
    }

    /// Whether it is a terminal that can draw lines in place.
    pub(crate) fn can_redraw(&self) -> bool {
        output::can_redraw(&self.term)
    }

    /// The room for the lines: without the last column, after which some terminals wrap, and without the row of the
    /// cursor.
    pub(crate) fn size(&self) -> Size {
        let (rows, columns) = self.term.size();
        Size { columns: usize::from(columns).saturating_sub(1), rows: usize::from(rows).saturating_sub(1) }
    }

    /// Replaces what was drawn before.
    pub(crate) fn draw(&mut self, lines: &[String]) -> Result<(), Failure> {
        let columns = self.size().columns;
        let lines: Vec<String> = lines.iter().map(|line| shorten(line, columns)).collect();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let before = rows_taken(&self.drawn, columns + 1);
        let drawn = self.term.clear_last_lines(before).and_then(|()| self.term.write_str(&text));
        self.drawn = lines.iter().map(|line| measure_text_width(line)).collect();
        output::written(drawn.and_then(|()| self.term.flush()))
    }
}

/// Number of rows that lines of these widths take in a window of this many columns. The window may be narrower now than
/// when they were drawn.
fn rows_taken(widths: &[usize], columns: usize) -> usize {
    widths.iter().map(|width| width.div_ceil(columns.max(1)).max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, count: u64) -> Row {
        Row { label: label.into(), count }
    }

    #[test]
    fn bars_are_in_proportion_and_aligned() {
        let lines = render(&[row("Alpha", 2_000), row("B", 1_000), row("C", 0)], ROWS_MAX, 40);
        assert_eq!(
            lines,
            [
                "Alpha  █████████████████  2,000   66.7 %",
                "B      ████████▌          1,000   33.3 %",
                "C                             0    0.0 %",
            ]
        );
    }

    const SIZE: Size = Size { columns: 80, rows: 24 };

    #[test]
    fn no_line_is_wider_than_the_window_and_no_number_is_cut() {
        let labels = [
            "A long option, as they are in real polls",
            "長い名前の選択肢です",
            "👩\u{200d}💻 work 👩\u{200d}💻",
            "e\u{301}te\u{301}",
            "b\x1b[2Jc",
            "x",
        ];
        for counts in [[0, 1], [12_345, 7], [u64::MAX / 4, 1]] {
            let rows: Vec<Row> =
                labels.iter().zip(counts.iter().cycle()).map(|(label, count)| row(label, *count)).collect();
            for columns in 19..=200 {
                let lines = page(
                    "A title that is rather long",
                    " (interim)",
                    &rows,
                    "12,345 users have voted",
                    Size { columns, rows: 100 },
                );
                for line in &lines {
                    // A number with more digits than columns does not fit.
                    assert!(measure_text_width(line) <= columns || counts[0] == u64::MAX / 4, "{columns}: {line}");
                    assert!(!line.contains('\x1b'));
                }
                assert!(lines[0].ends_with(" (interim)"));
                for row in &rows {
                    let count = HumanCount(row.count).to_string();
                    assert!(lines.iter().any(|line| line.contains(&count)), "{columns}: {lines:?}");
                }
                let percents = lines.iter().filter(|line| line.ends_with(" %")).count();
                assert!(percents == rows.len() || counts[0] == u64::MAX / 4, "{columns}: {lines:?}");
            }
        }
    }

    #[test]
    fn labels_are_shortened_for_the_numbers() {
        let rows = [row("A long option, as they are in real polls", 12_345), row("b", 0)];
        let first = |columns| render(&rows, ROWS_MAX, columns)[0].clone();
        assert_eq!(first(79), "A long option, as they are in…  ██████████████████████████████  12,345  100.0 %");
        assert_eq!(first(39), "A long option…  ██████  12,345  100.0 %");
        assert_eq!(first(19), "A l… 12,345 100.0 %");
    }

    #[test]
    fn a_shortened_text_is_whole_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcd", 3), "ab…");
        assert_eq!(shorten("長い名前", 5), "長い…");
        assert_eq!(shorten("長い名前", 4), "長…");
        assert_eq!(shorten("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
        assert_eq!(shorten("👩\u{200d}💻 at work", 3), "👩\u{200d}💻…");
        assert_eq!((shorten("abc", 1), shorten("abc", 0)), ("…".to_owned(), String::new()));
    }

    #[test]
    fn a_page_fits_into_a_low_window() {
        let rows: Vec<Row> = (0..30).map(|n| row(&format!("o{n}"), 10)).collect();
        for height in 5..40 {
            let lines = page("p", "", &rows, "300 users have voted", Size { columns: 60, rows: height });
            assert!(lines.len() <= height, "{height}: {}", lines.len());
            assert_eq!(lines.last().map(String::as_str), Some("300 users have voted"));
        }
    }

    #[test]
    fn a_narrower_window_has_wrapped_what_was_drawn() {
        assert_eq!(rows_taken(&[0, 79, 40, 41], 80), 4);
        assert_eq!(rows_taken(&[0, 79, 40, 41], 40), 1 + 2 + 1 + 2);
    }

    #[test]
    fn no_votes_and_no_options() {
        assert_eq!(render(&[], ROWS_MAX, 80), Vec::<String>::new());
        assert!(render(&[row("a", 0)], ROWS_MAX, 80)[0].ends_with("0    0.0 %"));
    }

    #[test]
    fn many_options_are_summed_up() {
        let rows: Vec<Row> = (0..30).map(|n| row(&format!("o{n}"), 10)).collect();
        let lines = render(&rows, ROWS_MAX, SIZE.columns);
        assert_eq!(lines.len(), ROWS_MAX + 1);
        assert_eq!(lines[ROWS_MAX], "and 10 more options with 100 votes");
    }
}
