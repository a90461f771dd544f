//! What went wrong, and while doing what.

use std::fmt::Display;
use std::io;

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct Failure {
    doing: String,
    source: io::Error,
}

/// Short for a result with [`Failure`].
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure that no system call reported.
    pub fn new(doing: impl Display, reason: impl Display) -> Self {
        Self { doing: doing.to_string(), source: io::Error::other(reason.to_string()) }
    }
}

/// Says what was being done when an error came.
pub trait Doing<T> {
    /// Names the operation, as in "mounting /data".
    ///
    /// # Errors
    /// The same one, with its circumstances.
    fn doing(self, what: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|error| Failure { doing: what.to_string(), source: error.into() })
    }
}
