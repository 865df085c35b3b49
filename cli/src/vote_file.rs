//! Files of votes: CSV or JSON lines, recognised by their first character.
//!
//! Owns the reading of lines and their numbers. One line is one vote, so a broken line (a stray quote, bytes that are no
//! text) costs only itself. Must never judge an id: what a valid one is, the service says.

use std::io::{self, BufRead};

use serde::Deserialize;

/// Longest line that is read; three ids of the greatest length, escaped in JSON, take less.
const LINE_BYTES_MAX: usize = 16 << 10;

/// The fields in the order of a file without a header.
const FIELDS: [&str; 3] = ["poll_id", "user_id", "option_id"];

/// One vote of a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) poll_id: String,
    pub(crate) user_id: String,
    pub(crate) option_id: String,
}

/// A line that is not a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadLine {
    /// Why, in a sentence.
    pub(crate) reason: String,
}

impl BadLine {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv {
        /// Column of each of [`FIELDS`].
        columns: [usize; 3],
        /// Columns of a line.
        width: usize,
    },
    JsonLines,
}

/// The votes of a file with their line numbers, from 1.
pub(crate) struct VoteFile<R> {
    input: R,
    buffer: Vec<u8>,
    line: u64,
    format: Option<Format>,
}

impl<R: BufRead> VoteFile<R> {
    /// Reads from here.
    pub(crate) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), line: 0, format: None }
    }

    /// The next line that is not blank and not the header. An error ends the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Result<Row, BadLine>)>> {
        while let Some(too_long) = read_line(&mut self.input, &mut self.buffer)? {
            self.line += 1;
            if self.line == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.buffer.drain(..3);
            }
            if too_long {
                let reason = format!("the line is longer than {LINE_BYTES_MAX} bytes");
                return Ok(Some((self.line, Err(BadLine::new(reason)))));
            }
            let text = match std::str::from_utf8(&self.buffer) {
                Ok(text) if text.trim().is_empty() => continue,
                Ok(text) => text,
                Err(_) => return Ok(Some((self.line, Err(BadLine::new("the line is not valid UTF-8"))))),
            };
            let format = match self.format {
                Some(format) => format,
                None => {
                    let (format, is_header) = recognise(text);
                    self.format = Some(format);
                    if is_header {
                        continue;
                    }
                    format
                }
            };
            return Ok(Some((self.line, parse(text, format))));
        }
        Ok(None)
    }
}

/// Reads a line without its end. `None` at the end of the input; `Some(true)` if the line was too long and is skipped.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let (mut any, mut too_long) = (false, false);
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            break;
        }
        any = true;
        let end = available.iter().position(|&byte| byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        if line.len() + part.len() > LINE_BYTES_MAX {
            too_long = true;
        } else {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            break;
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(any.then_some(too_long))
}

/// Tells the format by the first line, and whether that line is a header.
fn recognise(first: &str) -> (Format, bool) {
    const PLAIN: Format = Format::Csv { columns: [0, 1, 2], width: 3 };
    if first.trim_start().starts_with('{') {
        return (Format::JsonLines, false);
    }
    let Ok(names) = split_csv(first) else { return (PLAIN, false) };
    let column = |field: &str| names.iter().position(|name| name.trim() == field);
    match FIELDS.map(column) {
        [Some(poll), Some(user), Some(option)] => {
            (Format::Csv { columns: [poll, user, option], width: names.len() }, true)
        }
        _ => (PLAIN, false),
    }
}

fn parse(line: &str, format: Format) -> Result<Row, BadLine> {
    match format {
        Format::JsonLines => serde_json::from_str(line).map_err(|error| {
            // serde_json counts lines of its own, and every line is its first.
            let message = error.to_string();
            BadLine::new(message.split(" at line ").next().unwrap_or(&message))
        }),
        Format::Csv { columns, width } => {
            let mut fields = split_csv(line)?;
            if fields.len() != width {
                let expected = if width == 3 { FIELDS.join(",") } else { format!("{width} fields, as in the header") };
                return Err(BadLine::new(format!("expected {expected}; the line has {} fields", fields.len())));
            }
            let [poll_id, user_id, option_id] = columns.map(|column| std::mem::take(&mut fields[column]));
            Ok(Row { poll_id, user_id, option_id })
        }
    }
}

fn split_csv(line: &str) -> Result<Vec<String>, BadLine> {
    if !line.contains('"') {
        return Ok(line.split(',').map(str::to_owned).collect());
    }
    // A field cannot span lines, since no id holds a line break; so an odd quote is a mistake in this line.
    if line.matches('"').count() % 2 == 1 {
        return Err(BadLine::new("a quote is not closed"));
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(line.len() + 1)
        .from_reader(line.as_bytes());
    match reader.records().next() {
        Some(Ok(record)) => Ok(record.iter().map(str::to_owned).collect()),
        Some(Err(error)) => Err(BadLine::new(error.to_string())),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line's number with its fields, or with the reason.
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
        assert_eq!(read[1], (2, Err("missing field `user_id`".into())));
        assert_eq!(read[2].0, 3);
        assert!(read[2].1.is_err());
        assert_eq!(read[3], good(5, "p|ü|b"));
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut input = vec![b'x'; 10 * LINE_BYTES_MAX];
        input.extend(b"\np,u,a\n");
        let mut file = VoteFile::new(io::BufReader::with_capacity(100, &input[..]));
        assert!(matches!(file.next(), Ok(Some((1, Err(_))))));
        assert!(matches!(file.next(), Ok(Some((2, Ok(_))))));
        assert!(file.buffer.capacity() <= 2 * LINE_BYTES_MAX);
    }
}
