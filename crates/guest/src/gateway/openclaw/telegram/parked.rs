//! Updates that are kept here until their worker takes them, in a file each: `<chat>/<update id>.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;

use super::super::durable;
use crate::lock;

/// So many of one chat: its worker has not taken anything for very long.
const PER_CHAT: usize = 10_000;

/// The folder, and what is in it.
#[derive(Debug)]
pub(super) struct Parked {
    folder: PathBuf,
    kept: Mutex<BTreeMap<i64, BTreeSet<i64>>>,
}

impl Parked {
    /// With what is there.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) async fn open(folder: PathBuf) -> io::Result<Parked> {
        let mut kept = BTreeMap::new();
        for (chat, path) in numbered(&folder).await? {
            let ids: BTreeSet<i64> = numbered(&path).await?.into_iter().map(|(id, _)| id).collect();
            kept.insert(chat, ids);
        }
        Ok(Parked { folder, kept: Mutex::new(kept) })
    }

    /// By chat, in the order in which they came.
    pub(super) fn all(&self) -> BTreeMap<i64, BTreeSet<i64>> {
        lock(&self.kept).clone()
    }

    /// Whether this chat has as many as it may.
    pub(super) fn is_full(&self, chat: i64) -> bool {
        lock(&self.kept).get(&chat).is_some_and(|ids| ids.len() >= PER_CHAT)
    }

    /// Keeps one; it is on disk then.
    ///
    /// # Errors
    /// It is not.
    pub(super) async fn keep(&self, chat: i64, id: i64, content: &Value) -> io::Result<()> {
        durable::replace(self.path(chat, id), serde_json::to_vec(content)?).await?;
        lock(&self.kept).entry(chat).or_default().insert(id);
        Ok(())
    }

    /// One that is kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) async fn read(&self, chat: i64, id: i64) -> io::Result<Value> {
        let content = tokio::fs::read(self.path(chat, id)).await?;
        serde_json::from_slice(&content).map_err(io::Error::other)
    }

    /// Its worker has it.
    ///
    /// # Errors
    /// It may come once more after the next start.
    pub(super) async fn forget(&self, chat: i64, id: i64) -> io::Result<()> {
        durable::remove(self.path(chat, id)).await?;
        let mut kept = lock(&self.kept);
        if let Some(ids) = kept.get_mut(&chat) {
            ids.remove(&id);
            if ids.is_empty() {
                kept.remove(&chat);
            }
        }
        Ok(())
    }

    fn path(&self, chat: i64, id: i64) -> PathBuf {
        self.folder.join(chat.to_string()).join(format!("{id}.json"))
    }
}

/// Files and folders that have a number for a name, but for those that are being written.
async fn numbered(folder: &Path) -> io::Result<Vec<(i64, PathBuf)>> {
    let mut found = Vec::new();
    let mut entries = match tokio::fs::read_dir(folder).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_suffix(".json").unwrap_or(&name).parse();
        found.extend(number.ok().map(|number| (number, entry.path())));
    }
    Ok(found)
}
