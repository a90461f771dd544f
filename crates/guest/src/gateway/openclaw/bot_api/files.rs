//! Which files a worker may download: those that it has asked about.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use mvm_model::InstanceId;

use crate::lock;

/// Of one worker; the oldest goes when there are more.
const PER_WORKER: usize = 256;

/// The paths that Telegram gave, by worker.
#[derive(Debug, Default)]
pub(in super::super) struct FilesSeen(Mutex<HashMap<InstanceId, VecDeque<String>>>);

impl FilesSeen {
    /// Telegram gave this path to this worker.
    pub(super) fn add(&self, worker: InstanceId, path: &str) {
        let mut seen = lock(&self.0);
        let paths = seen.entry(worker).or_default();
        if paths.len() == PER_WORKER {
            paths.pop_front();
        }
        paths.push_back(path.to_owned());
    }

    /// Whether it did.
    pub(super) fn has(&self, worker: InstanceId, path: &str) -> bool {
        lock(&self.0).get(&worker).is_some_and(|paths| paths.iter().any(|seen| seen == path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_only_its_own_and_not_for_ever() {
        let (files, worker, other) = (FilesSeen::default(), InstanceId::new(1), InstanceId::new(2));
        files.add(worker, "a");
        assert!(files.has(worker, "a") && !files.has(other, "a") && !files.has(worker, "b"));
        for number in 0..PER_WORKER {
            files.add(worker, &number.to_string());
        }
        assert!(!files.has(worker, "a") && files.has(worker, "0"));
    }
}
