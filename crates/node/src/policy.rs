//! When policy puts a machine to sleep: a pure rule over what is known of it.
//!
//! A machine sleeps once it has been idle for as long as its pool says: since it runs, since nobody holds it, and since its
//! guest last had work. Only a machine with no act in progress is asked about.

use std::sync::atomic::{AtomicU64, Ordering};

use mvm_model::{InstanceState, Role};
use mvm_protocol::api::MinimumStats;

use crate::store::Audit;

/// What the audit log says of a sleep that waits for a minimum runtime, once a run.
pub const DEFERRED: &str = "TransitionDeferred";
/// What it says of an act for a person that did not wait for one.
pub const OVERRIDDEN: &str = "MinRuntimeOverridden";

/// How often a minimum runtime made a difference since the agent's start.
#[derive(Debug, Default)]
pub struct Minimums {
    deferred: AtomicU64,
    overridden: AtomicU64,
}

impl Minimums {
    /// Counts what was audited.
    pub fn add(&self, more: MinimumStats) {
        self.deferred.fetch_add(more.deferred, Ordering::Relaxed);
        self.overridden.fetch_add(more.overridden, Ordering::Relaxed);
    }

    /// All so far.
    pub fn so_far(&self) -> MinimumStats {
        MinimumStats {
            deferred: self.deferred.load(Ordering::Relaxed),
            overridden: self.overridden.load(Ordering::Relaxed),
        }
    }
}

/// How many of these entries are about a minimum runtime.
pub fn among(audits: &[Audit]) -> MinimumStats {
    let of = |kind| audits.iter().filter(|audit| audit.kind == kind).count() as u64;
    MinimumStats { deferred: of(DEFERRED), overridden: of(OVERRIDDEN) }
}

/// What is known of a machine. Times are in milliseconds since 1970; one in the future counts as now.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// What it is for.
    pub role: Role,
    /// Its state.
    pub state: InstanceState,
    /// Since when it runs.
    pub running_since: u64,
    /// Somebody holds it.
    pub is_held: bool,
    /// When a lease last ended, or a message last asked for it.
    pub released_at: u64,
    /// What its guest says.
    pub guest: Guest,
    /// How long it is idle before it sleeps, in milliseconds; 0 is never.
    pub sleep_after: u64,
    /// How long it runs at least, in milliseconds.
    pub min_running: u64,
}

/// Whether a guest has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It was not asked.
    Unasked,
    /// It has, or is not ready.
    Busy,
    /// It has none since then.
    IdleSince(u64),
}

/// What follows. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is to sleep now.
    Sleep,
    /// Its guest decides: ask it.
    Ask,
    /// Not before then, whatever happens until then.
    NotBefore(u64),
    /// It would sleep now, but has to run until then.
    Deferred(u64),
    /// Not in this run, unless its pool changes.
    Never,
}

