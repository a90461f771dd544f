//! How long a service that ended has to wait.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// A service that ran for so long is well again.
const WELL: Duration = Duration::from_secs(10);

/// The waits of one service: longer with every short run.
#[derive(Debug, Default)]
pub struct Backoff {
    short_runs: u32,
}

impl Backoff {
    /// How long to wait after a run of this length.
    pub fn after(&mut self, run: Duration) -> Duration {
        if run >= WELL {
            self.short_runs = 0;
        }
        let wait = FIRST.saturating_mul(2_u32.saturating_pow(self.short_runs)).min(LONGEST);
        self.short_runs = self.short_runs.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_and_a_long_run_forgives() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..4).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800]);
        assert_eq!(backoff.after(WELL), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), FIRST * 2);
    }

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(runs in prop::collection::vec(0u64..20, 0..60)) {
            let mut backoff = Backoff::default();
            for run in runs {
                let wait = backoff.after(Duration::from_secs(run));
                prop_assert!((FIRST..=LONGEST).contains(&wait));
            }
        }
    }
}
