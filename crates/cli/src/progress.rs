//! What a deployment is doing right now, on standard error.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often what moves moves.
const TICK: Duration = Duration::from_millis(100);

/// How far a step is.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// What is done.
    pub done: u64,
    /// Of how much; 0 where nobody knows.
    pub total: u64,
}

/// One line per thing that is worked on: moving on a terminal, else written once for everything that happens to it.
pub enum Progress {
    /// On a terminal.
    Moving {
        /// All lines.
        lines: MultiProgress,
        /// By what they are about.
        bars: HashMap<String, ProgressBar>,
    },
    /// Elsewhere: what was written last, by what it is about.
    Plain(HashMap<String, String>),
}

impl Progress {
    /// Nothing is worked on yet.
    pub fn new() -> Self {
        if io::stderr().is_terminal() {
            Progress::Moving { lines: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Progress::Plain(HashMap::new())
        }
    }

    /// Something happens to a thing, or goes on happening.
    pub fn step(&mut self, what: &str, doing: &str, extent: Extent) {
        match self {
            Progress::Moving { lines, bars } => {
                let bar =
                    bars.entry(what.to_owned()).or_insert_with(|| lines.add(ProgressBar::new_spinner()));
                bar.set_style(style(extent));
                bar.set_prefix(what.to_owned());
                bar.set_message(doing.to_owned());
                if extent.total > 0 {
                    bar.set_length(extent.total);
                    bar.set_position(extent.done.min(extent.total));
                }
                bar.enable_steady_tick(TICK);
            }
            Progress::Plain(written) => {
                if written.insert(what.to_owned(), doing.to_owned()).as_deref() != Some(doing) {
                    anstream::eprintln!("{what}: {doing}");
                }
            }
        }
    }

    /// A thing is as it should be.
    pub fn finished(&mut self, what: &str) {
        if let Progress::Moving { bars, .. } = self
            && let Some(bar) = bars.remove(what)
        {
            bar.finish_and_clear();
        }
    }

    /// Nothing is worked on any more; the lines vanish from a terminal.
    pub fn end(self) {
        if let Progress::Moving { lines, bars } = self {
            bars.into_values().for_each(|bar| bar.finish_and_clear());
            // A terminal that went away needs no clearing.
            let _ = lines.clear();
        }
    }
}

/// How far a stream of bytes is, on a terminal; without its length only how much of it there was.
pub fn bytes(what: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{prefix} [{bar:24}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta:.dim}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {prefix} {binary_bytes} {binary_bytes_per_sec}"),
    };
    let plain = ProgressStyle::default_bar();
    bar.set_style(plain.clone().template(template).unwrap_or(plain).progress_chars("=> "));
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

fn style(extent: Extent) -> ProgressStyle {
    let template = if extent.total == 0 {
        "{spinner} {prefix}: {msg} {elapsed:.dim}"
    } else {
        "{spinner} {prefix}: {msg} [{bar:24}] {percent}% {elapsed:.dim}"
    };
    let plain = ProgressStyle::default_spinner();
    plain.clone().template(template).unwrap_or(plain).progress_chars("=> ")
}
