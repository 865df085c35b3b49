//! Files of votes: CSV or JSON lines. The first line shows which.
//!
//! Owns how a line becomes a vote. One line is one vote, so a broken line (a stray quote, bytes that are not text) costs
//! only itself. Must never judge an id: the service says which ids are valid.

mod csv;

use std::io::{self, Read};

use serde::Deserialize;
use votestream_core::record::foreign::JsonText;

use self::csv::Format as Csv;
use crate::lines::{BadLine, Lines, csv::delimiter_line};

/// The fields in the order of a file without a header.
const FIELDS: [&str; 3] = ["poll_id", "user_id", "option_id"];

/// One vote of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) poll_id: String,
    pub(crate) user_id: String,
    pub(crate) option_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv(Csv),
    JsonLines,
}

/// The votes of a file with their line numbers, from 1.
pub(crate) struct VoteFile<R> {
    lines: Lines<R>,
    format: Option<Format>,
    /// The delimiter of a CSV file, if its first line names one.
    delimiter: Option<u8>,
}

impl<R: Read> VoteFile<R> {
    /// Reads from here.
    pub(crate) fn new(input: R) -> Self {
        Self { lines: Lines::new(input), format: None, delimiter: None }
    }

    /// Whether the next line has been read already, so that [`Self::next`] does not wait for the input.
    pub(crate) fn has_line(&self) -> bool {
        self.lines.has_line()
    }

    /// The next line that is neither blank nor the header. An error ends the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Result<Row, BadLine>)>> {
        while let Some((number, line)) = self.lines.next()? {
            let text = match line {
                Ok(text) => text,
                Err(bad) => return Ok(Some((number, Err(bad)))),
            };
            let format = match self.format {
                Some(format) => format,
                None => {
                    if let Some(delimiter) = delimiter_line(text) {
                        self.delimiter = Some(delimiter);
                        continue;
                    }
                    let (format, is_header) = recognise(text, self.delimiter)?;
                    self.format = Some(format);
                    if is_header {
                        continue;
                    }
                    format
                }
            };
            return Ok(Some((number, parse(text, format))));
        }
        Ok(None)
    }
}

/// The format of a file with this first line, and whether the line is a header.
fn recognise(first: &str, delimiter: Option<u8>) -> io::Result<(Format, bool)> {
    let start = first.trim();
    let other = |kind: &str, filter: &str| {
        let message =
            format!("the file is {kind}: write one JSON object per line, for example with `jq -c '{filter}'`");
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    };
    if start.starts_with('[') {
        return other("a JSON array", ".[]");
    }
    if start == "{" {
        return other("JSON over several lines", ".");
    }
    if start.starts_with('{') {
        return Ok((Format::JsonLines, false));
    }
    let (csv, is_header) = Csv::recognise(first, delimiter);
    Ok((Format::Csv(csv), is_header))
}

