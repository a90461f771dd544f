//! Moments at which a test has the agent die, as by SIGKILL, so that every step of every act is interrupted on purpose
//! and not by luck. A release has none of it.

mod table;

pub use table::KillPoint;

/// Names the point at which the agent dies.
#[cfg(debug_assertions)]
const VARIABLE: &str = "MVM_KILL_AT";

/// Dies here if the environment says so.
#[cfg(debug_assertions)]
pub(crate) fn reached(point: KillPoint) {
    if std::env::var(VARIABLE).is_ok_and(|name| name == point.name()) {
        // Nothing runs after this, not even on other threads.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// A release does not die on purpose.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: KillPoint) {}

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
