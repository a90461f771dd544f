//! Stop: an orderly shutdown, then the hard way; a snapshot is discarded.

use std::time::Duration;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::{InstanceState, Operation, PoolSpec, RuntimePolicy};
use mvm_protocol::control::GuestRequest;

use super::task::{Task, failed};
use super::{ActError, Asker, Outcome};
use crate::agent::Admission;
use crate::store::{Audit, Goal, Intent};

/// What a VMM gets beyond the guest's own grace to end after its guest has powered off.
const POWER_OFF: Duration = Duration::from_secs(5);

impl Task {
    pub(super) async fn stop(&mut self) -> Result<Outcome, ActError> {
        if self.row.state.already(Operation::Stop) {
            return self.give_up_goal().await;
        }
        self.row.state.after(Operation::Stop)?;
        let policy = self.pool().await?.runtime_policy;
        let overridden = self.overridden(Asker::Person, Operation::Stop, &policy);
        self.rouse().await;
        self.row.goal = None;
        // A stop that has begun is not taken back.
        self.begin_saying(Intent::Stop, overridden.into_iter().collect()).await?;
        reached(KillPoint::StopBegun);
        let orderly = self.row.state.has_vmm() && self.shut_down(policy.graceful_shutdown_seconds).await;
        reached(KillPoint::StopShutDown);
        self.finish_stop(orderly).await;
        Ok(Outcome::Done)
    }

    /// One that does not run and was to be started by itself stays as it is.
    async fn give_up_goal(&mut self) -> Result<Outcome, ActError> {
        if self.row.goal.is_none() {
            return Ok(Outcome::Already);
        }
        let before = self.row.clone();
        (self.row.goal, self.row.reason) = (None, None);
        let audit = Audit::new(self.row.address(), "InstanceStopped", "it was to be started");
        if let Err(error) = self.save(vec![audit]).await {
            self.row = before;
            return Err(error);
        }
        Ok(Outcome::Done)
    }

    /// Shuts it down and starts it from its disk, with what its pool has now; afterwards it is in the state that it was in.
    /// That is its goal until it is there, so that the next agent goes on with it, and a message that comes meanwhile waits.
    pub(super) async fn restart(&mut self) -> Result<Outcome, ActError> {
        let before = self.row.state;
        let Some(goal) = goal_after(before) else { return Ok(Outcome::Already) };
        let pool = self.pool().await?;
        let _admission = self.admit_again(&pool).await?;
        self.rouse().await;
        self.row.goal = Some(goal);
        if let Err(error) = self.begin(Intent::Stop).await {
            self.row.goal = None;
            return Err(error);
        }
        reached(KillPoint::StopBegun);
        let orderly = self.drain_and_shut_down(&pool.runtime_policy).await;
        reached(KillPoint::StopShutDown);
        self.finish_stop(orderly).await;
        self.come_back(before).await?;
        Ok(Outcome::Done)
    }

    /// Whether it may run again is certain before it is stopped.
    pub(super) async fn admit_again(&mut self, pool: &PoolSpec) -> Result<Admission, ActError> {
        self.tenant = self.agent.tenant(&self.tenant.id).await.map_err(failed)?;
        Ok(self.agent.admissions.admit(&self.tenant, self.row.id, pool.resources)?)
    }

    /// Shuts it down once messages in hand are finished; whether its VMM ended in time.
    pub(super) async fn drain_and_shut_down(&mut self, policy: &RuntimePolicy) -> bool {
        if self.row.state == InstanceState::Running {
            self.leases.none_within(policy.drain_timeout_seconds).await;
        }
        self.row.state.has_vmm() && self.shut_down(policy.graceful_shutdown_seconds).await
    }

    /// Has it run, and be again as it was before it was stopped.
    pub(super) async fn come_back(&mut self, before: InstanceState) -> Result<(), ActError> {
        self.bring_up(Asker::Person).await?;
        match before {
            InstanceState::Sleeping => match self.sleep(Asker::Person).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    // It runs on: no later agent is to put it to sleep behind anyone's back.
                    self.row.goal = None;
                    self.save(Vec::new()).await?;
                    return Err(error);
                }
            },
            InstanceState::Warm => self.warm(Asker::Person).await?,
            _ => Outcome::Done,
        };
        Ok(())
    }

    /// A guest that stands still goes on: only one that runs writes to its disk what it has not yet. One that cannot go on is
    /// ended all the same.
    pub(super) async fn rouse(&mut self) {
        if self.row.state == InstanceState::Warm
            && let Err(error) = self.resume(Asker::Person).await
        {
            tracing::warn!(instance = %self.row.address(), %error, "it is not shut down in order");
        }
    }

    /// Asks the guest to end; whether its VMM did in time.
    pub(super) async fn shut_down(&mut self, grace: u32) -> bool {
        let Some(session) = self.take_session() else { return false };
        let request = GuestRequest::Shutdown { grace_secs: grace };
        if let Err(error) = session.ask(&request, "Shutdown", Duration::from_secs(5)).await {
            tracing::info!(instance = %self.row.id, %error, "the guest did not take the shutdown");
            return false;
        }
        let within = Duration::from_secs(grace.into()) + POWER_OFF;
        self.agent.hands.wait_end(self.row.id, within).await.unwrap_or(false)
    }

    /// Whatever is left of the machine's runtime goes; whether it had a snapshot.
    pub(super) async fn end_runtime(&mut self) -> bool {
        self.set_session(None);
        self.admission = None;
        self.agent.discard_vmm(&self.row).await;
        self.row.process = None;
        let had_snapshot = self.row.snapshot.take().is_some();
        self.forget_memory().await;
        had_snapshot
    }

    pub(super) async fn finish_stop(&mut self, orderly: bool) {
        let had_snapshot = self.end_runtime().await;
        reached(KillPoint::StopEnded);
        let detail = match (had_snapshot, orderly) {
            (true, _) => "its snapshot was discarded",
            (false, true) => "in order",
            (false, false) => "its VMM was ended",
        };
        self.row.reason = None;
        self.settle(Operation::Stop, vec![Audit::new(self.row.address(), "InstanceStopped", detail)]).await;
    }
}

/// Where one goes that is stopped and is to be as it was.
pub(super) fn goal_after(before: InstanceState) -> Option<Goal> {
    match before {
        InstanceState::Running | InstanceState::Warm => Some(Goal::Running),
        InstanceState::Sleeping => Some(Goal::Sleeping),
        _ => None,
    }
}
