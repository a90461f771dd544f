//! Sleep by itself: when a machine's task looks whether it is idle, and what it does then.
//!
//! Nothing is polled: a look says before when no other is worth it, and what does not run is not looked at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mvm_model::{InstanceState, Operation, PoolSpec, RuntimePolicy};
use mvm_protocol::control::{GuestReply, GuestRequest, WorkerStatus};

use super::come_up::ANSWER;
use super::task::Task;
use super::{ActError, Asker};
use crate::policy::{DEFERRED, Facts, Guest, OVERRIDDEN, Verdict};
use crate::store::{Audit, now_millis, now_secs};

/// After coming up: whoever waits for the machine has been answered by then.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// After a sleep that did not come about, or a guest that did not answer: then twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(30);
/// The longest pause between two attempts.
const AGAIN_AT_MOST: Duration = Duration::from_secs(30 * 60);

/// What a machine's task keeps of looking after it in one run.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// The run: when it began, as its row says.
    run: u64,
    look_at: Option<Instant>,
    /// Attempts that did not come about, one after another.
    failures: u32,
    /// Why the last did not.
    why: Option<Box<str>>,
    /// It was audited that it has to run longer.
    is_deferred: bool,
}

impl Task {
    /// When to look next whether it is idle.
    pub(super) fn next_look(&mut self) -> Option<Instant> {
        if self.row.state != InstanceState::Running {
            self.idle = None;
            return None;
        }
        let run = self.row.since;
        if self.idle.as_ref().is_none_or(|idle| idle.run != run) {
            let look_at = Some(Instant::now() + FIRST_LOOK);
            self.idle = Some(Box::new(Idle { run, look_at, ..Idle::default() }));
        }
        self.idle.as_ref()?.look_at
    }

    /// Its pool may have changed.
    pub(super) fn look_soon(&mut self) {
        self.look_in(FIRST_LOOK);
    }

    fn look_in(&mut self, wait: Duration) {
        if let Some(idle) = &mut self.idle {
            idle.look_at = Some(Instant::now() + wait);
        }
    }

    /// Puts it to sleep if it is idle; otherwise says when to look again.
    pub(super) async fn look(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.look_at = None;
        }
        let pool = match self.pool().await {
            Ok(pool) => pool,
            Err(error) => return self.look_later(&error),
        };
        let mut verdict = self.facts(&pool, Guest::Unasked).verdict(now_millis());
        if verdict == Verdict::Ask {
            if self.agent.idle_sleeps.available_permits() == 0 {
                return self.look_soon();
            }
            verdict = match self.ask_whether_idle().await {
                Some(Ok(guest)) => self.facts(&pool, guest).verdict(now_millis()),
                Some(Err(error)) => return self.look_later(&error),
                None => return self.look_soon(),
            };
        }
        match verdict {
            // What was asked for meanwhile comes first.
            Verdict::Sleep if !self.mailbox.is_empty() => self.look_soon(),
            Verdict::Sleep => self.sleep_in_turn().await,
            Verdict::NotBefore(at) => {
                if let Some(idle) = &mut self.idle {
                    idle.failures = 0;
                }
                self.look_in(until(at));
            }
            Verdict::Deferred(at) => {
                self.look_in(until(at));
                self.audit_deferred(&pool).await;
            }
            Verdict::Ask | Verdict::Never => {}
        }
    }

    async fn sleep_in_turn(&mut self) {
        let agent = Arc::clone(&self.agent);
        let Ok(_turn) = agent.idle_sleeps.try_acquire() else { return self.look_soon() };
        if let Err(error) = self.sleep(Asker::Policy).await {
            self.look_later(&error);
        }
    }

    fn facts(&self, pool: &PoolSpec, guest: Guest) -> Facts {
        Facts {
            role: pool.role,
            state: self.row.state,
            running_since: self.row.since * 1000,
            is_held: self.leases.count() > 0,
            released_at: self.leases.released_at(),
            guest,
            sleep_after: u64::from(pool.sleep_after_seconds) * 1000,
            min_running: u64::from(pool.runtime_policy.min_running_seconds) * 1000,
        }
    }

    /// What its guest says of its work; nothing where something was asked of the machine meanwhile, which comes first.
    async fn ask_whether_idle(&mut self) -> Option<Result<Guest, ActError>> {
        let link = self.session()?.link();
        tokio::select! {
            answer = link.begin(&GuestRequest::WorkerStatus, "WorkerStatus", ANSWER) => {
                Some(answer.map_err(super::task::failed).and_then(|(reply, _)| guest_says(&reply)))
            }
            command = self.mailbox.recv() => {
                self.pending.extend(command);
                None
            }
        }
    }

    fn look_later(&mut self, why: &ActError) {
        let Some(idle) = &mut self.idle else { return };
        let wait = again(idle.failures);
        idle.failures = idle.failures.saturating_add(1);
        tracing::debug!(instance = %self.row.address(), %why, ?wait, "not put to sleep; looked at again later");
        self.look_in(wait);
    }

    /// Whether a reason for which policy does not put it to sleep is another than the last time in this run.
    pub(super) fn is_news(&mut self, why: &str) -> bool {
        let Some(idle) = &mut self.idle else { return true };
        idle.why.replace(why.into()).as_deref() != Some(why)
    }

    /// Once a run.
    async fn audit_deferred(&mut self, pool: &PoolSpec) {
        if self.idle.as_mut().is_none_or(|idle| std::mem::replace(&mut idle.is_deferred, true)) {
            return;
        }
        let least = pool.runtime_policy.min_running_seconds;
        let detail = format!("sleep: it is idle, and runs for {least} s at least");
        self.save_or_log(vec![Audit::new(self.row.address(), DEFERRED, detail)]).await;
    }

    /// What is said of an act of his that is done although its pool wants the machine to stay for longer as it is.
    pub(super) fn overridden(
        &self,
        asker: Asker,
        operation: Operation,
        policy: &RuntimePolicy,
    ) -> Option<Audit> {
        let least = policy.least(self.row.state, operation);
        let stayed = now_secs().saturating_sub(self.row.since);
        if asker != Asker::Person || stayed >= least.into() {
            return None;
        }
        let done = match operation {
            Operation::Sleep => "put to sleep",
            Operation::Warm => "paused",
            _ => "stopped",
        };
        let detail = format!("{done} after {stayed} s {}; its pool wants {least}", self.row.state);
        Some(Audit::new(self.row.address(), OVERRIDDEN, detail))
    }
}

fn guest_says(reply: &GuestReply) -> Result<Guest, ActError> {
    match reply {
        GuestReply::WorkerStatus { status: WorkerStatus::Idle, last_busy_at } => {
            Ok(Guest::IdleSince(last_busy_at.saturating_mul(1000)))
        }
        GuestReply::WorkerStatus { status: WorkerStatus::Busy | WorkerStatus::Starting, .. } => {
            Ok(Guest::Busy)
        }
        _ => Err(super::task::failed("the guest's answer to WorkerStatus makes no sense")),
    }
}

fn until(at: u64) -> Duration {
    Duration::from_millis(at.saturating_sub(now_millis()))
}

fn again(failures: u32) -> Duration {
    AGAIN.saturating_mul(1 << failures.min(10)).min(AGAIN_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_back_off() {
        let waits: Vec<u64> = [0, 1, 2, 5, 6, 60, u32::MAX].map(|n| again(n).as_secs()).into();
        assert_eq!(waits, [30, 60, 120, 960, 1800, 1800, 1800]);
    }
}
