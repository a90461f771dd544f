//! Backups: a data disk that nothing writes to, for as long as somebody reads it. What runs sleeps meanwhile.

use std::fs::File;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::InstanceState;
use tokio::sync::oneshot;

use super::stop::goal_after;
use super::task::{Task, answer, failed};
use super::{ActError, Asker, Reply, Said};
use crate::store::InstanceRow;

/// A data disk that holds still. Its machine may wait for it to be let go of.
#[derive(Debug)]
pub struct DiskRead {
    /// The disk.
    pub file: File,
    /// The machine whose it is.
    pub row: InstanceRow,
    /// How it ends.
    pub end: BackupEnd,
}

/// The end of a backup.
#[derive(Debug)]
pub struct BackupEnd {
    read: Option<oneshot::Sender<()>>,
    again: oneshot::Receiver<Result<(), ActError>>,
}

impl BackupEnd {
    /// Lets go of the disk; comes back when its machine is again as it was.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn let_go(mut self) -> Result<(), ActError> {
        self.read = None;
        self.again.await.map_err(|_| ActError::Gone)?
    }
}

impl Task {
    /// The one act of a backup: whoever asked may go at any time, the machine comes back.
    pub(super) async fn back_up(&mut self, said: Said, reply: Reply<DiskRead>) {
        let before = self.row.state;
        let held = self.hold_disk(&said).await;
        let woken = matches!(before, InstanceState::Running | InstanceState::Warm);
        let (file, is_copy, _admission) = match held {
            Ok(held) => held,
            Err(error) => return answer(reply, Err(error)),
        };
        let (read, all_read) = oneshot::channel();
        let (again, is_again) = oneshot::channel();
        let end = BackupEnd { read: Some(read), again: is_again };
        answer(reply, Ok(DiskRead { file, row: self.row.clone(), end }));
        if !is_copy {
            // Its sender goes with the reading, however that ends.
            let _ = all_read.await;
        }
        let mut result = Ok(());
        if woken {
            let _ = said.send("being woken again".to_owned());
            result = self.come_back(before).await;
        }
        let _ = again.send(result);
    }

    /// Its disk, whether it is a copy, and the place that it keeps among those that run.
    async fn hold_disk(
        &mut self,
        said: &Said,
    ) -> Result<(File, bool, Option<crate::agent::Admission>), ActError> {
        let opened = self.agent.hands.open_disk(self.row.id).await.map_err(failed)?;
        let address = self.row.address();
        let no_disk = || ActError::Failed(format!("{address} has no data disk: there is nothing to back up"));
        let disk = opened.ok_or_else(no_disk)?;
        let mut admission = None;
        if self.row.state.has_vmm() {
            let launched = self.row.launched.as_ref().map(|launched| launched.resources);
            let pool = self.pool().await?;
            admission = Some(self.agent.admissions.readmit(
                &self.tenant,
                self.row.id,
                launched.unwrap_or(pool.resources),
            ));
            let _ = said.send("going to sleep for its backup".to_owned());
            // An agent that dies before it is woken again finds where it belongs.
            self.row.goal = goal_after(self.row.state);
            if let Err(error) = self.sleep(Asker::Person).await {
                self.row.goal = None;
                self.save(Vec::new()).await?;
                return Err(error);
            }
            reached(KillPoint::BackupAsleep);
        }
        match self.agent.hands.clone_disk(&disk).await {
            Ok(Some(copy)) => Ok((copy, true, admission)),
            Ok(None) => Ok((disk, false, admission)),
            Err(error) => {
                tracing::warn!(instance = %address, %error, "its disk is read itself");
                Ok((disk, false, admission))
            }
        }
    }
}
