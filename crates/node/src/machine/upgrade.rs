//! Upgrades: another image on the same data disk, and the way back.
//!
//! What a machine goes back to is in its row from the beginning of the act until it has come up, and a copy of its data disk is
//! kept as one for a restore is. So an agent that dies in between finds either what it had or what it is to have.

use std::time::Duration;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::{InstanceState, Operation};
use mvm_protocol::control::GuestRequest;

use super::stop::goal_after;
use super::task::{Task, failed};
use super::{ActError, Asker, Outcome, PoolImage, Said, UpgradeOrder};
use crate::store::{self, Audit, Intent, Upgrade, now_secs};

impl Task {
    pub(super) async fn upgrade(&mut self, order: UpgradeOrder) -> Result<Outcome, ActError> {
        let UpgradeOrder { before, said } = order;
        let state = self.row.state;
        let Some(goal) = goal_after(state) else { return Ok(Outcome::Already) };
        let place = &self.row.place;
        let pool = self.agent.pool(&place.tenant, &place.pool).await.map_err(failed)?;
        let Some(launched) = &self.row.launched else { return Ok(Outcome::Already) };
        if launched.revision == pool.revision {
            return Ok(Outcome::Already);
        }
        let (from, to) = (launched.revision.clone(), pool.revision.clone());
        let PoolImage { image, profile, revision } = before;
        // A pool that had it before goes back to what the machine has: others would take it at a cold start, without a way back.
        let pool_revision = Some(if revision == to { from.clone() } else { revision });
        let upgrade =
            Upgrade { to, from, image, profile, pool_revision, state, failed: None, is_back: false };
        let _admission = self.admit_again(&pool.spec).await?;
        self.rouse().await;
        let unchanged = self.row.clone();
        let policy = &pool.spec.runtime_policy;
        if self.row.state == InstanceState::Running {
            let _ = said.send("waiting for what it has in hand".to_owned());
            let drain = policy.drain_timeout_seconds;
            self.leases.none_within(drain).await;
            // One that is in the middle of something stays as it is, and is told of to whoever wants the upgrade.
            self.finish_work(drain).await?;
        }
        if let Some(launched) = &mut self.row.launched {
            launched.upgrade = Some(Box::new(upgrade));
        }
        self.row.goal = Some(goal);
        if let Err(error) = self.begin(Intent::Upgrade).await {
            self.row = unchanged;
            self.go_on_with_work().await;
            return Err(error);
        }
        reached(KillPoint::UpgradeBegun);
        if state.has_vmm() {
            let _ = said.send("stopping".to_owned());
            self.shut_down(policy.graceful_shutdown_seconds).await;
        }
        self.give_image(&said).await?;
        Ok(Outcome::Done)
    }

    /// It is not shut down after all.
    async fn go_on_with_work(&self) {
        let Some(session) = self.session().filter(|_| self.row.state == InstanceState::Running) else {
            return;
        };
        let request = GuestRequest::Wake { generation: self.row.generation, cancelled: Some(true) };
        if let Err(error) = session.ask(&request, "Wake", Duration::from_secs(30)).await {
            tracing::warn!(instance = %self.row.address(), %error, "it was not told to go on");
        }
    }

