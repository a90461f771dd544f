//! Typed reading of a parsed tree, where every mistake knows its key.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

use super::Problem;
use super::check::out_of_range;
use super::place::{child_key, item_key};

/// From this likeness on a key is taken for a misspelt one: `target` for `target_port`, not `colour` for `role`.
const ALIKE: f64 = 0.8;

/// The keys that a table may have.
pub(super) struct Keys {
    /// The ones that are read.
    pub known: &'static [&'static str],
    /// The ones that later versions bring, each with the sentence's start: `flake images are`.
    pub later: &'static [(&'static str, &'static str)],
}

/// A value and its key.
pub(super) struct Value<'a, 'i> {
    key: String,
    name: &'a str,
    value: &'a DeValue<'i>,
}

/// A table that has no other keys than it may have.
pub(super) struct Table<'a, 'i> {
    key: String,
    table: &'a DeTable<'i>,
}

impl<'a, 'i> Value<'a, 'i> {
    /// What is wrong with this value.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(&self.key, message)
    }

    /// The last part of its key, as it was meant: without quotes.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// The text, where the value is one: for values that may be a text or something else.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    fn wrong_type(&self, wanted: &str) -> Problem {
        let found = match self.value {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(format!("must be {wanted}, not {found}"))
    }

    pub(super) fn text(&self) -> Result<&'a str, Problem> {
        self.value.as_str().ok_or_else(|| self.wrong_type("a text in quotes"))
    }

    /// A text that is not empty.
    pub(super) fn filled_text(&self) -> Result<String, Problem> {
        match self.text()? {
            "" => Err(self.problem("must not be empty")),
            text => Ok(text.to_owned()),
        }
    }

    /// A text that is read as a type of its own.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self) -> Result<T, Problem> {
        self.text()?.parse().map_err(|error: T::Err| self.problem(error.to_string()))
    }

    /// A text that is read as a type whose own errors do not say what was written.
    pub(super) fn parsed_as<T: FromStr>(&self, what: &str) -> Result<T, Problem> {
        let text = self.text()?;
        text.parse().map_err(|_| self.problem(format!("`{text}` is not {what}")))
    }

    /// A whole number in a range.
    pub(super) fn integer<T>(&self, range: &RangeInclusive<T>) -> Result<T, Problem>
    where
        T: Copy + PartialOrd + Display + TryFrom<i128>,
    {
        let Some(number) = self.value.as_integer() else {
            return Err(self.wrong_type(&format!("a whole number, {} to {}", range.start(), range.end())));
        };
        let parsed = i128::from_str_radix(number.as_str(), number.radix()).ok();
        parsed
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| out_of_range(&self.key, number, range))
    }

    /// An amount with at most two decimals, in hundredths.
    pub(super) fn hundredths(&self, range: &RangeInclusive<u32>) -> Result<u64, Problem> {
        let wanted = || self.wrong_type(&format!("an amount, {} to {}", range.start(), range.end()));
        if self.value.is_integer() {
            return Ok(u64::from(self.integer(range)?) * 100);
        }
        let text = self.value.as_float().ok_or_else(wanted)?.as_str();
        let amount: f64 = text.parse().map_err(|_| wanted())?;
        if !(f64::from(*range.start())..=f64::from(*range.end())).contains(&amount) {
            return Err(out_of_range(&self.key, text, range));
        }
        let hundredths = (amount * 100.0).round();
        if (hundredths / 100.0 - amount).abs() > 1e-9 {
            return Err(self.problem(format!("must have at most two decimals, not {text}")));
        }
        // In range, so it is small enough and not negative.
        Ok(hundredths as u64)
    }

    /// The table's values, in the order of their names, whatever these are.
    pub(super) fn entries(&self) -> Result<Vec<Value<'a, 'i>>, Problem> {
        let table = self.value.as_table().ok_or_else(|| self.wrong_type("a table"))?;
        let entry =
            |(name, value): (&'a toml::Spanned<_>, &'a toml::Spanned<_>)| entry(&self.key, name, value);
        Ok(table.iter().map(entry).collect())
    }

    /// The list's items.
    pub(super) fn items(&self) -> Result<Vec<Value<'a, 'i>>, Problem> {
        let items = self.value.as_array().ok_or_else(|| self.wrong_type("a list"))?;
        let item = |(index, value): (usize, &'a toml::Spanned<DeValue<'i>>)| Value {
            key: item_key(&self.key, index),
            name: self.name,
            value: value.get_ref(),
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// Each item of the list, read.
    pub(super) fn list<T>(
        &self,
        read: impl FnMut(Value<'a, 'i>) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        self.items()?.into_iter().map(read).collect()
    }

    /// The value as a table with these keys and no others.
    pub(super) fn table(&self, keys: &Keys) -> Result<Table<'a, 'i>, Problem> {
        let table = self.value.as_table().ok_or_else(|| self.wrong_type("a table"))?;
        Table::new(self.key.clone(), table, keys)
    }
}

fn entry<'a, 'i>(
    table: &str,
    name: &'a toml::Spanned<std::borrow::Cow<'i, str>>,
    value: &'a toml::Spanned<DeValue<'i>>,
) -> Value<'a, 'i> {
    let name: &'a str = name.get_ref();
    Value { key: child_key(table, name), name, value: value.get_ref() }
}

impl<'a, 'i> Table<'a, 'i> {
    /// A table with these keys and no others: the first one in the file that it may not have is refused.
    pub(super) fn new(key: String, table: &'a DeTable<'i>, keys: &Keys) -> Result<Self, Problem> {
        let strange = table.keys().filter(|name| !keys.known.contains(&name.get_ref().as_ref()));
        match strange.min_by_key(|name| name.span().start) {
            None => Ok(Self { key, table }),
            Some(name) => Err(Problem::new(child_key(&key, name.get_ref()), keys.refuse(name.get_ref()))),
        }
    }

    /// Reads a value that may be absent.
    pub(super) fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Value<'a, 'i>) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        let found = self.table.get_key_value(name);
        found.map(|(name, value)| read(entry(&self.key, name, value))).transpose()
    }

    /// Reads a value that has to be there.
    pub(super) fn required<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Value<'a, 'i>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        self.optional(name, read)?.ok_or_else(|| Problem::new(child_key(&self.key, name), "is missing"))
    }

    /// Each table of `[[name]]`, read; none where it is absent.
    pub(super) fn list<T>(
        &self,
        name: &'static str,
        read: impl FnMut(Value<'a, 'i>) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        Ok(self.optional(name, |list| list.list(read))?.unwrap_or_default())
    }
}

impl Keys {
    /// Why a key is refused.
    fn refuse(&self, name: &str) -> String {
        if let Some((_, what)) = self.later.iter().find(|(later, _)| *later == name) {
            return format!("{what} not supported by this version");
        }
        let likeness = |known: &str| strsim::jaro_winkler(known, name);
        match self.known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
            Some(known) if likeness(known) >= ALIKE => format!("unknown key: did you mean `{known}`?"),
            _ => format!("unknown key: known here are {}", self.known.join(", ")),
        }
    }
}
