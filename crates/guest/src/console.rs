//! The machine's console: a few lines for whoever looks for the reason of a failure.

use std::fmt::Display;
use std::io::Write as _;

/// Writes one line. A console that cannot be written to is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "mvm-guest: {line}");
}