    /// From a guest that has ended to one that has its new image, or again what it had.
    async fn give_image(&mut self, said: &Said) -> Result<(), ActError> {
        self.end_runtime().await;
        if let Ok(state) = self.row.state.after(Operation::Stop) {
            (self.row.state, self.row.since) = (state, now_secs());
        }
        self.save(Vec::new()).await?;
        reached(KillPoint::UpgradeStopped);
        let _ = said.send("copying its data disk".to_owned());
        // One of an earlier upgrade, which could not be removed, is nothing to go back to.
        let kept = match self.agent.hands.forget_kept_disk(self.row.id).await {
            Ok(()) => self.agent.hands.keep_copy(self.row.id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            let error = failed(format!("its data disk could not be copied: {error}"));
            return self.go_back(error).await;
        }
        reached(KillPoint::UpgradeKept);
        let _ = said.send("starting with the new image".to_owned());
        self.come_up_with_it().await
    }

    async fn come_up_with_it(&mut self) -> Result<(), ActError> {
        match self.bring_up(Asker::Person).await {
            Ok(()) => {
                reached(KillPoint::UpgradeReady);
                self.upgraded().await
            }
            Err(error) => self.go_back(error).await,
        }
    }

    /// It is ready: there is no way back any more.
    async fn upgraded(&mut self) -> Result<(), ActError> {
        let Some(upgrade) = self.take_upgrade() else { return Ok(()) };
        let detail = format!("from revision {} to {}", upgrade.from, upgrade.to);
        self.row.goal = goal_after(upgrade.state).filter(|_| upgrade.state == InstanceState::Sleeping);
        self.save(vec![Audit::new(self.row.address(), "InstanceUpgraded", detail)]).await?;
        reached(KillPoint::UpgradeCommitted);
        if let Err(error) = self.agent.hands.forget_kept_disk(self.row.id).await {
            tracing::warn!(instance = %self.row.address(), %error, "the copy of its data disk stays until the next agent");
        }
        self.come_back(upgrade.state).await
    }

    /// It goes back to what it had; its pool too, unless that was given something else meanwhile. Always an error: why.
    async fn go_back(&mut self, error: ActError) -> Result<(), ActError> {
        let Some(mut upgrade) = self.row.upgrade().cloned() else { return Err(error) };
        // What its console ended with is in the row.
        let told = self.row.reason.clone().filter(|_| self.row.state == InstanceState::Failed);
        let why = told.unwrap_or_else(|| error.to_string());
        self.end_runtime().await;
        upgrade.failed = Some(why);
        (self.row.goal, self.row.intent) = (goal_after(upgrade.state), Some(Intent::Upgrade));
        let (mut row, tenant) = (self.row.clone(), self.tenant.id.clone());
        let committed = self.agent.store.write(move |tx| {
            if let Some(mut pool) = store::pool(tx, &tenant, &row.place.pool)? {
                if pool.revision == upgrade.to {
                    pool.revision = upgrade.revision_of_pool().clone();
                    (pool.spec.image, pool.spec.profile) = (upgrade.image.clone(), upgrade.profile.clone());
                    pool.save(tx)?;
                    let address = format!("{tenant}/{}", row.place.pool);
                    let (to, id) = (&pool.revision, row.id);
                    let detail = format!("from revision {} to {to}: {id} did not come up", upgrade.to);
                    Audit::new(address, "PoolRolledBack", detail).append(tx, &tenant)?;
                }
                upgrade.pool_revision = Some(pool.revision);
            }
            if let Some(launched) = &mut row.launched {
                launched.upgrade = Some(Box::new(upgrade));
            }
            row.save(tx)?;
            Ok(row)
        });
        self.row = committed.await.map_err(failed)?;
        self.show();
        reached(KillPoint::UpgradeFailed);
        self.take_back().await
    }

    /// From there on the next agent goes forward, which is back.
    async fn take_back(&mut self) -> Result<(), ActError> {
        // S3: whatever was recorded of the disk that it has now fits no more.
        self.row.disk_epoch += 1;
        if let Err(error) = self.agent.hands.replace_disk(self.row.id).await {
            // It is tried again by the next agent; until then it is not started.
            let address = self.row.address();
            return Err(failed(format!(
                "{address} could not be given back its data disk: {error}; restart the agent"
            )));
        }
        reached(KillPoint::UpgradeUndone);
        let launched = self.row.launched.as_mut();
        let Some(upgrade) = launched.and_then(|launched| launched.upgrade.as_mut()) else { return Ok(()) };
        // What it had is noted until it has come up with it.
        upgrade.is_back = true;
        let (why, upgrade) = (upgrade.failed.clone().unwrap_or_default(), upgrade.clone());
        self.row.intent = None;
        self.row.goal = goal_after(upgrade.state);
        self.save(vec![Audit::new(self.row.address(), "UpgradeFailed", why.clone())]).await?;
        reached(KillPoint::UpgradeBack);
        let again = self.come_back(upgrade.state).await;
        let address = self.row.address();
        Err(failed(match again {
            Ok(()) => format!(
                "{address} did not come up with the new image, and is {} with its earlier image and data disk: {why}",
                self.row.state
            ),
            Err(error) => format!(
                "{address} did not come up with the new image ({why}), and with its earlier image and data disk it does not \
                 either: {error}"
            ),
        }))
    }

    fn take_upgrade(&mut self) -> Option<Upgrade> {
        self.row.launched.as_mut()?.upgrade.take().map(|upgrade| *upgrade)
    }

    /// After a restart of the agent: an upgrade that was begun and not come to an end, by what it was about to do.
    pub(super) async fn recover_upgrade(&mut self) {
        let goes_back = self.row.upgrade().is_some_and(|upgrade| upgrade.failed.is_some());
        if !goes_back {
            self.shut_down_found().await;
        }
        let (said, _) = tokio::sync::mpsc::unbounded_channel();
        let result = if goes_back { self.take_back().await } else { self.give_image(&said).await };
        self.tell_of_upgrade(result);
    }

    /// The same of one whose start was undone: its disk is kept.
    pub(super) async fn recover_upgrade_start(&mut self) {
        let result = self.come_up_with_it().await;
        self.tell_of_upgrade(result);
    }

    /// The same of one that came up or failed to, and nothing more.
    pub(super) async fn conclude_upgrade(&mut self) {
        if self.row.upgrade().is_none_or(|upgrade| upgrade.is_back) {
            return;
        }
        let result = match self.row.state {
            InstanceState::Running => self.upgraded().await,
            _ => {
                let why = self
                    .row
                    .reason
                    .clone()
                    .unwrap_or_else(|| "it ended before it was known to be ready".to_owned());
                self.go_back(failed(why)).await
            }
        };
        self.tell_of_upgrade(result);
    }

    fn tell_of_upgrade(&self, result: Result<(), ActError>) {
        if let Err(error) = result {
            tracing::error!(instance = %self.row.address(), %error, "its upgrade");
        }
    }
}
