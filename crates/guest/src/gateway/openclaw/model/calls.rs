//! The model calls that a worker has in hand. They go on without it when it leaves, so its connections do not bound them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use mvm_model::InstanceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lock;

/// Of one worker at once. By what these cost a limit can be passed.
pub(super) const PER_WORKER: usize = 16;

/// Those of each worker.
#[derive(Debug, Default)]
pub(in super::super) struct Calls(Mutex<HashMap<InstanceId, Arc<Semaphore>>>);

impl Calls {
    /// A place for one more, which is to last until what it used is counted; none where all are taken.
    pub(super) fn take(&self, worker: InstanceId) -> Option<OwnedSemaphorePermit> {
        let mut all = lock(&self.0);
        let places = all.entry(worker).or_insert_with(|| Arc::new(Semaphore::new(PER_WORKER)));
        Arc::clone(places).try_acquire_owned().ok()
    }
}
