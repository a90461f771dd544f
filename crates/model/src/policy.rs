//! When a machine is started again, and how long it may or must run.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{InstanceState, Operation, Role};

/// What follows when a machine failed, per pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Started again at once, then backing off to [`RestartPolicy::MAX_BACKOFF`].
    OnFailure,
    /// The next Hold or wake-up time starts it.
    OnDemand,
    /// Only a person starts it.
    Never,
}

impl RestartPolicy {
    /// The longest pause between two attempts.
    pub const MAX_BACKOFF: Duration = Duration::from_secs(60);

    /// What a pool of this role has unless its manifest says otherwise.
    pub const fn default_for(role: Role) -> Self {
        if role.is_gateway() { RestartPolicy::OnFailure } else { RestartPolicy::OnDemand }
    }

    /// How long to wait before attempt number `attempt` (from 0) after a failure.
    pub fn backoff(attempt: u32) -> Duration {
        match attempt {
            0 => Duration::ZERO,
            n => Duration::from_secs(1u64 << (n - 1).min(6)).min(Self::MAX_BACKOFF),
        }
    }

    /// The name in TOML and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            RestartPolicy::OnFailure => "on-failure",
            RestartPolicy::OnDemand => "on-demand",
            RestartPolicy::Never => "never",
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How long a machine may or must take, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RuntimePolicy {
    /// Policy does not pause, sleep or stop a machine that runs for less.
    pub min_running_seconds: u32,
    /// Policy does not put a machine to sleep that was paused for less.
    pub min_warm_seconds: u32,
    /// How long a guest may take to finish its work before it sleeps.
    pub drain_timeout_seconds: u32,
    /// How long a guest may take to shut down before its VMM is ended.
    pub graceful_shutdown_seconds: u32,
}

impl RuntimePolicy {
    /// For how many seconds at least a machine is in a state before policy does this with it; 0 where it need not wait.
    pub const fn least(&self, state: InstanceState, operation: Operation) -> u32 {
        match (state, operation) {
            (InstanceState::Running, Operation::Warm | Operation::Sleep | Operation::Stop) => {
                self.min_running_seconds
            }
            (InstanceState::Warm, Operation::Sleep) => self.min_warm_seconds,
            _ => 0,
        }
    }
}

impl Default for RuntimePolicy {
    fn default() -> Self {
        Self {
            min_running_seconds: 60,
            min_warm_seconds: 30,
            drain_timeout_seconds: 30,
            graceful_shutdown_seconds: 15,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_comes_at_once_and_then_backs_off_to_a_minute() {
        let waits: Vec<u64> = (0..10).map(|n| RestartPolicy::backoff(n).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(RestartPolicy::backoff(u32::MAX), RestartPolicy::MAX_BACKOFF);
    }

    #[test]
    fn a_minimum_guards_what_it_is_the_minimum_of_and_a_stop_only_where_it_runs() {
        let policy =
            RuntimePolicy { min_running_seconds: 60, min_warm_seconds: 30, ..RuntimePolicy::default() };
        let of =
            |state| [Operation::Warm, Operation::Sleep, Operation::Stop].map(|act| policy.least(state, act));
        assert_eq!(of(InstanceState::Running), [60, 60, 60]);
        assert_eq!(of(InstanceState::Warm), [0, 30, 0]);
        assert_eq!(of(InstanceState::Sleeping), [0, 0, 0]);
        assert_eq!(policy.least(InstanceState::Running, Operation::Fail), 0);
    }
}
