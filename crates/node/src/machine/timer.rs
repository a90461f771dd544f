//! Wakes that a workload has planned: what it said when it fell asleep stays in the row until its time has come.

use mvm_model::InstanceState;

use super::task::Task;
use super::{ActError, Asker};
use crate::store::now_secs;

/// The shortest and the longest pause before a wake that failed is tried again, in seconds.
const AGAIN: std::ops::RangeInclusive<u64> = 60..=3600;

impl Task {
    /// Its time may have come.
    pub(super) async fn timer(&mut self) -> Result<(), ActError> {
        let now = now_secs();
        // It may have slept again meanwhile, and named another.
        let Some(at) = self.row.wake_at.filter(|at| *at <= now) else { return Ok(()) };
        if self.row.state == InstanceState::Running {
            self.forget_timer();
            self.save_or_log(Vec::new()).await;
            return Ok(());
        }
        // As for a message: not one that a person stopped, nor one that failed where only persons start it.
        if let Err(refused) = self.admit_message().await {
            self.row.wake_at = None;
            self.save_or_log(Vec::new()).await;
            return Err(refused);
        }
        let done = self.bring_up(Asker::Timer).await;
        if done.is_err() {
            self.agent.alarms.set(self.row.id, Some(now + again_after(now - at)));
        }
        done
    }

    /// What was planned for a time that has come is done once it runs; stopped, it has no plans.
    pub(super) fn forget_timer(&mut self) {
        let is_due = self.row.wake_at.is_some_and(|at| at <= now_secs());
        if self.row.state == InstanceState::Stopped || self.row.state == InstanceState::Running && is_due {
            self.row.wake_at = None;
        }
    }
}

/// The later it is, the longer the pause.
fn again_after(late: u64) -> u64 {
    late.clamp(*AGAIN.start(), *AGAIN.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_that_fails_is_tried_at_growing_distances() {
        let mut late = 0;
        let mut next = || {
            let wait = again_after(late);
            late += wait;
            wait
        };
        let waits: Vec<u64> = (0..8).map(|_| next()).collect();
        assert_eq!(waits, [60, 60, 120, 240, 480, 960, 1920, 3600]);
    }
}
