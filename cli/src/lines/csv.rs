//! Lines of CSV: which characters divide the fields, and what belongs to a field.
//!
//! Owns the rule about blanks. It is the rule of spreadsheets: blanks around a field are not part of it, blanks inside
//! quotes are.

use super::BadLine;

/// Characters that may divide fields, in the order in which they are tried: spreadsheets write semicolons where numbers
/// have a decimal comma.
pub(crate) const DELIMITERS: [u8; 3] = [b',', b'\t', b';'];

/// The delimiter in a first line such as `sep=;`, which some spreadsheets write.
pub(crate) fn delimiter_line(first: &str) -> Option<u8> {
    let delimiter = first.trim_end_matches(['\r', '\n']).strip_prefix("sep=")?;
    DELIMITERS.into_iter().find(|known| delimiter.as_bytes() == [*known])
}

/// The fields of a line by every delimiter that it may have.
pub(crate) fn splits(line: &str, delimiter: Option<u8>) -> Vec<(u8, Vec<String>)> {
    DELIMITERS
        .into_iter()
        .filter(|known| delimiter.is_none_or(|delimiter| delimiter == *known))
        .filter_map(|known| Some((known, split(line, known).ok()?)))
        .collect()
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t' || c == '\r'
}

/// The fields of a line. A field cannot go over several lines, since neither an id nor a title holds a line break.
pub(crate) fn split(line: &str, delimiter: u8) -> Result<Vec<String>, BadLine> {
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
