//! How many streams may be open at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mvm_protocol::{HOST_STREAMS, MAX_GATEWAY_STREAMS, MAX_STREAMS};

/// Counts a machine's open streams.
#[derive(Debug)]
pub struct StreamLimit {
    open: AtomicUsize,
    max: AtomicUsize,
}

/// One stream's place; given back when dropped.
#[derive(Debug)]
pub struct Slot(Arc<StreamLimit>);

impl Default for StreamLimit {
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), max: AtomicUsize::new(MAX_STREAMS) }
    }
}

impl StreamLimit {
    /// Gateways may have more.
    pub fn set_gateway(&self, gateway: bool) {
        self.max.store(if gateway { MAX_GATEWAY_STREAMS } else { MAX_STREAMS }, Ordering::Relaxed);
    }

    /// A place for a stream that the host opened.
    pub fn take_for_host(self: &Arc<Self>) -> Option<Slot> {
        self.take(self.max.load(Ordering::Relaxed))
    }

    /// A place for a stream to the host; the last ones are not for these.
    pub fn take_for_guest(self: &Arc<Self>) -> Option<Slot> {
        self.take(self.max.load(Ordering::Relaxed) - HOST_STREAMS)
    }

    fn take(self: &Arc<Self>, max: usize) -> Option<Slot> {
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < max).then_some(open + 1))
            .ok()
            .map(|_| Slot(Arc::clone(self)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_places_are_kept_free_of_the_guests_streams() {
        let limit = Arc::new(StreamLimit::default());
        let guest: Vec<Slot> = std::iter::from_fn(|| limit.take_for_guest()).collect();
        assert_eq!(guest.len(), MAX_STREAMS - HOST_STREAMS);
        let host: Vec<Slot> = std::iter::from_fn(|| limit.take_for_host()).collect();
        assert_eq!(host.len(), HOST_STREAMS);
        drop(guest);
        assert!(limit.take_for_guest().is_some());
        limit.set_gateway(true);
        let gateway: Vec<Slot> = std::iter::from_fn(|| limit.take_for_host()).collect();
        assert_eq!(gateway.len() + host.len(), MAX_GATEWAY_STREAMS);
    }
}
