//! What was measured: tables for people, `latest.json` for scripts.

use std::collections::BTreeMap;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::samples::{Samples, Spread};

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    values: BTreeMap<&'static str, f64>,
    notes: Vec<String>,
    /// What mvm takes to wake a machine with 8 MiB of its own.
    pub small_wake: Option<f64>,
}

/// One thing, on both sides.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    mvm: Option<Spread>,
    raw: Option<Spread>,
    ratio: Option<f64>,
    /// Why there is nothing.
    missing: Option<String>,
}

/// A value that is to be kept to.
struct Target {
    key: &'static str,
    most: f64,
    what: &'static str,
}

const TARGETS: [Target; 14] = [
    target("clone_ready_ratio", 1.25, "clone ÷ raw, both on demand"),
    target("wake_ready_ratio", 1.25, "wake (8 MiB) ÷ raw, both on demand"),
    target("clone_spare_ratio", 1.35, "clone ÷ raw, both with a spare"),
    target("wake_spare_ratio", 1.35, "wake (8 MiB) ÷ raw, both with a spare"),
    target("clone_spare_vs_demand", 1.0, "clone with a spare ÷ raw on demand"),
    target("wake_own_ms", 15.0, "mvm's own share of a wake on demand: mvm − raw without its commits"),
    target("first_byte_ratio", 1.5, "message to first byte ÷ raw wake on demand"),
    target("big_delta_wake_ratio", 2.0, "wake with 1 GiB ÷ with 8 MiB, mvm"),
    target("idle_delta_mib", 2.0, "disk of an idle machine asleep, MiB"),
    target("ten_clones_pss_mib", 500.0, "ten clones of 512 MiB together, MiB of PSS"),
    target("agent_rss_mib_10k", 100.0, "agent's RSS with 10,000 instances, MiB"),
    target("list_10k_ms", 200.0, "`mvm instance list` with 10,000 instances, ms"),
    target("idle_cpu_percent_10k", 1.0, "agent's CPU with 10,000 idle instances, % of a core"),
    target("sleep_ratio", f64::INFINITY, "sleep (8 MiB) ÷ raw"),
];

const fn target(key: &'static str, most: f64, what: &'static str) -> Target {
    Target { key, most, what }
}

impl Report {
    /// Adds a row; `missing` says why one side has nothing.
    pub fn row(&mut self, name: impl Into<String>, unit: &'static str, sides: &Sides) {
        let (mvm, raw) = (sides.mvm.spread(), sides.raw.spread());
        let row =
            Row { name: name.into(), unit, mvm, raw, ratio: sides.ratio(), missing: sides.missing.clone() };
        eprintln!("  {}: {}", row.name, describe(&row));
        self.rows.push(row);
    }

    /// Sets a value of `latest.json`, if there is one.
    pub fn value(&mut self, key: &'static str, value: Option<f64>) {
        self.values.extend(value.filter(|value| value.is_finite()).map(|value| (key, value)));
    }

    /// What a reader must know.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        eprintln!("  note: {note}");
        self.notes.push(note);
    }

    /// Writes everything as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut all: Map<String, Value> =
            self.values.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        all.insert("rows".to_owned(), serde_json::to_value(&self.rows)?);
        all.insert("notes".to_owned(), json!(self.notes));
        std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?;
        Ok(())
    }

    /// The bounds that were measured and are not kept.
    pub fn missed(&self) -> Vec<&'static str> {
        let is_missed =
            |target: &&Target| self.values.get(target.key).is_some_and(|value| *value > target.most);
        TARGETS.iter().filter(is_missed).map(|target| target.key).collect()
    }

    /// Prints both tables.
    pub fn print(&self) {
        let mut table = new_table(&["", "mvm", "raw", "mvm ÷ raw", ""]);
        for row in &self.rows {
            let number =
                |spread: Option<Spread>| spread.map_or("–".to_owned(), |s| format!("{s} {}", row.unit));
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let missing = row.missing.clone().unwrap_or_default();
            table.add_row([row.name.clone(), number(row.mvm), number(row.raw), ratio, missing]);
        }
        println!("Medians (smallest…largest).\n{table}\n");
        let mut table = new_table(&["", "measured", "at most", ""]);
        for Target { key, most, what } in TARGETS {
            let measured = self.values.get(key);
            let verdict = match measured {
                None => "not measured",
                Some(_) if most.is_infinite() => "",
                Some(value) if *value <= most => "kept",
                Some(_) => "MISSED",
            };
            let most = if most.is_infinite() { String::new() } else { most.to_string() };
            let measured = measured.map_or("–".to_owned(), |value| format!("{value:.2}"));
            table.add_row([what.to_owned(), measured, most, verdict.to_owned()]);
        }
        println!("{table}");
        for note in &self.notes {
            println!("note: {note}");
        }
    }
}

fn describe(row: &Row) -> String {
    let side = |name: &str, spread: Option<Spread>| spread.map(|s| format!("{name} {s} {}", row.unit));
    let parts = [
        side("mvm", row.mvm),
        side("raw", row.raw),
        row.ratio.map(|r| format!("ratio {r:.2}")),
        row.missing.clone(),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Measurements of both sides of one thing.
#[derive(Debug, Clone, Default)]
pub struct Sides {
    /// Of mvm.
    pub mvm: Samples,
    /// Of the engine by hand.
    pub raw: Samples,
    /// Why something is not there.
    pub missing: Option<String>,
}

impl Sides {
    /// One side only: there is nothing to compare.
    pub fn mvm_only(mvm: impl Into<Samples>) -> Self {
        Self { mvm: mvm.into(), ..Self::default() }
    }

    /// The medians' ratio.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.mvm.median()? / self.raw.median()?)
    }
}
