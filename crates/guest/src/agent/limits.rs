//! How many streams may be open at once.

use std::sync::{Arc, Mutex};

use mvm_protocol::{HOST_STREAMS, MAX_GATEWAY_STREAMS, MAX_STREAMS};

use crate::lock;

/// Counts a machine's open streams.
#[derive(Debug)]
pub struct StreamLimit(Mutex<Open>);

#[derive(Debug)]
struct Open {
    by_host: usize,
    by_guest: usize,
    max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opener {
    Host,
    Guest,
}

/// One stream's place; given back when dropped.
#[derive(Debug)]
pub struct Slot(Arc<StreamLimit>, Opener);

impl Default for StreamLimit {
    fn default() -> Self {
        Self(Mutex::new(Open { by_host: 0, by_guest: 0, max: MAX_STREAMS }))
    }
}

impl Open {
    fn by(&mut self, opener: Opener) -> &mut usize {
        match opener {
            Opener::Host => &mut self.by_host,
            Opener::Guest => &mut self.by_guest,
        }
    }

    fn has_room(&self, opener: Opener) -> bool {
        let total = self.by_host + self.by_guest < self.max;
        total && (opener == Opener::Host || self.by_guest < self.max - HOST_STREAMS)
    }
}

impl StreamLimit {
    /// Gateways may have more.
    pub fn set_gateway(&self, gateway: bool) {
        lock(&self.0).max = if gateway { MAX_GATEWAY_STREAMS } else { MAX_STREAMS };
    }

    /// A place for a stream that the host opened.
    pub fn take_for_host(self: &Arc<Self>) -> Option<Slot> {
        self.take(Opener::Host)
    }

    /// A place for a stream to the host; the last ones are not for these.
    pub fn take_for_guest(self: &Arc<Self>) -> Option<Slot> {
        self.take(Opener::Guest)
    }

    fn take(self: &Arc<Self>, opener: Opener) -> Option<Slot> {
        let mut open = lock(&self.0);
        if !open.has_room(opener) {
            return None;
        }
        *open.by(opener) += 1;
        Some(Slot(Arc::clone(self), opener))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.0.0).by(self.1) -= 1;
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
        let guest: Vec<Slot> = std::iter::from_fn(|| limit.take_for_guest()).collect();
        assert_eq!(
            guest.len(),
            MAX_STREAMS - HOST_STREAMS,
            "the host's streams take none of the guest's places"
        );
        drop(guest);
        limit.set_gateway(true);
        let gateway: Vec<Slot> = std::iter::from_fn(|| limit.take_for_host()).collect();
        assert_eq!(gateway.len() + host.len(), MAX_GATEWAY_STREAMS);
    }
}
