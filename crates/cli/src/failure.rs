//! Why a command was not done, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use mvm_model::manifest::ManifestError;
use mvm_protocol::api::ApiError;

/// Exit code: it was tried and failed.
const FAILED: u8 = 1;
/// Exit code: wrong usage, as clap's own.
const USAGE: u8 = 2;
/// Exit code of `exec` where not the program failed but mvm; docker, env and timeout have the same.
const EXEC_FAILED: u8 = 125;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens at the agent's address.
    #[error("no agent answers at unix:{}: start one with `mvm agent serve`", socket.display())]
    NoAgent {
        /// Its socket.
        socket: PathBuf,
    },
    /// The agent's socket may not be used.
    #[error("no permission to use the agent at unix:{}: be root, or a member of the group mvm", socket.display())]
    Denied {
        /// Its socket.
        socket: PathBuf,
    },
    /// The connection to the agent broke, or it answered something else than it should.
    #[error("the agent at unix:{} did not answer as expected: {why}; `mvm agent status` shows whether it is well", socket.display())]
    Connection {
        /// Its socket.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
    /// An agent was started and did not come up.
    #[error("the agent did not start: {why}\n{log}")]
    Start {
        /// What happened.
        why: String,
        /// Where its log is, and the end of it.
        log: String,
    },
    /// The agent says no.
    #[error("{0}")]
    Refused(ApiError),
    /// A mistake in a manifest.
    #[error("{place}")]
    Manifest {
        /// The mistake with its place: `deployment.toml:12:1: pools[0].vcpus: …`, and the line itself.
        place: String,
    },
    /// A file or a stream.
    #[error("{doing}: {source}")]
    Io {
        /// What could not be done.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// What was asked for makes no sense, or is not asked for clearly enough.
    #[error("{0}")]
    Usage(String),
    /// What was asked for was not done, for a reason of its own.
    #[error("{0}")]
    NotDone(String),
    /// mvm failed to run a program in a machine.
    #[error("{0}")]
    Exec(Box<Failure>),
}

impl Failure {
    /// Something with a file or a stream failed.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Failure::Io { doing: doing.into(), source }
    }

    /// A mistake in a manifest, shown with its line.
    pub fn manifest(file: &str, text: &str, error: &ManifestError) -> Self {
        let mut place = error.in_file(file);
        if let Some(excerpt) = excerpt(text, error) {
            place.push('\n');
            place.push_str(&excerpt);
        }
        Failure::Manifest { place }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Exec(_) => EXEC_FAILED,
            _ => FAILED,
        }
    }

    /// Tells it on standard error.
    pub fn report(&self) {
        let red: Style = AnsiColor::Red.on_default().bold();
        anstream::eprintln!("{red}error:{red:#} {self}");
    }
}

/// The line at fault with a mark below the place. Nothing of `[secrets]` is repeated: it may be a secret itself.
fn excerpt(text: &str, error: &ManifestError) -> Option<String> {
    if error.key.is_empty() || error.key == "secrets" || error.key.starts_with("secrets.") {
        return None;
    }
    let line = text.lines().nth(error.place.line - 1)?;
    let before: String =
        line.chars().take(error.place.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let marked = text.get(error.place.span.clone())?.lines().next().unwrap_or_default();
    let marks = "^".repeat(marked.chars().count().max(1));
    let number = error.place.line.to_string();
    let margin = " ".repeat(number.len());
    Some(format!(" {margin} |\n {number} | {line}\n {margin} | {before}{marks}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::manifest::Place;

    fn mistake(key: &str, line: usize, column: usize, span: std::ops::Range<usize>) -> ManifestError {
        ManifestError { place: Place { line, column, span }, key: key.into(), message: "wrong".into() }
    }

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_mark_below_it() {
        let text = "[tenant]\nid = \"a\"\n\tnet_id = 5000\n";
        let failure = Failure::manifest("d.toml", text, &mistake("tenant.net_id", 3, 2, 19..25));
        let expected = "d.toml:3:2: tenant.net_id: wrong\n   |\n 3 | \tnet_id = 5000\n   | \t^^^^^^";
        assert_eq!(failure.to_string(), expected);
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn lines_that_may_hold_secrets_are_not_repeated() {
        let text = "[secrets]\nkey = \"hunter2\"\n";
        for key in ["secrets", "secrets.key", ""] {
            let failure = Failure::manifest("d.toml", text, &mistake(key, 2, 1, 10..13));
            assert!(!failure.to_string().contains("hunter2"), "{key}");
        }
    }
}
