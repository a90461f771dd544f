//! Leases: what keeps a machine awake.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::store::now_millis;

/// The leases of one machine.
#[derive(Debug)]
pub struct Leases {
    count: watch::Sender<usize>,
    /// When a message last took one, in milliseconds since 1970; 0 before the first.
    last_message: AtomicU64,
    /// When one last ended, or would have: in milliseconds since 1970.
    released_at: AtomicU64,
}

/// Keeps its machine from sleeping while it lives.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<Leases>,
}

impl Leases {
    /// None yet. Whether an earlier agent had given some is not known: they may have ended just now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            count: watch::Sender::new(0),
            last_message: AtomicU64::new(0),
            released_at: AtomicU64::new(now_millis()),
        })
    }

    /// One more.
    pub fn take(self: &Arc<Self>) -> Lease {
        self.count.send_modify(|count| *count += 1);
        Lease { leases: Arc::clone(self) }
    }

    /// One more, for a message.
    pub fn take_for_message(self: &Arc<Self>) -> Lease {
        self.last_message.store(now_millis(), Ordering::Relaxed);
        self.take()
    }

    /// When a message last took one, in milliseconds since 1970.
    pub fn last_message(&self) -> Option<u64> {
        Some(self.last_message.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// When one last ended, or something was asked that needed none, in milliseconds since 1970.
    pub fn released_at(&self) -> u64 {
        self.released_at.load(Ordering::Relaxed)
    }

    /// Something was asked of the machine that needs no lease, and was done just now.
    pub fn touch(&self) {
        self.released_at.store(now_millis(), Ordering::Relaxed);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Resolves when there is none.
    pub async fn none(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits so many seconds at most until there is none; whether there is none.
    pub async fn none_within(&self, seconds: u32) -> bool {
        tokio::time::timeout(Duration::from_secs(seconds.into()), self.none()).await.is_ok()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Before: whoever sees that there is none sees since when.
        self.leases.touch();
        self.leases.count.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lease_to_go_lets_the_machine_sleep() {
        let leases = Leases::new();
        leases.none().await;
        let (a, b) = (leases.take(), leases.take());
        assert_eq!(leases.count(), 2);
        drop(a);
        let waiting = leases.none();
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(b);
        waiting.await;
    }
}
