//! Files of options: CSV, one option a line.
//!
//! Owns how a line becomes an option. The first line that cannot be read refuses the file: a poll cannot be changed once it
//! is created. Must never judge an id or a title: the service says which are valid. Must never hold more than its bounds.

use std::io::Read;

use votestream_core::model::limits::OPTIONS_MAX;

use crate::lines::{
    BadLine, Lines,
    csv::{DELIMITERS, delimiter_line, split, splits},
};

/// Largest file that is read. A thousand options with the longest ids and titles are smaller, even if every byte is a quote.
const FILE_BYTES_MAX: u64 = 2 << 20;
/// The fields in the order of a file without a header.
const FIELDS: [&str; 2] = ["option_id", "title"];

/// An option of a poll that is to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewOption {
    pub(crate) option_id: String,
    /// May be empty.
    pub(crate) title: String,
}

/// Reads a file with at most this many options.
///
/// # Errors
///
/// Says what is wrong, and in which line.
pub(crate) fn read(input: impl Read, options_max: usize) -> Result<Vec<NewOption>, String> {
    let mut bytes = Vec::new();
    let size = input.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if size as u64 > FILE_BYTES_MAX {
        return Err(format!("the file is larger than {FILE_BYTES_MAX} bytes"));
    }
    let mut lines = Lines::new(&bytes[..]);
    let (mut columns, mut options) = (Columns::default(), Vec::new());
    while let Some((number, line)) = lines.next().map_err(|error| error.to_string())? {
        let at_line = |bad: BadLine| format!("line {number}: {}", bad.reason);
        let line = line.map_err(at_line)?;
        if columns.take_header(line).map_err(at_line)? {
            continue;
        }
        if options.len() == options_max {
            return Err(format!("line {number}: a poll has at most {OPTIONS_MAX} options, those of --option included"));
        }
        options.push(columns.parse(line).map_err(at_line)?);
    }
    if options.is_empty() { Err("the file has no options".to_owned()) } else { Ok(options) }
}

/// How the lines of a file are read.
struct Columns {
    /// Not known before a line shows it: the title may be missing.
    delimiter: Option<u8>,
    option_id: usize,
    title: Option<usize>,
    /// Number of columns in a line.
    width: usize,
    /// Whether the next line may be the header.
    is_start: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self { delimiter: None, option_id: 0, title: Some(1), width: FIELDS.len(), is_start: true }
    }
}

