//! Files that are there in full, old or new, whenever the machine ends.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Puts `content` in the place of the file at `path`, whose folder is made.
///
/// # Errors
/// The file is as it was.
pub(super) async fn replace(path: PathBuf, content: Vec<u8>) -> io::Result<()> {
    blocking(move || {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(folder)?.sync_all()
    })
    .await
}

/// Adds a line to a file, whose folder is made. One that is cut short by the machine's end is skipped by readers.
///
/// # Errors
/// It may be there in part.
pub(super) async fn append(path: PathBuf, line: String) -> io::Result<()> {
    blocking(move || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        let mut file = File::options().create(true).append(true).open(&path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_data()
    })
    .await
}

/// Removes a file; that it is not there is as good.
///
/// # Errors
/// It may be there.
pub(super) async fn remove(path: PathBuf) -> io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a file; none that is not there.
///
/// # Errors
/// It is there and cannot be read.
pub(super) async fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match tokio::fs::read(path).await {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}
