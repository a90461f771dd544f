//! Why a copy was not made.

use std::io;
use std::path::{Path, PathBuf};

/// Short for a result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, or is not there.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no room for it.
    #[error("{}: there is no space left on its file system; it was not written. Free some, or copy to elsewhere", path.display())]
    Full {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// The folder that it should go to is not there.
    #[error("{} is not there: make the folder first", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder would have to become a file.
    #[error("{} is no folder: a folder cannot take its place", path.display())]
    NotAFolder {
        /// What is there.
        path: PathBuf,
    },
    /// A file was shortened while it was read.
    #[error("{} became shorter while it was copied: copy it again when nothing writes it", path.display())]
    Shortened {
        /// The file.
        path: PathBuf,
    },
    /// A name in the stream that leads out of the target, or that no file can have.
    #[error("the archive names {name:?}, which leads out of the folder it is copied to: refused")]
    Escapes {
        /// The name.
        name: String,
    },
    /// Something on the way is a symbolic link, or no folder.
    #[error("{}: a symbolic link or a file is where the archive has a folder: refused", path.display())]
    InTheWay {
        /// The path below the target.
        path: PathBuf,
    },
    /// What is no file, folder or symbolic link.
    #[error("the archive holds {name:?}, a {kind}: only files, folders and symbolic links are copied")]
    Unsupported {
        /// Its name.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// The stream is no tar archive, or a broken one.
    #[error("the archive cannot be read: {0}")]
    Archive(io::Error),
    /// The stream ended before the archive did.
    #[error("the archive ends in the middle: not everything was copied")]
    Truncated,
    /// The other side did not take what was sent.
    #[error("the copy was broken off: {0}")]
    BrokenOff(io::Error),
}

impl Error {
    /// Whether a file is not there.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// For a file at this path.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { path },
            _ => Error::File { path, source },
        }
    }
}