fn parse(line: &str, format: Format) -> Result<Row, BadLine> {
    match format {
        Format::JsonLines => parse_json(line),
        Format::Csv(csv) => csv.parse(line),
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    poll_id: Option<JsonText<'a>>,
    #[serde(borrow)]
    user_id: Option<JsonText<'a>>,
    #[serde(borrow)]
    option_id: Option<JsonText<'a>>,
}

fn parse_json(line: &str) -> Result<Row, BadLine> {
    let fields: Fields<'_> = serde_json::from_str(line).map_err(|error| {
        // serde_json adds its own line number, which is always 1 here.
        let message = error.to_string();
        BadLine::new(message.split(" at line ").next().unwrap_or(&message))
    })?;
    let text = |value, field| match JsonText::required(value, field) {
        Ok(text) => Ok(text.into_owned()),
        Err(error) => Err(BadLine::new(error.to_string())),
    };
    Ok(Row {
        poll_id: text(fields.poll_id, "poll_id")?,
        user_id: text(fields.user_id, "user_id")?,
        option_id: text(fields.option_id, "option_id")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line's number with its fields, or with the reason why it is not a vote.
    fn read(input: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut file = VoteFile::new(input);
        std::iter::from_fn(|| file.next().unwrap())
            .map(|(line, row)| {
                let row = row.map(|row| [row.poll_id, row.user_id, row.option_id].join("|"));
                (line, row.map_err(|bad| bad.reason))
            })
            .collect()
    }

    fn good(line: u64, fields: &str) -> (u64, Result<String, String>) {
        (line, Ok(fields.into()))
    }

    #[test]
    fn csv_with_and_without_header() {
        let expected = [good(2, "p|u1|a"), good(4, "p|u2|b")];
        assert_eq!(read(b"poll_id,user_id,option_id\np,u1,a\n\np,u2,b"), expected);
        assert_eq!(read(b"\xef\xbb\xbf\"option_id\",user_id,x,poll_id\r\na,u1,,p\r\n\r\nb,u2,,p\r\n"), expected);
        assert_eq!(read(b"p,u1,a\np,u2,b\n"), [good(1, "p|u1|a"), good(2, "p|u2|b")]);
        assert_eq!(read(b""), []);
    }

    #[test]
    fn quoted_fields() {
        assert_eq!(read(b"p,\"Doe, Jane\",\"the \"\"best\"\"\"\n"), [good(1, "p|Doe, Jane|the \"best\"")]);
    }

    #[test]
    fn a_broken_csv_line_costs_only_itself() {
        let read = read(b"p,u1,a\np,\"u2,a\np,u3\np,u4,a,x\np,\xff,a\np,u6,a\n");
        assert_eq!(read.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            read.iter().map(|(_, row)| row.is_ok()).collect::<Vec<_>>(),
            [true, false, false, false, false, true]
        );
        assert_eq!(read[1].1, Err("a quote is not closed".into()));
        assert_eq!(read[2].1, Err("expected poll_id,user_id,option_id; the line has 2 fields".into()));
        assert_eq!(read[4].1, Err("the line is not valid UTF-8".into()));
    }

    #[test]
    fn json_lines() {
        let read = read(
            b"{\"user_id\":\"u1\",\"poll_id\":\"p\",\"option_id\":\"a\",\"at\":1}\n{\"poll_id\":\"p\"}\nnonsense\n\n\
              {\"poll_id\":\"p\",\"user_id\":\"\\u00fc\",\"option_id\":\"b\"}\n",
        );
        assert_eq!(read[0], good(1, "p|u1|a"));
        assert_eq!(read[1], (2, Err("user_id is missing".into())));
        assert_eq!(read[2].0, 3);
        assert!(read[2].1.is_err());
        assert_eq!(read[3], good(5, "p|ü|b"));
    }

    #[test]
    fn blanks_around_fields_are_not_part_of_them() {
        let expected = [good(2, "p|u1|New York")];
        assert_eq!(read(b"poll_id, user_id, option_id\np, u1, New York\n"), expected);
        assert_eq!(read(b" \"poll_id\" ,USER_ID , option_id\n\tp\t, \"u1\" ,  New York  \r\n"), expected);
        // Blanks inside quotes belong to the field.
        assert_eq!(read(b"p, \" u1 \" ,a\n"), [good(1, "p| u1 |a")]);
        assert_eq!(read(b"p;  \"Doe; Jane\";a\n"), [good(1, "p|Doe; Jane|a")]);
    }

    #[test]
    fn columns_may_be_divided_by_tabs_or_semicolons() {
        assert_eq!(read(b"p\tu1\ta, b\np\tu2\tc\n"), [good(1, "p|u1|a, b"), good(2, "p|u2|c")]);
        assert_eq!(read(b"user_id;option_id;poll_id\nu1;a,b;p\n"), [good(2, "p|u1|a,b")]);
        assert_eq!(read(b"sep=;\nuser_id;option_id;poll_id\nu1;a;p\n"), [good(3, "p|u1|a")]);
        // Three fields with commas are three fields, whatever other delimiters they contain.
        assert_eq!(read(b"p,u;1,a;b\n"), [good(1, "p|u;1|a;b")]);
    }

    #[test]
    fn other_kinds_of_files_are_refused_with_what_to_do() {
        let utf_16: Vec<u8> = "\u{feff}p,u,a\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big_endian: Vec<u8> = "\u{feff}p,u,a\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let unmarked: Vec<u8> = "p,u,a\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (input, kind, advice) in [
            (&utf_16[..], "UTF-16", "UTF-8"),
            (&big_endian, "UTF-16", "UTF-8"),
            (&unmarked, "UTF-16", "UTF-8"),
            (b"[{\"poll_id\":\"p\"}]", "JSON array", "jq -c '.[]'"),
            (b"\n [\n", "JSON array", "jq -c '.[]'"),
            (b"{\n  \"poll_id\": \"p\"\n}\n", "JSON over several lines", "jq -c '.'"),
            (b"\x1f\x8b\x08\x00", "gzip", "gunzip"),
            (b"PK\x03\x04\x14", "spreadsheet", "CSV"),
        ] {
            let error = VoteFile::new(input).next().unwrap_err().to_string();
            assert!(error.contains(kind) && error.contains(advice), "{error}");
        }
    }

    #[test]
    fn numbers_are_ids_wherever_json_has_them() {
        let read = read(
            b"{\"poll_id\":7,\"user_id\":18446744073709551615,\"option_id\":-3}\n\
              {\"poll_id\":7,\"user_id\":18446744073709551616,\"option_id\":1}\n\
              {\"poll_id\":7,\"user_id\":1.5,\"option_id\":1}\n{\"poll_id\":7,\"user_id\":null,\"option_id\":1}\n",
        );
        assert_eq!(read[0], good(1, "7|18446744073709551615|-3"));
        let expected = "user_id must be a string or a whole number of up to 64 bits";
        assert_eq!(read[1].1, Err(expected.into()));
        assert_eq!(read[2].1, Err(expected.into()));
        assert_eq!(read[3].1, Err("user_id is missing".into()));
    }
}
