//! After a restart of the agent: what an earlier one had begun is finished or undone, and machines that run are taken
//! over as they are.

use std::pin::Pin;
use std::time::{Duration, Instant};

use mvm_kill_point::{KillPoint, reached};
use mvm_model::InstanceState;

use super::task::{Task, failed};
use super::{ActError, Asker};
use crate::store::{Audit, Intent};

/// How long a guest that was told to stop may take to show whether it still listens, or to be gone.
const STILL_LISTENS: Duration = Duration::from_secs(10);

/// How often it is tried to take over a machine that lives.
const TAKE_OVERS: u32 = 3;
const BETWEEN_TAKE_OVERS: Duration = Duration::from_secs(2);

/// An attempt that is under way.
type Acting<'a> = Pin<Box<dyn Future<Output = Result<(), ActError>> + Send + 'a>>;

impl Task {
    /// Compares what the row says with what is there.
    pub(super) async fn recover(&mut self) {
        if self.doomed {
            // It is destroyed once every machine is known: nothing is begun with it any more.
            return;
        }
        match self.row.intent {
            None => {
                self.recover_state().await;
                self.conclude_upgrade().await;
            }
            // The agent destroys it anew once every machine is known.
            Some(Intent::Destroy) => return,
            Some(Intent::Stop) => self.recover_stop().await,
            Some(Intent::Restore) => self.recover_restore().await,
            Some(Intent::Sleep) => self.recover_sleep().await,
            Some(Intent::Warm) => self.recover_warm().await,
            Some(Intent::Resume) => match self.adopt_patiently().await {
                Ok(()) => {
                    // A failure is kept in the row.
                    let _ = self.resume(Asker::Policy).await;
                }
                Err(error) => self.lost_without_agent(&error).await,
            },
            Some(Intent::Upgrade) => self.recover_upgrade().await,
            Some(Intent::Start) if self.row.upgrade().is_some_and(|upgrade| !upgrade.is_back) => {
                self.undo_launch().await;
                self.recover_upgrade_start().await;
            }
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
                let result = self.cold_instead(Instant::now(), why, Asker::Policy).await;
                self.keep_books(&result).await;
            }
        }
        // A new instance that was on its way to where it begins goes on.
        self.pursue_goal().await;
    }

    async fn recover_state(&mut self) {
        match self.row.state {
            InstanceState::Warm => {
                // Its guest stands still: there is nobody to talk to.
                if let Err(error) = self.adopt_patiently().await {
                    self.lost_without_agent(&error).await;
                }
            }
            InstanceState::Running => match self.patiently(|task| Box::pin(task.take_over())).await {
                Ok(()) => tracing::info!(instance = %self.row.address(), "taken over, running"),
                Err(error) => self.lost_without_agent(&error).await,
            },
            InstanceState::Sleeping if self.row.process.is_some() => {
                // Committed, so it is asleep, whatever became of its VMM.
                self.undo_launch().await;
                self.save_or_log(Vec::new()).await;
            }
            // Its next attempt was known to the earlier agent only.
            InstanceState::Failed => self.schedule_restart().await,
            _ => {}
        }
    }

    /// The stop goes on, in order where the guest still listens.
    async fn recover_stop(&mut self) {
        let orderly = self.shut_down_found().await;
        self.finish_stop(orderly).await;
    }

    /// The disk that it is to have was whole before the act began.
    async fn recover_restore(&mut self) {
        self.shut_down_found().await;
        if let Err(error) = self.finish_restore().await {
            tracing::error!(instance = %self.row.address(), %error, "its data disk was not replaced");
        }
    }

    pub(super) async fn shut_down_found(&mut self) -> bool {
        self.row.state.has_vmm() && self.adopt().await.is_ok() && self.shut_down_again().await
    }

    async fn shut_down_again(&mut self) -> bool {
        let grace = self.pool().await.map_or(0, |pool| pool.runtime_policy.graceful_shutdown_seconds);
        match tokio::time::timeout(STILL_LISTENS, self.open_session()).await {
            Ok(Ok(session)) => {
                self.set_session(Some(session));
                self.shut_down(grace).await
            }
            // It is on its way down already, or hangs.
            _ => self.agent.hands.wait_end(self.row.id, STILL_LISTENS).await.unwrap_or(false),
        }
    }

    async fn recover_warm(&mut self) {
        match self.adopt_patiently().await {
            Ok(()) => {
                self.go_on_instead(&failed("the agent ended before it was committed")).await;
            }
            Err(error) => self.lost_without_agent(&error).await,
        }
    }

    async fn recover_sleep(&mut self) {
        self.row.snapshot = None;
        match self.patiently(|task| Box::pin(task.take_back_sleep())).await {
            Ok(()) => {
                reached(KillPoint::RecoverResumed);
                self.row.intent = None;
                let audit = Audit::new(
                    self.row.address(),
                    "SleepCancelled",
                    "the agent ended before it was committed",
                );
                self.save_or_log(vec![audit]).await;
                self.discard_snapshot().await;
            }
            Err(error) => self.lost_without_agent(&error).await,
        }
    }

    async fn take_back_sleep(&mut self) -> Result<(), ActError> {
        self.adopt().await?;
        self.go_on(Some(true)).await
    }

    /// A host or guest that is busy just now is no reason to end a machine that lives.
    async fn patiently(&mut self, act: for<'a> fn(&'a mut Self) -> Acting<'a>) -> Result<(), ActError> {
        for _ in 1..TAKE_OVERS {
            match act(self).await {
                Err(error) if self.is_alive() => {
                    tracing::warn!(instance = %self.row.address(), %error, "not taken over yet");
                    tokio::time::sleep(BETWEEN_TAKE_OVERS).await;
                }
                done => return done,
            }
        }
        act(self).await
    }

    async fn adopt_patiently(&mut self) -> Result<(), ActError> {
        self.patiently(|task| Box::pin(task.adopt())).await
    }

    pub(super) fn is_alive(&self) -> bool {
        self.row.process.as_ref().is_some_and(|process| process.is_alive().unwrap_or(false))
    }

    /// A machine that runs goes on running: only the agent's ends of its channels are new.
    async fn take_over(&mut self) -> Result<(), ActError> {
        self.adopt().await?;
        self.set_session(Some(self.open_session().await?));
        // A deployment that the earlier agent did not finish.
        if let Err(error) = self.refresh().await {
            tracing::warn!(instance = %self.row.id, %error, "new config and secrets did not reach the machine");
        }
        Ok(())
    }

    async fn adopt(&mut self) -> Result<(), ActError> {
        if self.admission.is_some() {
            // An earlier attempt came so far: a monitor has one connection at a time, and this agent has it.
            return Ok(());
        }
        let process = self.row.process.clone().ok_or_else(|| failed("no process is recorded"))?;
        let resources = self.row.launched.as_ref().map(|l| l.resources).unwrap_or_default();
        let port = self.agent.port_of(&self.tenant, &self.row, self.ip, &self.pool().await?);
        self.agent.hands.reattach(self.row.id, process, port).await.map_err(failed)?;
        self.admission = Some(self.agent.admissions.readmit(&self.tenant, self.row.id, resources));
        Ok(())
    }

    async fn lost_without_agent(&mut self, error: &ActError) {
        let rebooted = self.row.process.as_ref().is_some_and(|p| p.boot_id != self.agent.boot_id);
        let ended = !self.is_alive();
        let reason = if rebooted {
            "the host was rebooted".to_owned()
        } else if ended {
            "the VMM ended while no agent was running; its exit status is unknown".to_owned()
        } else {
            format!("the machine could not be taken over when the agent started again: {error}")
        };
        self.lost(reason).await;
        if rebooted {
            self.again().await;
        }
    }

    /// What a launch that was not finished left behind goes; the machine is in the state it was in before.
    async fn undo_launch(&mut self) {
        self.agent.discard_vmm(&self.row).await;
        reached(KillPoint::RecoverVmmEnded);
        self.row.process = None;
    }

    /// What was asked of the earlier agent is done by this one.
    async fn again(&mut self) {
        if let Err(error) = self.bring_up(Asker::Policy).await {
            tracing::warn!(instance = %self.row.address(), %error, "it could not be made to run again");
            if self.row.intent.take().is_some() {
                self.save_or_log(Vec::new()).await;
            }
        }
    }
}