impl Columns {
    /// Whether the line is a header, or names the delimiter, rather than an option.
    fn take_header(&mut self, line: &str) -> Result<bool, BadLine> {
        if !self.is_start {
            return Ok(false);
        }
        if self.delimiter.is_none() && delimiter_line(line).is_some() {
            self.delimiter = delimiter_line(line);
            return Ok(true);
        }
        self.is_start = false;
        if line.trim_start().starts_with('{') || line.trim_start().starts_with("[{") || line.trim() == "[" {
            return Err(BadLine::new("the file is JSON: write CSV, one option a line, such as pizza,Pizza Margherita"));
        }
        for (delimiter, names) in splits(line, self.delimiter) {
            let column = |field: &str| names.iter().position(|name| name.eq_ignore_ascii_case(field));
            if let [Some(option_id), title] = FIELDS.map(column) {
                let delimiter = if names.len() > 1 { Some(delimiter) } else { self.delimiter };
                *self = Self { delimiter, option_id, title, width: names.len(), is_start: false };
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The option in a line.
    fn parse(&mut self, line: &str) -> Result<NewOption, BadLine> {
        let mut fields = match self.delimiter {
            Some(delimiter) => split(line, delimiter)?,
            None => self.first_fields(line)?,
        };
        let lacks_its_title = fields.len() == 1 && (self.option_id, self.title, self.width) == (0, Some(1), 2);
        if fields.len() != self.width && !lacks_its_title {
            let expected = match (self.width, self.title) {
                (2, Some(1)) => "expected option_id,title".to_owned(),
                (width, _) => format!("expected {width} fields, as in the header"),
            };
            return Err(BadLine::new(format!("{expected}; the line has {} fields", fields.len())));
        }
        let mut take = |column: usize| fields.get_mut(column).map(std::mem::take).unwrap_or_default();
        let option = NewOption { option_id: take(self.option_id), title: self.title.map(take).unwrap_or_default() };
        if option.option_id.is_empty() {
            return Err(BadLine::new("option_id is empty"));
        }
        Ok(option)
    }

    /// The fields of a line while the delimiter is not known. The first line with an id and a title shows it: what ends the id is
    /// the delimiter, whatever the title holds.
    fn first_fields(&mut self, line: &str) -> Result<Vec<String>, BadLine> {
        let pairs = splits(line, None).into_iter().filter(|(_, fields)| fields.len() == self.width);
        if let Some((delimiter, fields)) = pairs.min_by_key(|(_, fields)| fields[0].len()) {
            self.delimiter = Some(delimiter);
            return Ok(fields);
        }
        let mut most = Vec::new();
        for delimiter in DELIMITERS {
            let fields = split(line, delimiter)?;
            if fields.len() > most.len() {
                most = fields;
            }
        }
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn read(input: &[u8]) -> Result<Vec<String>, String> {
        let options = super::read(input, OPTIONS_MAX)?;
        Ok(options.into_iter().map(|option| format!("{}|{}", option.option_id, option.title)).collect())
    }

    fn good(options: &[&str]) -> Result<Vec<String>, String> {
        Ok(options.iter().map(|option| (*option).to_owned()).collect())
    }

    #[test]
    fn ids_with_and_without_titles() {
        let expected = good(&["pizza|Pizza Margherita", "salad|", "soup|Soup"]);
        assert_eq!(read(b"pizza,Pizza Margherita\nsalad\nsoup, Soup \n"), expected);
        assert_eq!(read(b"\xef\xbb\xbfoption_id,title\r\npizza,Pizza Margherita\r\n\r\nsalad,\r\nsoup,Soup"), expected);
        assert_eq!(read(b"Title;x;Option_Id\nPizza Margherita;1;pizza\n;;salad\nSoup;;soup"), expected);
        // The first line with a title shows the delimiter.
        assert_eq!(read(b"salad\nsoup;Soup, warm"), good(&["salad|", "soup|Soup, warm"]));
        assert_eq!(read(b"sep=;\noption_id;title\nsoup;a,b\n"), good(&["soup|a,b"]));
        assert_eq!(read(b"option_id\nsoup\n"), good(&["soup|"]));
        assert_eq!(read(b"soup"), good(&["soup|"]));
    }

    #[test]
    fn whatever_a_title_holds_is_quoted_or_kept() {
        let file =
            "a=b,x=y\n\"c,d\",\"say \"\"hi\"\", please\"\n🍕,🍕 Pizza\nعربي,شاورما\n=1+1,@home\n\"x;y\"\n\" \",\" t \"";
        let expected =
            ["a=b|x=y", "c,d|say \"hi\", please", "🍕|🍕 Pizza", "عربي|شاورما", "=1+1|@home", "x;y|", " | t "];
        assert_eq!(read(file.as_bytes()), good(&expected));
    }

    #[test]
    fn mistakes_name_their_line() {
        let long = format!("a\n{}", "x".repeat(1 << 15));
        for (file, mistake) in [
            (&b"a\nb,\"B\n"[..], "line 2: a quote is not closed"),
            (b"a,A\n\nb,B,C\n", "line 3: expected option_id,title; the line has 3 fields"),
            (b"a;b;c\n", "line 1: expected option_id,title; the line has 3 fields"),
            (b"title,option_id\nA\n", "line 2: expected 2 fields, as in the header; the line has 1 fields"),
            (b"a,A\n,B\n", "line 2: option_id is empty"),
            (b"a\n\xff\n", "line 2: the line is not valid UTF-8"),
            (long.as_bytes(), "line 2: the line is longer than 16384 bytes"),
            (b"[{\"option_id\": \"a\"}]", "line 1: the file is JSON: write CSV, one option a line"),
            (b"", "the file has no options"),
            (b"option_id,title\n", "the file has no options"),
            (b"PK\x03\x04", "save it as CSV in UTF-8"),
        ] {
            let error = read(file).unwrap_err();
            assert!(error.contains(mistake), "{error}");
        }
    }

    #[test]
    fn a_file_is_bounded() {
        let lines = |count: usize| (0..count).map(|at| format!("o{at}\n")).collect::<String>();
        assert_eq!(read(lines(OPTIONS_MAX).as_bytes()).unwrap().len(), OPTIONS_MAX);
        let error = read(lines(OPTIONS_MAX + 1).as_bytes()).unwrap_err();
        assert_eq!(error, "line 1001: a poll has at most 1000 options, those of --option included");
        assert!(super::read(&b"a\nb\n"[..], 1).is_err());
        let error = super::read(io::repeat(b'\n'), 1).unwrap_err();
        assert_eq!(error, "the file is larger than 2097152 bytes");
    }
}
