//! Where a key stands in the file.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// A place in the manifest's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// The bytes of the text.
    pub span: Range<usize>,
}

/// A mistake in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {}{}: {message}", place.line, named(", key ", key, ""))]
pub struct ManifestError {
    /// Where.
    pub place: Place,
    /// The key, dotted and counted from 0: `pools[1].egress[0]`. Empty where a text that is not TOML has none.
    pub key: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl ManifestError {
    /// The mistake as compilers write theirs: `deployment.toml:12:1: pools[0].vcpus: …`.
    pub fn in_file(&self, file: &str) -> String {
        let Place { line, column, .. } = self.place;
        format!("{file}:{line}:{column}: {}{}", named("", &self.key, ": "), self.message)
    }
}

fn named(before: &str, key: &str, after: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{before}{key}{after}") }
}

/// A manifest's text and where each key stands in it.
#[derive(Debug, Clone)]
pub(super) struct Places {
    text: String,
    spans: BTreeMap<String, Range<usize>>,
}

impl Places {
    /// Parses a text to a tree and notes where its keys are.
    pub(super) fn of(text: &str) -> Result<(Self, Spanned<DeTable<'_>>), ManifestError> {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let mut places = Self { text: text.to_owned(), spans: BTreeMap::new() };
        places.note_table("", tree.get_ref());
        match errors.into_iter().min_by_key(|error| error.span().map_or(0, |span| span.start)) {
            None => Ok((places, tree)),
            Some(error) => Err(places.not_toml(&error)),
        }
    }

    fn note_table(&mut self, key: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let child = child_key(key, name.get_ref());
            self.spans.insert(child.clone(), name.span());
            self.note_value(&child, value.get_ref());
        }
    }

    fn note_value(&mut self, key: &str, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.note_table(key, table),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let child = item_key(key, index);
                    self.spans.insert(child.clone(), item.span());
                    self.note_value(&child, item.get_ref());
                }
            }
            _ => {}
        }
    }

    /// The parser's message, at the key whose line it is about or, where a key is there twice, at its second place.
    fn not_toml(&self, error: &toml::de::Error) -> ManifestError {
        let place = self.place_of(error.span().unwrap_or(0..0));
        let line_start = self.line_start(place.span.start);
        let wrong = &self.text[place.span.clone()];
        let before = || self.spans.iter().filter(|(_, span)| span.start <= place.span.start);
        let on_its_line = before().filter(|(_, span)| span.start >= line_start);
        let same_name = before().filter(|(_, span)| self.text.get((*span).clone()) == Some(wrong));
        let last = |key: &(&String, &Range<usize>)| key.1.start;
        let key = on_its_line.max_by_key(last).or_else(|| same_name.max_by_key(last));
        let key = key.map(|(key, _)| key.clone()).unwrap_or_default();
        ManifestError { place, key, message: error.message().to_owned() }
    }

    /// Whether the text says this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.spans.contains_key(key)
    }

    /// The place of a key, or of the nearest one that holds it, or the start of the file.
    pub(super) fn find(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some(span) = self.spans.get(key) {
                return self.place_of(span.clone());
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return self.place_of(0..0),
            }
        }
    }

    pub(super) fn locate(&self, Problem { key, message }: Problem) -> ManifestError {
        ManifestError { place: self.find(&key), key, message }
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// The start of the character that this byte is part of.
    fn char_boundary(&self, byte: usize) -> usize {
        (0..=byte.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }

    fn place_of(&self, span: Range<usize>) -> Place {
        let start = self.char_boundary(span.start);
        let before = &self.text[..start];
        Place {
            line: before.matches('\n').count() + 1,
            column: before[self.line_start(start)..].chars().count() + 1,
            span: start..self.char_boundary(span.end).max(start),
        }
    }
}

/// The dotted key of an entry of a table.
pub(super) fn child_key(table: &str, name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let name = if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { format!("{name:?}") };
    if table.is_empty() { name } else { format!("{table}.{name}") }
}

/// The key of an item of an array.
pub(super) fn item_key(array: &str, index: usize) -> String {
    format!("{array}[{index}]")
}
