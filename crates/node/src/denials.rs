//! How many of a machine's denied requests are audited one by one: a guest that asks without end must not fill its
//! tenant's log, nor keep the store busy.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Audited in each [`WINDOW`].
const AUDITED: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// The denied requests of one machine.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    window: Option<Instant>,
    audited: u32,
    /// Not audited since the last one that was.
    skipped: u64,
}

impl Denials {
    /// Notes one. It is to be audited where a number comes back: that of those before it which were not.
    pub fn note(&self, now: Instant) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.window.is_none_or(|begun| now.duration_since(begun) >= WINDOW) {
            counts.window = Some(now);
            counts.audited = 0;
        }
        if counts.audited == AUDITED {
            counts.skipped += 1;
            return None;
        }
        counts.audited += 1;
        Some(std::mem::take(&mut counts.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_audited_in_part_and_counted_as_a_whole() {
        let (denials, begun) = (Denials::default(), Instant::now());
        let audited = (0..1000).filter_map(|_| denials.note(begun)).collect::<Vec<_>>();
        assert_eq!(audited, vec![0; AUDITED as usize]);
        let later = begun + WINDOW;
        assert_eq!(denials.note(later), Some(1000 - u64::from(AUDITED)));
        assert_eq!(denials.note(later), Some(0));
    }
}
