//! Reads TOML tables and collects everything that is wrong with them.
//!
//! Owns the wording of such mistakes. Must never stop at the first one, nor keep as many as a file has lines: a program that
//! writes every entry wrong would fill the log.

use toml::Table;

/// Reads a file's table. An error names the place and not what stands there: it may be a secret, or a voter.
pub(super) fn table_of(text: &str) -> Result<Table, String> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
        format!("line {line}, column {column}: {}", error.message())
    })
}

/// Most mistakes of one file that are told. The others are counted.
const MISTAKES_MAX: usize = 100;

/// Mistakes of one file.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    told: Vec<String>,
    more: usize,
}

impl Mistakes {
    pub(super) fn add(&mut self, at: &str, what: impl std::fmt::Display) {
        if self.told.len() == MISTAKES_MAX {
            self.more += 1;
            return;
        }
        self.told.push(if at.is_empty() { what.to_string() } else { format!("{at}: {what}") });
    }

    /// An error if there are any.
    pub(super) fn end(mut self) -> Result<(), Vec<String>> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        if self.told.is_empty() { Ok(()) } else { Err(self.told) }
    }
}

/// A table of a file, of which every key must be known.
pub(super) struct Entry<'a> {
    /// What the table is called in mistakes.
    pub(super) at: String,
    table: Table,
    pub(super) mistakes: &'a mut Mistakes,
}

impl<'a> Entry<'a> {
    pub(super) fn new(at: String, table: Table, mistakes: &'a mut Mistakes) -> Self {
        Self { at, table, mistakes }
    }

    pub(super) fn wrong(&mut self, what: impl std::fmt::Display) {
        self.mistakes.add(&self.at, what);
    }

    /// A text. `None` if there is none, or if it is wrong.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.table.remove(key)?;
        let text = value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned);
        if text.is_none() {
            self.wrong(format_args!("{key} must be a text that is not empty"));
        }
        text
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, key: &str) -> Option<String> {
        if !self.table.contains_key(key) {
            self.wrong(format_args!("{key} is missing"));
        }
        self.text(key)
    }

    /// A list of texts that must be there; a single text is a list of one.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let Some(value) = self.table.remove(key) else {
            self.wrong(format_args!("{key} is missing"));
            return None;
        };
        let texts = match value.as_array() {
            Some(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>(),
            None => value.as_str().map(|text| vec![text.to_owned()]),
        };
        let texts = texts.filter(|texts| !texts.is_empty() && texts.iter().all(|text| !text.trim().is_empty()));
        if texts.is_none() {
            self.wrong(format_args!("{key} must be a list of texts that are not empty"));
        }
        texts
    }

    /// A moment, in seconds since 1970.
    pub(super) fn moment(&mut self, key: &str) -> Option<i64> {
        let value = self.table.remove(key)?;
        let moment = value
            .as_datetime()
            .filter(|at| at.offset.is_some())
            .and_then(|at| at.to_string().parse::<prost_types::Timestamp>().ok());
        if moment.is_none() {
            self.wrong(format_args!("{key} must be a time with its zone, such as 2026-11-26T20:15:00Z"));
        }
        moment.map(|at| at.seconds)
    }

    /// The tables of an array.
    pub(super) fn tables(&mut self, key: &str) -> Vec<Table> {
        let Some(value) = self.table.remove(key) else { return Vec::new() };
        let tables = value
            .as_array()
            .and_then(|values| values.iter().map(|value| value.as_table().cloned()).collect::<Option<Vec<_>>>());
        tables.unwrap_or_else(|| {
            self.wrong(format_args!("{key} must be a list of tables: [[{key}]]"));
            Vec::new()
        })
    }

    /// A table.
    pub(super) fn table(&mut self, key: &str) -> Option<Table> {
        let table = self.table.remove(key)?.as_table().cloned();
        if table.is_none() {
            self.wrong(format_args!("{key} must be a table: [{key}]"));
        }
        table
    }

    /// Reports every key that nobody asked for: a right that is written wrong must not silently be none.
    pub(super) fn end(mut self) {
        let rest: Vec<String> = self.table.keys().cloned().collect();
        for key in rest {
            self.wrong(format_args!("{key} is not known"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_said_to_be_broken_without_a_word_of_it() {
        for text in
            ["[[key]\nid = 1", "a = 1\nsecret = \"secret\" secret\n", "secret", "secret = \"secret", "\"\\secret\" = 1"]
        {
            let mistake = table_of(text).unwrap_err();
            assert!(mistake.starts_with("line ") && !mistake.contains("secret"), "{text:?}: {mistake}");
        }
        let mistake = table_of("a = 1\nb = \"x\" secret\n").unwrap_err();
        assert!(mistake.starts_with("line 2, column 9: "), "{mistake}");
    }
}
