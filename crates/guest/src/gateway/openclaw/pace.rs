//! How many calls a worker may make. All share the bot and the key, and what is too much for a service would stop everybody.

use std::collections::HashMap;
use std::sync::Mutex;

use mvm_model::InstanceId;
use tokio::time::Instant;

use crate::lock;

/// At once.
const BURST: f64 = 30.0;
const PER_SECOND: f64 = 5.0;

/// What each worker has left.
#[derive(Debug, Default)]
pub(super) struct Pacing(Mutex<HashMap<InstanceId, Left>>);

#[derive(Debug, Clone, Copy)]
struct Left {
    calls: f64,
    at: Instant,
}

impl Pacing {
    /// Takes one call.
    ///
    /// # Errors
    /// There is none left; after how many seconds there is.
    pub(super) fn take(&self, worker: InstanceId) -> Result<(), u64> {
        self.take_at(worker, Instant::now())
    }

    fn take_at(&self, worker: InstanceId, now: Instant) -> Result<(), u64> {
        let mut all = lock(&self.0);
        let left = all.entry(worker).or_insert(Left { calls: BURST, at: now });
        let calls = left.calls + (now - left.at).as_secs_f64() * PER_SECOND;
        *left = Left { calls: calls.min(BURST), at: now };
        if left.calls < 1.0 {
            return Err(1);
        }
        left.calls -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_worker_has_a_burst_and_then_a_few_a_second() {
        let (pacing, worker, other) = (Pacing::default(), InstanceId::new(1), InstanceId::new(2));
        let begin = Instant::now();
        let taken = |worker, after| {
            let now = begin + Duration::from_secs(after);
            (0..100).filter(|_| pacing.take_at(worker, now).is_ok()).count()
        };
        assert_eq!((taken(worker, 0), taken(other, 0)), (30, 30));
        assert_eq!(pacing.take_at(worker, begin), Err(1));
        assert_eq!((taken(worker, 1), taken(worker, 3600)), (5, 30));
    }
}
