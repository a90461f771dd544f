//! When machines are to be woken for what they plan themselves: one timer for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mvm_model::InstanceId;
use tokio::sync::{Notify, Semaphore};

use crate::agent::Agent;
use crate::store::now_millis;

/// The host's clock may be set, and stands for the time; waiting does not notice that.
const CLOCK_SET_WITHIN: Duration = Duration::from_secs(30);

/// Which machines are to be woken, and when.
#[derive(Debug, Default)]
pub struct Alarms {
    due: Mutex<Due>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Due {
    /// By time, in seconds since 1970.
    first: BTreeSet<(u64, InstanceId)>,
    of: BTreeMap<InstanceId, u64>,
}

impl Due {
    fn set(&mut self, id: InstanceId, at: Option<u64>) {
        let before = match at {
            Some(at) => self.of.insert(id, at),
            None => self.of.remove(&id),
        };
        if let Some(before) = before {
            self.first.remove(&(before, id));
        }
        self.first.extend(at.map(|at| (at, id)));
    }

    /// The first whose time has come, which is then no more among them; or for how long there is none.
    fn take(&mut self, now_ms: u64) -> Result<InstanceId, Option<Duration>> {
        let (at, id) = *self.first.first().ok_or(None)?;
        match at.saturating_mul(1000).checked_sub(now_ms) {
            None | Some(0) => {
                self.set(id, None);
                Ok(id)
            }
            Some(wait) => Err(Some(Duration::from_millis(wait))),
        }
    }
}

impl Alarms {
    /// A machine is to be woken at another time, in seconds since 1970, or not at all.
    pub fn set(&self, id: InstanceId, at: Option<u64>) {
        self.due().set(id, at);
        self.changed.notify_one();
    }

    /// The next machine, when its time has come.
    async fn next(&self) -> InstanceId {
        loop {
            let wait = match self.due().take(now_millis()) {
                Ok(id) => return id,
                Err(wait) => wait,
            };
            match wait {
                Some(wait) => {
                    let changed = self.changed.notified();
                    // What comes first is seen in the next round.
                    let _ = tokio::time::timeout(wait.min(CLOCK_SET_WITHIN), changed).await;
                }
                None => self.changed.notified().await,
            }
        }
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For so long a wake counts as one of few.
const TURN: Duration = Duration::from_secs(10);

/// Wakes machines when their time has come, a few at once: after a night without an agent, or without its host, many may be
/// overdue.
pub async fn ring(agent: Arc<Agent>) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let at_once = Arc::new(Semaphore::new(cores * 2));
    // It is never closed.
    while let Ok(turn) = Arc::clone(&at_once).acquire_owned().await {
        let id = agent.alarms.next().await;
        let Some(machine) = agent.machine(id) else { continue };
        tokio::spawn(async move {
            let waking = async {
                if let Err(error) = machine.wake_for_its_timer().await {
                    tracing::warn!(instance = %machine.id, %error, "it was not woken for its timer");
                }
            };
            tokio::pin!(waking);
            // One that takes long, or hangs, keeps nobody else's time.
            if tokio::time::timeout(TURN, &mut waking).await.is_err() {
                drop(turn);
                waking.await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_time_has_come_is_taken_once_first_come_first() {
        let [a, b, c] = [1, 2, 3].map(InstanceId::new);
        let mut due = Due::default();
        assert_eq!(due.take(0), Err(None));
        due.set(a, Some(20));
        due.set(b, Some(10));
        due.set(c, Some(10));
        assert_eq!(due.take(9_999), Err(Some(Duration::from_millis(1))));
        assert_eq!([due.take(10_000), due.take(10_000)], [Ok(b), Ok(c)]);
        assert_eq!(due.take(10_000), Err(Some(Duration::from_secs(10))));
        due.set(a, Some(5));
        assert_eq!(due.take(10_000), Ok(a));
        due.set(a, Some(5));
        due.set(a, None);
        assert_eq!(due.take(u64::MAX), Err(None));
    }

    #[tokio::test]
    async fn an_earlier_time_is_not_missed_by_one_who_waits_for_a_later() {
        let alarms = Arc::new(Alarms::default());
        let soon = now_millis() / 1000;
        alarms.set(InstanceId::new(1), Some(soon + 3600));
        let waiting = tokio::spawn({
            let alarms = Arc::clone(&alarms);
            async move { alarms.next().await }
        });
        tokio::task::yield_now().await;
        alarms.set(InstanceId::new(2), Some(soon + 1));
        assert_eq!(waiting.await.unwrap(), InstanceId::new(2));
        let late = now_millis() - (soon + 1) * 1000;
        assert!(late < 1000, "{late} ms late");
    }
}
