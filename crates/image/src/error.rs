//! What can go wrong between a recipe and a revision, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::recipe::RecipeError;
use crate::{Digest, RevisionId};

/// What went wrong, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// There is no such image.
    #[error("there is no built-in image `{name}`: use one of {known}, or the path of a recipe's folder")]
    UnknownImage {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// There is such an image, of another version.
    #[error("there is no image `{image}` in this mvm: it has {known}")]
    UnknownVersion {
        /// What was asked for.
        image: String,
        /// What there is of that name.
        known: String,
    },
    /// Recipes build on one another in a circle.
    #[error("the image `{name}` builds on itself: change `base` in its image.toml")]
    CircularBase {
        /// The recipe where the circle closes.
        name: String,
    },
    /// The lock is not in order.
    #[error("{}: {reason}; run scripts/update-locks", file.display())]
    Lock {
        /// The lock file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No archive has a package any more.
    #[error(
        "the package {package} {version} could not be fetched: {reasons}. If no archive has it any more, \
         run scripts/update-locks"
    )]
    Fetch {
        /// Its name.
        package: String,
        /// Its pinned version.
        version: String,
        /// What each archive answered.
        reasons: String,
    },
    /// A package, kernel or module is not of a form this version reads.
    #[error("{what}: {reason}")]
    Format {
        /// The package or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tool is missing or failed.
    #[error("`{tool}` {reason}")]
    Tool {
        /// Its name.
        tool: String,
        /// What happened, and the package to install where it is missing.
        reason: String,
    },
    /// The store has no such revision, or lost a part of it.
    #[error("there is no revision {0} here: build the pool's image again")]
    UnknownRevision(RevisionId),
    /// A part is not what it was when it was built.
    #[error("{}: expected SHA-256 {expected}, found {found}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Its digest when it was built.
        expected: Digest,
        /// Its digest now.
        found: Digest,
    },
    /// A data disk would get smaller.
    #[error("{}: a data disk only grows: it has {has} MiB, {asked} MiB were asked for", file.display())]
    DiskShrinks {
        /// The disk.
        file: PathBuf,
        /// Its size, MiB.
        has: u64,
        /// The size asked for, MiB.
        asked: u64,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the path in an I/O error.
pub(crate) trait At<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.as_ref().to_owned(), source: source.into() })
    }
}

/// An [`Error::Format`] of `what`.
pub(crate) fn malformed(what: &str, reason: impl ToString) -> Error {
    Error::Format { what: what.to_owned(), reason: reason.to_string() }
}
