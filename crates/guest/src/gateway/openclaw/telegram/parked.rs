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

/// Why there is nothing to be delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// There is nothing, or nothing that makes sense.
    #[error("{0}")]
    Lost(String),
    /// The disk's, which may be over in a while.
    #[error("it cannot be read: {0}")]
    ForNow(#[source] io::Error),
}

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
            durable::tidy(&path).await;
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
    /// [`Unreadable`]
    pub(super) async fn read(&self, chat: i64, id: i64) -> Result<Value, Unreadable> {
        match durable::read(&self.path(chat, id)).await {
            Ok(Some(content)) => {
                serde_json::from_slice(&content).map_err(|error| Unreadable::Lost(error.to_string()))
            }
            Ok(None) => Err(Unreadable::Lost("it is gone".to_owned())),
            Err(error) => Err(Unreadable::ForNow(error)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_gone_or_makes_no_sense_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let parked = Parked::open(folder.path().join("parked")).await.unwrap();
        parked.keep(7, 1, &serde_json::json!({ "update_id": 1 })).await.unwrap();
        assert_eq!(parked.read(7, 1).await.unwrap()["update_id"], 1);
        assert!(matches!(parked.read(7, 2).await, Err(Unreadable::Lost(_))));
        std::fs::write(parked.path(7, 1), "{").unwrap();
        assert!(matches!(parked.read(7, 1).await, Err(Unreadable::Lost(_))));
        std::fs::create_dir(parked.path(7, 3)).unwrap();
        assert!(matches!(parked.read(7, 3).await, Err(Unreadable::ForNow(_))));
    }
}
