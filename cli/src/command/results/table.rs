//! Results as CSV, by RFC 4180 with line feeds.
//!
//! Owns the columns, which scripts rely on. Must never change an id or a title: an id that begins like a formula is what votes
//! name, and whoever reads the table again must find it. Must never leave out titles because they could not be read.

use std::collections::HashMap;

use votestream_client::{ResultsClient, v1};

use crate::{failure::Failure, output};

/// Columns before those of counts.
const COLUMNS: [&str; 2] = ["option_id", "title"];

/// Prints a row for each option: its id, its title, and its counts.
pub(super) async fn print<'a, const N: usize>(
    results: &ResultsClient,
    poll_id: &str,
    counts: [&str; N],
    rows: impl Iterator<Item = (&'a str, [u64; N])>,
) -> Result<(), Failure> {
    let poll = results.get_poll(poll_id).await.map_err(|error| Failure::client("reading the poll", error))?;
    if let Some(cell) = poll.options.iter().flat_map(|o| [&o.option_id, &o.title]).find(|cell| is_formula(cell)) {
        output::note(&format!(
            "a spreadsheet may take {} for a formula: import option_id and title as text",
            output::printable(cell)
        ));
    }
    let table = table(&poll.options, counts, rows);
    output::bytes(&table.map_err(|error| Failure::failed(format!("cannot write CSV: {error}")))?)
}

fn table<'a, const N: usize>(
    options: &[v1::PollOption],
    counts: [&str; N],
    rows: impl Iterator<Item = (&'a str, [u64; N])>,
) -> Result<Vec<u8>, csv::Error> {
    let titles: HashMap<&str, &str> =
        options.iter().map(|option| (option.option_id.as_str(), option.title.as_str())).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS.into_iter().chain(counts))?;
    for (option_id, counts) in rows {
        writer.serialize((option_id, titles.get(option_id).copied().unwrap_or_default(), &counts[..]))?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

/// Whether a spreadsheet computes what is in a cell, unless it is told that it is text.
fn is_formula(cell: &str) -> bool {
    cell.starts_with(['=', '+', '-', '@']) && cell.parse::<f64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_titles_are_read_again_as_they_were() {
        let cells = [
            ("a=b", "x=y"),
            ("c,d", "say \"hi\", please"),
            ("🍕", ""),
            ("عربي", "شاورما"),
            ("=1+1", "@home"),
            ("-5", " blank "),
            ("old\nline", "two\r\nlines"),
        ];
        let option = |(id, title): (&str, &str)| v1::PollOption { option_id: id.into(), title: title.into() };
        let options = cells.map(option);
        let rows = options.iter().enumerate().map(|(at, option)| (option.option_id.as_str(), [at as u64, u64::MAX]));
        let table = table(&options, ["submitted", "counted"], rows).unwrap();
        assert!(table.starts_with(b"option_id,title,submitted,counted\na=b,x=y,0,18446744073709551615\n"));
        let mut reader = csv::Reader::from_reader(&table[..]);
        let read: Vec<(String, String, usize, u64)> = reader.deserialize().map(Result::unwrap).collect();
        assert_eq!(read.len(), cells.len());
        for (at, (row, (id, title))) in read.iter().zip(cells).enumerate() {
            assert_eq!((row.0.as_str(), row.1.as_str(), row.2), (id, title, at));
        }
    }

    #[test]
    fn what_a_spreadsheet_would_compute() {
        assert!(is_formula("=1+1") && is_formula("@home") && is_formula("-x") && is_formula("+49 30"));
        assert!(!is_formula("-5") && !is_formula("a=1") && !is_formula(""));
    }
}
