//! Moments at which a test has the agent die, as by SIGKILL, or stand still until something else has died, so that every
//! step of every act is interrupted on purpose and not by luck. A release has none of it.
//!
//! The steps are the agent's, the host's and the engine's: this lies below all three.

mod table;

pub use table::KillPoint;

/// Names the point at which the agent dies.
#[cfg(debug_assertions)]
const VARIABLE: &str = "MVM_KILL_AT";

/// Names the point at which the agent stands still, once, until it is sent SIGCONT.
#[cfg(debug_assertions)]
const STOP_VARIABLE: &str = "MVM_STOP_AT";

/// Dies or stands still here if the environment says so.
#[cfg(debug_assertions)]
pub fn reached(point: KillPoint) {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static STOPPED: AtomicBool = AtomicBool::new(false);
    let is_named = |variable| std::env::var(variable).is_ok_and(|name| name == point.name());
    // Nothing of this act goes on after either.
    if is_named(VARIABLE) {
        let _ = kill_process(getpid(), Signal::KILL);
    }
    if is_named(STOP_VARIABLE) && !STOPPED.swap(true, Ordering::Relaxed) {
        let _ = kill_process(getpid(), Signal::STOP);
        // Another thread may be the one that takes the signal, a moment later.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// A release does not die on purpose.
#[cfg(not(debug_assertions))]
pub fn reached(_: KillPoint) {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::KillPoint;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = KillPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), KillPoint::ALL.len());
    }
}
