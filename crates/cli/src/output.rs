//! What goes to standard output, as people or programs read it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// How often it is looked whether somebody still reads.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// How results are written.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// JSON, as in the agent's API
    Json,
    /// The same as YAML
    Yaml,
}

/// How a tenant's is: also as a manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ManifestFormat {
    /// For people
    #[default]
    Table,
    /// JSON, as in the agent's API
    Json,
    /// The same as YAML
    Yaml,
    /// A manifest that asks for what there is, for `mvm deploy`
    Toml,
}

impl From<ManifestFormat> for Output {
    fn from(format: ManifestFormat) -> Self {
        let output = match format {
            ManifestFormat::Json => Format::Json,
            ManifestFormat::Yaml => Format::Yaml,
            ManifestFormat::Table | ManifestFormat::Toml => Format::Table,
        };
        Self { output }
    }
}

/// Commands that have a result take this.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// How to write the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Output {
    /// Whether people read it.
    pub fn is_for_people(self) -> bool {
        matches!(self.output, Format::Table)
    }

    /// Writes a result: itself for programs, or what `people` makes of it.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn show<T: Serialize>(self, result: &T, people: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let unwritable = |error: String| Failure::NotDone(format!("the result cannot be written: {error}"));
        let text = match self.output {
            Format::Table => people(result),
            Format::Json => serde_json::to_string_pretty(result).map_err(|e| unwritable(e.to_string()))?,
            Format::Yaml => serde_saphyr::to_string(result).map_err(|e| unwritable(e.to_string()))?,
        };
        write(text.as_bytes())?;
        if text.is_empty() || text.ends_with('\n') { Ok(()) } else { write(b"\n") }
    }

    /// Writes one of several results that come one after another: a line each, or a YAML document.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn show_next<T: Serialize>(
        self,
        result: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let unwritable = |error: String| Failure::NotDone(format!("the result cannot be written: {error}"));
        let text = match self.output {
            Format::Table => people(result),
            Format::Json => serde_json::to_string(result).map_err(|e| unwritable(e.to_string()))?,
            Format::Yaml => {
                let text = serde_saphyr::to_string(result).map_err(|e| unwritable(e.to_string()))?;
                format!("---\n{}", text.trim_end())
            }
        };
        write(format!("{text}\n").as_bytes())
    }
}

/// Resolves when whoever reads standard output has gone (`… | head`).
pub async fn nobody_reads() {
    loop {
        let stdout = rustix::stdio::stdout();
        let mut watched = [rustix::event::PollFd::new(&stdout, rustix::event::PollFlags::empty())];
        // What cannot be looked at is taken for somebody.
        let looked = rustix::event::poll(&mut watched, Some(&rustix::event::Timespec::default()));
        if looked.is_ok() && watched[0].revents().contains(rustix::event::PollFlags::ERR) {
            return;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// Writes to standard output. Whoever stops reading (`… | head`) has enough.
///
/// # Errors
/// If standard output does not take it.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}

/// A table with these headings and rows; `nothing` where there are none.
pub fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [Cell; N]>,
    nothing: &str,
) -> String {
    let mut table = empty_table();
    table.set_header(headings);
    table.add_rows(rows);
    if table.row_count() == 0 { nothing.to_owned() } else { text(&table) }
}

/// One thing's properties, a line each; those that are absent are left out.
pub fn properties<const N: usize>(rows: [(&str, Option<String>); N]) -> String {
    let mut table = empty_table();
    let given = rows.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
    table.add_rows(given.filter(|[_, value]| !value.is_empty()));
    text(&table)
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Programs and files get whole lines; a terminal gets lines that fit.
    let terminal = io::stdout().is_terminal();
    table.set_content_arrangement(if terminal {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table
}

/// The table's text, without the spaces around it.
fn text(table: &Table) -> String {
    let lines = table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_columns_without_frames() {
        let rows = [["alice".into(), Cell::new(1)], ["b".into(), Cell::new(20)]];
        assert_eq!(table(["TENANT", "NET"], rows, "no tenants"), "TENANT  NET\nalice   1\nb       20");
        assert_eq!(table::<1>(["TENANT"], [], "no tenants"), "no tenants");
    }

    #[test]
    fn absent_properties_are_left_out() {
        let text =
            properties([("state", Some("running".into())), ("reason", None), ("ip", Some(String::new()))]);
        assert_eq!(text, "state  running");
    }
}