impl Facts {
    /// What follows from them at `now`.
    pub fn verdict(&self, now: u64) -> Verdict {
        let exempt = !self.role.sleeps_when_idle() || self.sleep_after == 0;
        if exempt || self.state != InstanceState::Running {
            return Verdict::Never;
        }
        let busy_at = match self.guest {
            Guest::Unasked => 0,
            Guest::Busy => now,
            Guest::IdleSince(since) => since,
        };
        let held_at = if self.is_held { now } else { self.released_at };
        let idle_since = busy_at.max(held_at).max(self.running_since).min(now);
        let ripe_at = idle_since.saturating_add(self.sleep_after);
        if now < ripe_at {
            return Verdict::NotBefore(ripe_at);
        }
        if self.guest == Guest::Unasked {
            return Verdict::Ask;
        }
        let served_at = self.running_since.min(now).saturating_add(self.min_running);
        if now < served_at { Verdict::Deferred(served_at) } else { Verdict::Sleep }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORKER: Facts = Facts {
        role: Role::Worker,
        state: InstanceState::Running,
        running_since: 1_000_000,
        is_held: false,
        released_at: 0,
        guest: Guest::IdleSince(0),
        sleep_after: 300_000,
        min_running: 60_000,
    };

    #[test]
    fn it_sleeps_when_it_was_idle_for_so_long_and_is_asked_first() {
        assert_eq!(WORKER.verdict(1_299_999), Verdict::NotBefore(1_300_000));
        assert_eq!(WORKER.verdict(1_300_000), Verdict::Sleep);
        let unasked = Facts { guest: Guest::Unasked, ..WORKER };
        assert_eq!(unasked.verdict(1_299_999), Verdict::NotBefore(1_300_000));
        assert_eq!(unasked.verdict(1_300_000), Verdict::Ask);
    }

    #[test]
    fn what_is_idle_is_counted_from_the_last_of_all() {
        let released = Facts { released_at: 1_200_000, ..WORKER };
        assert_eq!(released.verdict(1_300_000), Verdict::NotBefore(1_500_000));
        let worked = Facts { guest: Guest::IdleSince(1_250_000), ..released };
        assert_eq!(worked.verdict(1_300_000), Verdict::NotBefore(1_550_000));
        let held = Facts { is_held: true, ..WORKER };
        assert_eq!(held.verdict(5_000_000), Verdict::NotBefore(5_300_000));
        let busy = Facts { guest: Guest::Busy, ..WORKER };
        assert_eq!(busy.verdict(5_000_000), Verdict::NotBefore(5_300_000));
    }

    #[test]
    fn it_runs_as_long_as_it_must() {
        let quick = Facts { sleep_after: 1_000, ..WORKER };
        assert_eq!(quick.verdict(1_001_000), Verdict::Deferred(1_060_000));
        assert_eq!(quick.verdict(1_060_000), Verdict::Sleep);
    }

    #[test]
    fn gateways_and_builders_never_do_nor_what_does_not_run() {
        for role in [Role::Gateway, Role::Builder] {
            assert_eq!(Facts { role, ..WORKER }.verdict(u64::MAX), Verdict::Never);
        }
        let asleep = Facts { state: InstanceState::Sleeping, ..WORKER };
        assert_eq!(asleep.verdict(u64::MAX), Verdict::Never);
        assert_eq!(Facts { sleep_after: 0, ..WORKER }.verdict(u64::MAX), Verdict::Never);
    }

    fn guests() -> impl Strategy<Value = Guest> {
        let idle = (0..2_000_000u64).prop_map(Guest::IdleSince);
        prop_oneof![Just(Guest::Unasked), Just(Guest::Busy), idle]
    }

    proptest! {
        #[test]
        fn it_sleeps_only_when_nothing_keeps_it_awake_and_then_surely(
            running_since in 0..2_000_000u64,
            released_at in 0..2_000_000u64,
            is_held: bool,
            guest in guests(),
            sleep_after in 1..1_000_000u64,
            min_running in 0..1_000_000u64,
            now in 0..4_000_000u64,
        ) {
            let facts = Facts { running_since, is_held, released_at, guest, sleep_after, min_running, ..WORKER };
            match facts.verdict(now) {
                Verdict::Sleep => {
                    let Guest::IdleSince(since) = guest else { panic!("not asked, or busy") };
                    prop_assert!(!is_held);
                    prop_assert!([running_since, released_at, since].iter().all(|at| at + sleep_after <= now));
                    prop_assert!(running_since + min_running <= now);
                }
                // Looking then is soon enough, and never in a tight loop.
                Verdict::NotBefore(at) => prop_assert!(at > now && at <= now + sleep_after),
                Verdict::Deferred(at) => prop_assert!(at > now && at <= now + min_running),
                Verdict::Ask => prop_assert_eq!(guest, Guest::Unasked),
                Verdict::Never => prop_assert!(false),
            }
            // If nothing happens any more, it does sleep.
            let left = Facts { is_held: false, guest: Guest::IdleSince(released_at), ..facts };
            prop_assert_eq!(left.verdict(10_000_000), Verdict::Sleep);
        }
    }
}
