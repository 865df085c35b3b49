//! Columns of a CSV file of votes.

use super::{FIELDS, Row};
use crate::lines::{
    BadLine,
    csv::{DELIMITERS, split, splits},
};

/// How the lines of a file are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    delimiter: u8,
    /// Column of each of [`FIELDS`].
    columns: [usize; 3],
    /// Number of columns in a line.
    width: usize,
}

impl Format {
    /// The format of a file with this first line, and whether the line is a header. `delimiter` is the character that
    /// divides the fields, if it is known.
    pub(super) fn recognise(first: &str, delimiter: Option<u8>) -> (Self, bool) {
        let candidates = splits(first, delimiter);
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
