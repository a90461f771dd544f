//! Files that are there in full, old or new, whenever the machine ends.
//!
//! Whoever waits for a write may be gone before it is done. So each has a file of its own to write to, what is asked of one
//! path is done one after the other, and what was asked for earlier never undoes what was asked for later.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use crate::lock;

/// How files end that are being written. One that is left over is of no use.
const NEW: &str = ".new";

/// Counts what is asked for.
static ASKED: AtomicU64 = AtomicU64::new(1);
/// The paths that something is done with, each with the number of what was done last.
static IN_HAND: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<u64>>>>> = LazyLock::new(Mutex::default);

/// What is to be done with a path, in its order.
struct Turn {
    path: PathBuf,
    number: u64,
    last: Arc<Mutex<u64>>,
}

impl Turn {
    fn take(path: PathBuf) -> Turn {
        let mut in_hand = lock(&IN_HAND);
        let last = Arc::clone(in_hand.entry(path.clone()).or_default());
        Turn { path, number: ASKED.fetch_add(1, Ordering::Relaxed), last }
    }

    /// Does it, unless what was asked for later is done already.
    fn run(self, work: impl FnOnce(&Path, u64) -> io::Result<()>) -> io::Result<()> {
        let mut last = lock(&self.last);
        if *last > self.number {
            return Ok(());
        }
        work(&self.path, self.number)?;
        *last = self.number;
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut in_hand = lock(&IN_HAND);
        // This one and the table's.
        if Arc::strong_count(&self.last) == 2 {
            in_hand.remove(&self.path);
        }
    }
}

/// Puts `content` in the place of the file at `path`, whose folder is made.
///
/// # Errors
/// The file is as it was.
pub(super) async fn replace(path: PathBuf, content: Vec<u8>) -> io::Result<()> {
    let turn = Turn::take(path);
    blocking(move || turn.run(|path, number| write(path, number, &content))).await
}

fn write(path: &Path, number: u64, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    make(folder)?;
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{number}{NEW}"));
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    if written.is_err() {
        // It is of no use, and may be what fills the disk.
        let _ = fs::remove_file(&new);
    }
    written?;
    sync(folder)
}

/// Adds a line to a file, whose folder is made. One that is cut short by the machine's end is skipped by readers.
///
/// # Errors
/// It may be there in part.
pub(super) async fn append(path: PathBuf, line: String) -> io::Result<()> {
    blocking(move || {
        let folder = folder_of(&path);
        make(folder)?;
        let mut file = File::options().create(true).append(true).open(&path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_data()?;
        sync(folder)
    })
    .await
}

/// Removes a file; that it is not there is as good.
///
/// # Errors
/// It may be there.
pub(super) async fn remove(path: PathBuf) -> io::Result<()> {
    let turn = Turn::take(path);
    blocking(move || {
        turn.run(|path, _| match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync(folder_of(path))),
        })
    })
    .await
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

/// Removes from a folder what was being written when the machine ended.
pub(super) async fn tidy(folder: &Path) {
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name().to_string_lossy().ends_with(NEW) {
            // It takes room, and no more.
            let _ = tokio::fs::remove_file(entry.path()).await;
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes a folder and those above it, so that they last.
fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    sync(above)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_asked_for_earlier_does_not_undo_what_was_asked_for_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/file");
        let (early, late) = (Turn::take(path.clone()), Turn::take(path.clone()));
        late.run(|path, number| write(path, number, b"late")).unwrap();
        early.run(|path, number| write(path, number, b"early")).unwrap();
        assert_eq!(read(&path).await.unwrap().unwrap(), b"late");
        assert!(!lock(&IN_HAND).contains_key(&path));
        replace(path.clone(), b"last".to_vec()).await.unwrap();
        assert_eq!(read(&path).await.unwrap().unwrap(), b"last");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        remove(path.clone()).await.unwrap();
        assert_eq!(read(&path).await.unwrap(), None);
    }

    #[tokio::test]
    async fn writers_at_once_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writes = (0..20_u8).map(|byte| replace(path.clone(), vec![byte; 300_000]));
        futures::future::join_all(writes).await.into_iter().for_each(Result::unwrap);
        let content = fs::read(&path).unwrap();
        assert_eq!(content, vec![content[0]; 300_000]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_was_left_half_written_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file.7.new"), "half").unwrap();
        fs::write(folder.path().join("file"), "old").unwrap();
        tidy(folder.path()).await;
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
