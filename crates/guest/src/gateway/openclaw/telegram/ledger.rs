//! Which updates are done with. Telegram keeps what has not been acknowledged, and an acknowledgement is of everything
//! before an update: what is done with after one that is not has to be remembered here.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::super::durable;
use crate::gateway::note;
use crate::lock;

/// After a week without an update Telegram may number them anew, from anywhere.
const NUMBERS_LAST: u64 = 6 * 24 * 3600;

/// The place in a bot's updates, on disk and in memory.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    position: Mutex<Position>,
    /// Held while it is written; the version that is.
    saved: tokio::sync::Mutex<u64>,
    /// Something was done with.
    progress: Notify,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Position {
    /// Everything before it is done with; 0 before the first.
    offset: i64,
    /// What is done with after it.
    done: BTreeSet<i64>,
    /// When the last update came in, in seconds since 1970.
    last_at: u64,
    #[serde(skip)]
    waiting: BTreeSet<i64>,
    /// The last one that Telegram has shown to this run.
    #[serde(skip)]
    seen: i64,
    #[serde(skip)]
    version: u64,
}

impl Ledger {
    /// As it was written last.
    ///
    /// # Errors
    /// The file cannot be read, or its folder takes none.
    pub(super) async fn open(path: PathBuf) -> io::Result<Ledger> {
        let position = match durable::read(&path).await? {
            // It is replaced as a whole, so one that is not understood is not of this program.
            Some(text) => serde_json::from_slice(&text).map_err(io::Error::other)?,
            None => Position::default(),
        };
        let ledger = Ledger {
            path,
            position: Mutex::new(position),
            saved: tokio::sync::Mutex::new(0),
            progress: Notify::new(),
        };
        ledger.write().await?;
        Ok(ledger)
    }

    /// What to ask Telegram for, if anything is to be said: the first update that is not done with.
    pub(super) fn offset(&self) -> Option<i64> {
        let position = lock(&self.position);
        let fresh = now().saturating_sub(position.last_at) < NUMBERS_LAST;
        (position.offset > 0 && (fresh || !position.waiting.is_empty())).then_some(position.offset)
    }

    /// Takes in what Telegram has sent in answer to `asked`, and says which of it is new.
    pub(super) fn take_in(&self, ids: &[i64], asked: Option<i64>) -> BTreeSet<i64> {
        let mut position = lock(&self.position);
        if asked.is_none()
            && let Some(&first) = ids.iter().min()
            && first < position.offset
        {
            // Numbered anew.
            position.offset = first;
            position.done.clear();
        }
        let known =
            |id: &i64| *id < position.offset || position.done.contains(id) || position.waiting.contains(id);
        let new: BTreeSet<i64> = ids.iter().copied().filter(|id| !known(id)).collect();
        if !new.is_empty() {
            position.last_at = now();
        }
        position.waiting.extend(&new);
        if let Some(&last) = ids.iter().max() {
            position.seen = last;
            position.settle();
        }
        new
    }

    /// Writes down what is kept elsewhere: Telegram may still show it, but it is done with.
    ///
    /// # Errors
    /// It is not written down; if it is delivered now it may come twice.
    pub(super) async fn is_kept(&self, ids: impl IntoIterator<Item = i64>) -> io::Result<()> {
        {
            let mut position = lock(&self.position);
            let offset = position.offset;
            position.done.extend(ids.into_iter().filter(|id| *id >= offset));
            position.version += 1;
        }
        self.write().await
    }

    /// Notes that an update is done with. It is on disk after [`Ledger::save`].
    pub(super) fn done(&self, id: i64) {
        let mut position = lock(&self.position);
        position.finish(id);
        drop(position);
        self.progress.notify_one();
    }

    /// How many are not done with.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.position).waiting.len()
    }

    /// The first that is not done with, where so many lie from it on: Telegram shows no more than a hundred, those that are
    /// done with among them.
    pub(super) fn in_the_way(&self, crowded: usize) -> Option<i64> {
        let position = lock(&self.position);
        let shown = position.waiting.len() + position.done.len();
        position.waiting.first().copied().filter(|_| shown >= crowded)
    }

    /// Waits until more is done with.
    pub(super) async fn progress(&self) {
        self.progress.notified().await;
    }

    /// Writes down what is done with, unless that is written already. What cannot be written now is with the next.
    pub(super) async fn save(&self) {
        if let Err(error) = self.write().await {
            note(&format!("what was delivered is not written down: {}: {error}", self.path.display()));
        }
    }

    async fn write(&self) -> io::Result<()> {
        let wanted = lock(&self.position).version;
        let mut saved = self.saved.lock().await;
        if *saved > wanted {
            return Ok(());
        }
        let position = lock(&self.position).clone();
        durable::replace(self.path.clone(), serde_json::to_vec(&position)?).await?;
        *saved = position.version + 1;
        Ok(())
    }
}

impl Position {
    fn finish(&mut self, id: i64) {
        if !self.waiting.remove(&id) {
            return;
        }
        self.done.insert(id);
        self.settle();
    }

    /// The offset passes everything that was seen and is done with.
    fn settle(&mut self) {
        self.version += 1;
        self.offset = match self.waiting.first() {
            Some(&waiting) => waiting,
            None => self.seen + 1,
        };
        self.done = self.done.split_off(&self.offset);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(folder: &tempfile::TempDir) -> Ledger {
        Ledger::open(folder.path().join("bot/position.json")).await.unwrap()
    }

    #[tokio::test]
    async fn the_offset_passes_only_what_is_done_and_the_rest_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(&folder).await;
        assert_eq!(ledger.offset(), None);
        assert_eq!(ledger.take_in(&[10, 11, 12], None), BTreeSet::from([10, 11, 12]));
        ledger.done(11);
        assert_eq!((ledger.offset(), ledger.waiting()), (Some(10), 2));
        ledger.save().await;

        let again = open(&folder).await;
        assert_eq!(again.take_in(&[10, 11, 12, 13], Some(10)), BTreeSet::from([10, 12, 13]));
        assert_eq!((again.in_the_way(4), again.in_the_way(5)), (Some(10), None));
        again.done(10);
        assert_eq!((again.offset(), again.in_the_way(2)), (Some(12), Some(12)));
        again.done(13);
        again.done(12);
        assert_eq!((again.offset(), again.waiting()), (Some(14), 0));
        again.save().await;
        assert!(open(&folder).await.take_in(&[13], Some(14)).is_empty());
    }

    #[tokio::test]
    async fn what_is_kept_elsewhere_is_not_taken_and_passed_when_it_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(&folder).await;
        ledger.is_kept([10, 12]).await.unwrap();
        assert_eq!(ledger.take_in(&[10, 11], None), BTreeSet::from([11]));
        ledger.done(11);
        assert_eq!(ledger.offset(), Some(12));
        assert!(ledger.take_in(&[12], Some(12)).is_empty());
        assert_eq!(ledger.offset(), Some(13));
    }

    #[tokio::test]
    async fn updates_that_are_numbered_anew_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(&folder).await;
        ledger.take_in(&[1000], None);
        ledger.done(1000);
        lock(&ledger.position).last_at = 1;
        assert_eq!(ledger.offset(), None);
        assert_eq!(ledger.take_in(&[5, 6], None), BTreeSet::from([5, 6]));
        ledger.done(5);
        assert_eq!(ledger.offset(), Some(6));
    }

    #[tokio::test]
    async fn a_file_that_is_not_understood_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("position.json");
        std::fs::write(&path, "{").unwrap();
        assert!(Ledger::open(path.clone()).await.is_err());
        assert_eq!(std::fs::read(path).unwrap(), b"{");
    }
}
