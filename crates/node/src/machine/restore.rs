//! Restores: another data disk in the place of its own, and a machine that begins anew with it.

use mvm_kill_point::{KillPoint, reached};
use mvm_model::{InstanceState, Operation};

use super::stop::goal_after;
use super::task::{Task, failed};
use super::{ActError, OtherDisk};
use crate::store::{Audit, Goal, Intent};

impl Task {
    /// The disk is whole: once the act has begun it gets it, whatever ends meanwhile. It is again as it was; one that has
    /// failed is started, one that a person stopped or that never ran is not.
    pub(super) async fn restore_disk(&mut self, other: OtherDisk) -> Result<InstanceState, ActError> {
        let OtherDisk { disk, from, said } = other;
        let before = self.row.state;
        let pool = self.pool().await?;
        let goal = match before {
            InstanceState::Failed => Some(Goal::Running),
            _ => goal_after(before),
        };
        let _admission = match goal {
            Some(_) => Some(self.admit_again(&pool).await?),
            None => None,
        };
        self.agent.hands.keep_disk(disk, self.row.id).await.map_err(failed)?;
        reached(KillPoint::RestoreKept);
        let (goal_before, reason_before) = (self.row.goal, self.row.reason.clone());
        self.row.goal = goal;
        self.row.reason = Some(from);
        if let Err(error) = self.begin(Intent::Restore).await {
            (self.row.goal, self.row.reason) = (goal_before, reason_before);
            return Err(error);
        }
        reached(KillPoint::RestoreBegun);
        if before.has_vmm() {
            let _ = said.send("stopping".to_owned());
        }
        self.drain_and_shut_down(&pool.runtime_policy).await;
        if let Err(error) = self.finish_restore().await {
            // With the disk that it had.
            if goal.is_some() {
                self.come_back(before).await?;
            }
            return Err(error);
        }
        if goal.is_some() {
            let _ = said.send("starting with the backup's data disk".to_owned());
            self.come_back(before).await.map_err(|error| {
                failed(format!(
                    "{} has the backup's data disk now, but is not as it was before: {error}",
                    self.row.address()
                ))
            })?;
        }
        Ok(self.row.state)
    }

    /// From a guest that has ended to one that has its disk.
    pub(super) async fn finish_restore(&mut self) -> Result<(), ActError> {
        self.end_runtime().await;
        reached(KillPoint::RestoreStopped);
        // S3: whatever was recorded of the old disk fits no more.
        self.row.disk_epoch += 1;
        let replaced = self.agent.hands.replace_disk(self.row.id).await;
        reached(KillPoint::RestoreReplaced);
        let from = self.row.reason.take().unwrap_or_default();
        let audit = match &replaced {
            Ok(()) => Audit::new(self.row.address(), "InstanceRestored", from),
            Err(error) => Audit::new(self.row.address(), "RestoreFailed", error.to_string()),
        };
        if self.row.state.after(Operation::Stop).is_ok() {
            self.settle(Operation::Stop, vec![audit]).await;
        } else {
            self.row.intent = None;
            self.save(vec![audit]).await?;
        }
        reached(KillPoint::RestoreCommitted);
        replaced.map_err(failed)
    }
}
