//! Files of lines in UTF-8 that people have made: votes, or options of a poll.
//!
//! Owns the reading of lines and their numbers, and the rules of CSV. A line that cannot be read costs only itself. A file of
//! another kind is refused as a whole, and the message says what to do. Must never keep a line longer than its bound.

pub(crate) mod csv;

use std::io::{self, BufRead, BufReader, Read};

/// Longest line that is read. Three ids of the greatest length are shorter, even escaped in JSON, and so is an id with a title.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 10;
/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 16;

/// A line that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadLine {
    /// The reason, in one sentence.
    pub(crate) reason: String,
}

impl BadLine {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// The lines of a file that are not blank, with their numbers, from 1.
pub(crate) struct Lines<R> {
    input: BufReader<R>,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: Read> Lines<R> {
    /// Reads from here.
    pub(crate) fn new(input: R) -> Self {
        Self { input: BufReader::with_capacity(READ_BYTES, input), buffer: Vec::new(), number: 0 }
    }

    /// Whether the next line has been read already, so that [`Self::next`] does not wait for the input.
    pub(crate) fn has_line(&self) -> bool {
        self.input.buffer().contains(&b'\n')
    }

    /// The next line that is not blank. An error ends the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Result<&str, BadLine>)>> {
        let too_long = loop {
            let Some(too_long) = read_line(&mut self.input, &mut self.buffer)? else { return Ok(None) };
            self.number += 1;
            if self.number == 1 {
                refuse_other_kinds(&self.buffer)?;
                if self.buffer.starts_with(b"\xef\xbb\xbf") {
                    self.buffer.drain(..3);
                }
            }
            let is_blank = std::str::from_utf8(&self.buffer).is_ok_and(|text| text.trim().is_empty());
            if too_long || !is_blank {
                break too_long;
            }
        };
        let line = match too_long {
            true => Err(BadLine::new(format!("the line is longer than {LINE_BYTES_MAX} bytes"))),
            false => std::str::from_utf8(&self.buffer).map_err(|_| BadLine::new("the line is not valid UTF-8")),
        };
        Ok(Some((self.number, line)))
    }
}

/// Refuses files that are not text in UTF-8, by their first bytes. Otherwise each of their lines would be
/// reported as broken.
fn refuse_other_kinds(start: &[u8]) -> io::Result<()> {
    const UTF_8: &str = "save it as UTF-8, or convert it, for example with `iconv -f UTF-16 -t UTF-8`";
    let kind = if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        format!("the file is UTF-16: {UTF_8}")
    } else if start.starts_with(b"PK\x03\x04") {
        "the file is a spreadsheet or a ZIP archive: save it as CSV in UTF-8, or unpack it".to_owned()
    } else if start.starts_with(b"\x1f\x8b") {
        "the file is compressed with gzip: give what `gunzip -c` prints, with - as the file".to_owned()
    } else if start.contains(&0) {
        format!("the file holds zero bytes, so it is not text or it is UTF-16: {UTF_8}")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, kind))
}

/// Reads a line, without its line break. `None` at the end of the input; `Some(true)` if the line was too long and was
/// skipped.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut input = vec![b'x'; 10 * LINE_BYTES_MAX];
        input.extend(b"\nshort\n");
        let mut lines = Lines::new(&input[..]);
        assert!(matches!(lines.next(), Ok(Some((1, Err(_))))));
        assert!(matches!(lines.next(), Ok(Some((2, Ok("short"))))));
        assert!(lines.buffer.capacity() <= 2 * LINE_BYTES_MAX);
    }

    #[test]
    fn it_knows_whether_it_would_wait() {
        let mut lines = Lines::new(&b"one\ntwo\nthree"[..]);
        assert!(!lines.has_line());
        assert!(lines.next().unwrap().is_some() && lines.has_line());
        assert!(lines.next().unwrap().is_some() && !lines.has_line());
    }

    #[test]
    fn blank_lines_and_the_mark_of_utf_8_are_skipped_and_counted() {
        let mut lines = Lines::new(&b"\xef\xbb\xbf\r\n \t\n\xc2\xa0\nfour\r\n\xff\n"[..]);
        assert!(matches!(lines.next(), Ok(Some((4, Ok("four"))))));
        assert!(matches!(lines.next(), Ok(Some((5, Err(_))))));
        assert!(matches!(lines.next(), Ok(None)));
    }
}
