//! Sleep: drain, pause, snapshot, commit, end the VMM. In this order (rule S3), because until the commit everything can
//! be taken back and after it nothing may be.

use std::time::Duration;

use mvm_host::SnapshotFacts;
use mvm_kill_point::{KillPoint, reached};
use mvm_model::{InstanceState, Operation, PoolSpec};
use mvm_protocol::control::{GuestReply, GuestRequest};

use super::come_up::require_ready;
use super::task::{Task, failed};
use super::{ActError, Asker, Outcome};
use crate::store::{Audit, Goal, Intent, now_millis};

/// A guest may name any time; one beyond the year 9999 is none.
const LAST_TIMER: u64 = 253_402_300_799;

impl Task {
    pub(super) async fn sleep(&mut self, asker: Asker) -> Result<Outcome, ActError> {
        if self.row.state == InstanceState::Sleeping {
            return Ok(Outcome::Already);
        }
        self.row.state.after(Operation::Sleep)?;
        let pool = self.pool().await?;
        // Policy does not come so far; a person may.
        let overridden = self.overridden(asker, Operation::Sleep, &pool.runtime_policy);
        if self.row.state == InstanceState::Warm {
            // Its guest has to drain, and for that to run.
            self.resume(asker).await?;
        }
        self.begin(Intent::Sleep).await?;
        reached(KillPoint::SleepBegun);
        match self.sleep_until_commit(&pool, asker, overridden).await {
            Ok(()) => {
                reached(KillPoint::SleepCommitted);
                self.end_vmm_after_sleep(asker).await;
                reached(KillPoint::SleepEnded);
                Ok(Outcome::Done)
            }
            Err(error) => {
                self.cancel_sleep(&error, asker).await;
                Err(error)
            }
        }
    }

    /// Everything that can still be taken back.
    async fn sleep_until_commit(
        &mut self,
        pool: &PoolSpec,
        asker: Asker,
        overridden: Option<Audit>,
    ) -> Result<(), ActError> {
        let drain = pool.runtime_policy.drain_timeout_seconds;
        if asker == Asker::Policy && self.leases.count() > 0 {
            return Err(failed("somebody holds it again"));
        }
        // Messages in hand are finished first; a Hold that comes now waits in the mailbox for the next wake.
        if !self.leases.none_within(drain).await {
            tracing::info!(instance = %self.row.id, "put to sleep with messages still in hand after {drain} s");
        }
        // What is written in place must have been found whole before: waited for while the guest still works.
        self.agent.hands.checked(self.row.id).await.map_err(failed)?;
        let wake_at = self.finish_work(drain).await?;
        reached(KillPoint::SleepDrained);
        // Streams do not survive sleep.
        self.set_session(None);
        self.agent.hands.pause(self.row.id).await.map_err(failed)?;
        reached(KillPoint::SleepPaused);
        let launched = self.row.launched.as_ref().ok_or_else(|| failed("nothing is known of its launch"))?;
        let facts = SnapshotFacts {
            instance: self.row.id.to_string(),
            revision: launched.revision.clone(),
            generation: self.row.generation,
            disk_epoch: self.row.disk_epoch,
            recorded_at_ms: now_millis(),
        };
        self.row.snapshot =
            Some(self.agent.hands.snapshot(facts, pool.snapshot_compression).await.map_err(failed)?);
        reached(KillPoint::SleepWritten);
        self.commit_sleeping(asker, wake_at, overridden).await
    }

    /// Has the guest finish what it has in hand and begin nothing new, for so many seconds at most; when it wants to be woken.
    ///
    /// # Errors
    /// It cannot, and goes on as before.
    pub(super) async fn finish_work(&self, drain: u32) -> Result<Option<u64>, ActError> {
        let session = self.session().ok_or_else(|| failed("its control session is gone"))?;
        let request = GuestRequest::SleepPrep { drain_timeout_secs: drain };
        let within = Duration::from_secs(drain.into()) + Duration::from_secs(10);
        match session.ask(&request, "SleepPrep", within).await.map_err(failed)? {
            GuestReply::SleepPrepAck { success: true, wake_at, .. } => Ok(wake_at),
            GuestReply::SleepPrepAck { detail, .. } => {
                Err(failed(format!("the guest cannot sleep now: {detail}")))
            }
            _ => Err(failed("the guest's answer to SleepPrep makes no sense")),
        }
    }

    /// The point of no return.
    async fn commit_sleeping(
        &mut self,
        asker: Asker,
        wake_at: Option<u64>,
        overridden: Option<Audit>,
    ) -> Result<(), ActError> {
        let before = self.row.clone();
        let bytes = self.row.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes);
        self.row.state = self.row.state.after(Operation::Sleep)?;
        self.row.since = crate::store::now_secs();
        self.row.intent = None;
        self.row.reason = None;
        self.row.wake_at = wake_at.filter(|at| *at <= LAST_TIMER);
        if self.row.goal == Some(Goal::Sleeping) {
            self.row.goal = None;
        }
        let detail = format!("{} KiB written, {}", bytes.div_ceil(1024), asker.purpose());
        let audit = Audit::new(self.row.address(), "InstanceSlept", detail);
        let saved = self.save(overridden.into_iter().chain([audit]).collect()).await;
        if saved.is_err() {
            self.row = before;
        }
        saved
    }

    /// After the commit a VMM that is still there is ended, never resumed.
    async fn end_vmm_after_sleep(&mut self, asker: Asker) {
        self.agent.discard_vmm(&self.row).await;
        self.admission = None;
        self.row.process = None;
        self.show();
        tracing::info!(instance = %self.row.address(), by = asker.as_str(), "asleep");
    }

    /// Takes everything back: the machine goes on as if nothing had been.
    async fn cancel_sleep(&mut self, why: &ActError, asker: Asker) {
        self.row.snapshot = None;
        self.discard_snapshot().await;
        let resumed = self.go_on(Some(true)).await;
        let detail = format!("{why}");
        match resumed {
            Ok(()) => {
                self.row.intent = None;
                // Policy tries again and again: said once a run, while the reason is the same.
                let is_news = asker != Asker::Policy || self.is_news(&detail);
                let audit = is_news.then(|| Audit::new(self.row.address(), "SleepCancelled", detail));
                self.save_or_log(audit.into_iter().collect()).await;
            }
            Err(error) => self.lost(format!("a sleep failed ({detail}), and so did going on: {error}")).await,
        }
    }

    /// Lets a paused machine go on, and tells its guest if a sleep was given up.
    pub(super) async fn go_on(&mut self, cancelled: Option<bool>) -> Result<(), ActError> {
        if self.session().is_none() {
            // S6: until it has confirmed who it is when.
            self.agent.hands.set_link(self.row.id, false).await.map_err(failed)?;
        }
        self.agent.hands.go_on(self.row.id).await.map_err(failed)?;
        if self.session().is_none() {
            // It stood still, for as long as no agent was there maybe: it is told the time like one that woke.
            self.row.generation += 1;
            self.save(Vec::new()).await?;
            let session = self.open_session().await?;
            let mut guest = session.converse().await.map_err(failed)?;
            self.personalize(&mut guest).await?;
            // They may have changed while it stood still.
            self.update(&mut guest).await?;
            self.set_session(Some(session));
        }
        self.agent.hands.set_link(self.row.id, true).await.map_err(failed)?;
        let session = self.session().ok_or_else(|| failed("its control session is gone"))?;
        let request = GuestRequest::Wake { generation: self.row.generation, cancelled };
        require_ready(session.ask(&request, "Wake", self.ready_limit().await).await.map_err(failed)?)
    }
}
