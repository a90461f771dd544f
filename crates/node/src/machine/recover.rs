//! After a restart of the agent: what an earlier one had begun is finished or undone, and machines that run are taken
//! over as they are.

use std::time::Instant;

use mvm_model::InstanceState;

use super::task::{Task, failed};
use super::{ActError, Asker};
use crate::store::{Audit, Intent};

impl Task {
    /// Compares what the row says with what is there.
    pub(super) async fn recover(&mut self) {
        match self.row.intent {
            None => self.recover_state().await,
            // The agent destroys it anew once every machine is known.
            Some(Intent::Destroy) => {}
            Some(Intent::Stop) => self.finish_stop(false).await,
            Some(Intent::Sleep) => self.recover_sleep().await,
            Some(Intent::Start) => {
                self.undo_launch().await;
                self.again().await;
            }
            Some(Intent::Wake) if self.row.snapshot.is_some() => {
                // It never ran: its snapshot is as good as before.
                self.undo_launch().await;
                self.again().await;
            }
            Some(Intent::Wake) => {
                self.undo_launch().await;
                let why = "its snapshot had been consumed when the agent ended".to_owned();
                // A failure is kept in the row.
                let _ = self.cold_instead(Instant::now(), why, Asker::Policy).await;
            }
        }
    }

    async fn recover_state(&mut self) {
        match self.row.state {
            InstanceState::Running | InstanceState::Warm => match self.take_over().await {
                Ok(()) => tracing::info!(instance = %self.row.address(), "taken over, running"),
                Err(error) => self.lost_without_agent(&error).await,
            },
            InstanceState::Sleeping if self.row.process.is_some() => {
                // Committed, so it is asleep, whatever became of its VMM.
                self.agent.discard_vmm(&self.row).await;
                self.row.process = None;
                if let Err(error) = self.save(Vec::new()).await {
                    tracing::error!(instance = %self.row.id, %error, "its row could not be stored");
                }
            }
            _ => {}
        }
        self.pursue_goal().await;
    }

    async fn recover_sleep(&mut self) {
        self.row.snapshot = None;
        let resumed = match self.adopt().await {
            Ok(()) => self.resume_cancelled().await,
            Err(error) => Err(error),
        };
        match resumed {
            Ok(()) => {
                self.row.intent = None;
                let audit = Audit::new(
                    self.row.address(),
                    "SleepCancelled",
                    "the agent ended before it was committed",
                );
                if let Err(error) = self.save(vec![audit]).await {
                    tracing::error!(instance = %self.row.id, %error, "its row could not be stored");
                }
                self.discard_snapshot().await;
            }
            Err(error) => self.lost_without_agent(&error).await,
        }
    }

    /// A machine that runs goes on running: only the agent's ends of its channels are new.
    async fn take_over(&mut self) -> Result<(), ActError> {
        self.adopt().await?;
        self.session = Some(self.open_session().await?);
        // A deployment that the earlier agent did not finish.
        if let Err(error) = self.refresh().await {
            tracing::warn!(instance = %self.row.id, %error, "new config and secrets did not reach the machine");
        }
        Ok(())
    }

    async fn adopt(&mut self) -> Result<(), ActError> {
        let process = self.row.process.clone().ok_or_else(|| failed("no process is recorded"))?;
        let resources = self.row.launched.as_ref().map(|l| l.resources).unwrap_or_default();
        let port = self.agent.port_of(&self.tenant, &self.row, self.ip, &self.pool().await?);
        self.agent.hands.reattach(self.row.id, process, port).await.map_err(failed)?;
        self.admission = Some(self.agent.admissions.readmit(&self.tenant, self.row.id, resources));
        Ok(())
    }

    async fn lost_without_agent(&mut self, error: &ActError) {
        let rebooted = self.row.process.as_ref().is_some_and(|p| p.boot_id != self.agent.boot_id);
        let reason = if rebooted {
            "the host was rebooted".to_owned()
        } else {
            format!("the VMM ended while no agent was running, exit status unknown: {error}")
        };
        self.lost(reason).await;
        if rebooted {
            self.again().await;
        }
    }

    /// What a launch that was not finished left behind goes; the machine is in the state it was in before.
    async fn undo_launch(&mut self) {
        self.agent.discard_vmm(&self.row).await;
        self.row.process = None;
    }

    /// What was asked of the earlier agent is done by this one.
    async fn again(&mut self) {
        if let Err(error) = self.bring_up(Asker::Policy).await {
            tracing::warn!(instance = %self.row.address(), %error, "it could not be made to run again");
            if self.row.intent.take().is_some()
                && let Err(error) = self.save(Vec::new()).await
            {
                tracing::error!(instance = %self.row.id, %error, "its row could not be stored");
            }
        }
    }
}
