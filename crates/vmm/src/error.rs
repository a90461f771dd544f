//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::ended::Ended;
use crate::qmp::QmpError;
use crate::snapshot::Refusal;

/// An act of this crate that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The installed VMM cannot do what is needed.
    #[error("{binary} lacks {}; install QEMU 7.2 or newer (Debian: qemu-system-x86)", missing.join(", "))]
    Unfit {
        /// The binary that was examined.
        binary: PathBuf,
        /// Every command, device or property that is missing, by name.
        missing: Vec<String>,
    },
    /// The VMM's binary could not be found or run.
    #[error("cannot run {binary}: {reason}; install QEMU (Debian: qemu-system-x86) or name the right path")]
    NoBinary {
        /// The path that was tried.
        binary: PathBuf,
        /// Why it did not run.
        reason: String,
    },
    /// The VMM did not come up.
    #[error("the VMM of {name} did not start: {reason}")]
    Launch {
        /// The machine's name.
        name: String,
        /// What the launcher or the VMM said.
        reason: String,
    },
    /// The machine ended while, or before, something was asked of it.
    #[error("the machine has ended: {0}")]
    Ended(Ended),
    /// The machine is not in the state that the act needs.
    #[error("the machine is {found}, but must be {needed} for this")]
    WrongStatus {
        /// What the VMM says it is.
        found: String,
        /// What it should be.
        needed: &'static str,
    },
    /// Nobody connected the control socket before the restore.
    #[error(
        "connect the control socket before restoring: a port that was written to at the sleep would stay silent"
    )]
    ControlNotConnected,
    /// No such machine, or another process has its pid.
    #[error("process {pid} is not this machine any more; start it again")]
    Gone {
        /// The recorded pid.
        pid: u32,
    },
    /// The snapshot must not be used; a cold start is the way on.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The VMM's monitor did not answer or said no.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// The VMM said something that cannot be understood.
    #[error("the VMM's answer makes no sense: {0}")]
    Answer(String),
    /// The operating system said no.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was being done when the operating system refused.
pub(crate) trait Doing<T> {
    /// Turns the error into [`Error::Io`]; `doing` completes "cannot …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io { doing: doing(), source: error.into() })
    }
}

/// Runs blocking work on tokio's blocking threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Answer(format!("a blocking step broke off: {error}"))),
    }
}
