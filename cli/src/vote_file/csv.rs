//! Lines of CSV: which character divides the fields, and what belongs to a field.
//!
//! Owns the columns of a file, and the rule about blanks. It is the rule of spreadsheets: blanks around a field are not
//! part of it, blanks inside quotes are.

use super::{BadLine, FIELDS, Row};

/// Characters that may divide fields, in the order in which they are tried: spreadsheets write semicolons where numbers
/// have a decimal comma.
const DELIMITERS: [u8; 3] = [b',', b'\t', b';'];

/// How the lines of a file are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    delimiter: u8,
    /// Column of each of [`FIELDS`].
    columns: [usize; 3],
    /// Number of columns in a line.
    width: usize,
}

/// The delimiter in a first line such as `sep=;`, which some spreadsheets write.
pub(super) fn delimiter_line(first: &str) -> Option<u8> {
    let delimiter = first.trim_end_matches(['\r', '\n']).strip_prefix("sep=")?;
    DELIMITERS.into_iter().find(|known| delimiter.as_bytes() == [*known])
}

impl Format {
    /// The format of a file with this first line, and whether the line is a header. `delimiter` is the character that
    /// divides the fields, if it is known.
    pub(super) fn recognise(first: &str, delimiter: Option<u8>) -> (Self, bool) {
        let candidates: Vec<(u8, Vec<String>)> = DELIMITERS
            .into_iter()
            .filter(|known| delimiter.is_none_or(|delimiter| delimiter == *known))
            .filter_map(|known| Some((known, split(first, known).ok()?)))
            .collect();
        for (delimiter, names) in &candidates {
            let column = |field: &str| names.iter().position(|name| name.eq_ignore_ascii_case(field));
            if let [Some(poll), Some(user), Some(option)] = FIELDS.map(column) {
                return (Self { delimiter: *delimiter, columns: [poll, user, option], width: names.len() }, true);
            }
        }
        let fitting = candidates.iter().find(|(_, fields)| fields.len() == FIELDS.len());
        let delimiter = fitting.map(|(delimiter, _)| *delimiter).or(delimiter).unwrap_or(DELIMITERS[0]);
        (Self { delimiter, columns: [0, 1, 2], width: FIELDS.len() }, false)
    }

    /// The vote in a line.
    pub(super) fn parse(&self, line: &str) -> Result<Row, BadLine> {
        let mut fields = split(line, self.delimiter)?;
        if fields.len() != self.width {
            let expected = match self.width {
                3 => FIELDS.join(char::from(self.delimiter).to_string().as_str()),
                width => format!("{width} fields, as in the header"),
            };
            return Err(BadLine::new(format!("expected {expected}; the line has {} fields", fields.len())));
        }
        let [poll_id, user_id, option_id] = self.columns.map(|column| std::mem::take(&mut fields[column]));
        Ok(Row { poll_id, user_id, option_id })
    }
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t' || c == '\r'
}

/// The fields of a line. A field cannot go over several lines, since no id holds a line break.
fn split(line: &str, delimiter: u8) -> Result<Vec<String>, BadLine> {
    let delimiter = char::from(delimiter);
    // A tab that divides fields does not count as a blank.
    let trim = |text: &str| -> usize { text.find(|c| c == delimiter || !is_blank(c)).unwrap_or(text.len()) };
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        rest = &rest[trim(rest)..];
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (field, after) = unquote(quoted)?;
                (field, &after[trim(after)..])
            }
            None => {
                let (field, after) = rest.split_at(rest.find(delimiter).unwrap_or(rest.len()));
                (field.trim_end_matches(is_blank).to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(delimiter) {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(BadLine::new("a field has text after its closing quote")),
        }
    }
}

/// The text before the closing quote, and the text after it. Two quotes stand for one quote in the field.
fn unquote(mut rest: &str) -> Result<(String, &str), BadLine> {
    let mut field = String::new();
    loop {
        let Some((text, after)) = rest.split_once('"') else { return Err(BadLine::new("a quote is not closed")) };
        field.push_str(text);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, after)),
        }
    }
}
