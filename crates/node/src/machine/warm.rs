//! Warm: the VMM holds the memory, the processors stand still. Resuming is a wake without a snapshot: only clock and
//! generation are new.

use mvm_kill_point::{KillPoint, reached};
use mvm_model::Operation;

use super::task::{Task, failed};
use super::{ActError, Asker, Outcome};
use crate::store::{Audit, Intent};

impl Task {
    pub(super) async fn warm(&mut self, asker: Asker) -> Result<Outcome, ActError> {
        if self.row.state.already(Operation::Warm) {
            return Ok(Outcome::Already);
        }
        self.row.state.after(Operation::Warm)?;
        let policy = self.pool().await?.runtime_policy;
        let overridden = self.overridden(asker, Operation::Warm, &policy);
        self.begin(Intent::Warm).await?;
        reached(KillPoint::WarmBegun);
        // Messages in hand are finished first, as before a sleep; who only waits lets go when it is told of the act.
        let drain = policy.drain_timeout_seconds;
        if !self.leases.none_within(drain).await {
            tracing::info!(instance = %self.row.id, "paused with messages still in hand after {drain} s");
        }
        // A guest that stands still answers nobody.
        self.set_session(None);
        // S6: what it is when it goes on it has to confirm first.
        let (hands, id) = (&self.agent.hands, self.row.id);
        let paused = async {
            hands.set_link(id, false).await?;
            hands.pause(id).await
        };
        if let Err(error) = paused.await {
            let error = failed(error);
            self.go_on_instead(&error).await;
            return Err(error);
        }
        reached(KillPoint::WarmPaused);
        let detail = format!("paused for {}", asker.as_str());
        let audit = Audit::new(self.row.address(), "InstanceWarm", detail);
        self.settle(Operation::Warm, overridden.into_iter().chain([audit]).collect()).await;
        Ok(Outcome::Done)
    }

    /// From warm to running.
    pub(super) async fn resume(&mut self, asker: Asker) -> Result<(), ActError> {
        self.row.state.after(Operation::Resume)?;
        self.begin(Intent::Resume).await?;
        reached(KillPoint::ResumeBegun);
        match self.go_on(None).await {
            Ok(()) => {
                let audit = Audit::new(self.row.address(), "InstanceResumed", asker.purpose());
                self.settle(Operation::Resume, vec![audit]).await;
                Ok(())
            }
            Err(error) => {
                self.lost(format!("it could not be resumed: {error}")).await;
                Err(error)
            }
        }
    }

    /// A pause that failed, or that an agent died over, is taken back.
    pub(super) async fn go_on_instead(&mut self, why: &ActError) {
        let resumed = self.go_on(Some(true)).await;
        match resumed {
            Ok(()) => {
                self.row.intent = None;
                let audit = Audit::new(self.row.address(), "PauseCancelled", why.to_string());
                self.save_or_log(vec![audit]).await;
            }
            Err(error) => self.lost(format!("a pause failed ({why}), and so did going on: {error}")).await,
        }
    }
}
