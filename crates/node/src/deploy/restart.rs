//! Machines that run or sleep with another image or other resources than are wanted.

use std::sync::Arc;

use mvm_protocol::api::{DeployEvent, DeployMode};

use super::Events;
use super::plan::{Outdated, outdated_parts};
use crate::agent::{Agent, AgentError};
use crate::machine::{ActError, Machine, Outcome, PoolImage};
use crate::store::PoolRow;

/// What came of restarts.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// The addresses of those that were restarted.
    pub(super) restarted: Vec<String>,
    /// Of those that did not need it any more.
    pub(super) up_to_date: Vec<String>,
    /// Whether a pool has its earlier image again.
    pub(super) is_back: bool,
    /// Why not all were.
    pub(super) problem: Option<String>,
}

/// How machines are given what they have not, and what their pools had before.
#[derive(Debug)]
pub(super) struct Renewing<'a> {
    pub(super) mode: DeployMode,
    pub(super) before: &'a [PoolRow],
}

impl Renewing<'_> {
    /// Restarts or upgrades these one after another, in this order, as far as they still need it. Where one does not come back,
    /// those after it are left as they are.
    pub(super) async fn all(&self, agent: &Arc<Agent>, machines: &[Outdated], events: &Events) -> Restarts {
        let mut restarts = Restarts::default();
        for (number, Outdated { id, address, image }) in machines.iter().enumerate() {
            if events.is_abandoned() {
                restarts.problem = Some("the restarts were abandoned".to_owned());
                break;
            }
            let Some(machine) = agent.machine(*id) else { continue };
            let upgrade = self.mode.upgrade && *image;
            let doing = if upgrade { "upgrading" } else { "restarting" };
            let doing = format!("{doing} ({} of {})", number + 1, machines.len());
            events.step(address, doing.clone());
            let done = match upgrade {
                true => self.upgrade(&machine, &doing, events).await,
                false => restart(agent, &machine).await,
            };
            match done {
                Ok(Some(how)) => {
                    events.send(DeployEvent::Changed { what: address.clone(), how });
                    restarts.restarted.push(address.clone());
                }
                // Destroyed meanwhile, or on its way to it.
                Ok(None) | Err(ActError::Gone) => restarts.up_to_date.push(address.clone()),
                Err(error) => {
                    let left = machines.len() - number - 1;
                    let what = if upgrade { "upgraded" } else { "restarted" };
                    restarts.problem = Some(format!(
                        "{address} was not {what}: {error}. {left} that differ after it were left as they are"
                    ));
                    restarts.is_back = upgrade && self.is_back(agent, &machine, events).await;
                    break;
                }
            }
        }
        restarts
    }

    /// In words what was done, if it still needed it.
    async fn upgrade(
        &self,
        machine: &Machine,
        doing: &str,
        events: &Events,
    ) -> Result<Option<String>, ActError> {
        machine.settled().await?;
        let before =
            self.before.iter().find(|pool| pool.spec.id == machine.place.pool).ok_or(ActError::Gone)?;
        let image = PoolImage {
            image: before.spec.image.clone(),
            profile: before.spec.profile.clone(),
            revision: before.revision.clone(),
        };
        let (said, mut steps) = tokio::sync::mpsc::unbounded_channel();
        let address = machine.view().row.address();
        let upgrading = machine.upgrade(image, said);
        tokio::pin!(upgrading);
        let upgraded = loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => events.step(&address, format!("{doing}: {step}")),
                done = &mut upgrading => break done,
            }
        };
        Ok(match upgraded? {
            Outcome::Done => Some(format!("upgraded to the new image{}", how_it_began(machine))),
            Outcome::Already => None,
        })
    }

    /// Whether the pool of a machine that went back did so, too, which is told.
    async fn is_back(&self, agent: &Arc<Agent>, machine: &Machine, events: &Events) -> bool {
        let (tenant, pool) = (&machine.place.tenant, &machine.place.pool);
        let Ok(now) = agent.pool(tenant, pool).await else { return false };
        let before = self.before.iter().find(|before| before.spec.id == *pool);
        let is_back = before.is_some_and(|before| before.revision == now.revision);
        if is_back {
            let how = "has its earlier image again".to_owned();
            events.send(DeployEvent::Changed { what: format!("{tenant}/{pool}"), how });
        }
        is_back
    }
}

/// In words what was done, if it still needed it.
async fn restart(agent: &Arc<Agent>, machine: &Machine) -> Result<Option<String>, ActError> {
    machine.settled().await?;
    let pool = match agent.pool(&machine.place.tenant, &machine.place.pool).await {
        Ok(pool) => pool,
        // It goes with its pool.
        Err(AgentError::NoPool(..)) => return Err(ActError::Gone),
        Err(error) => return Err(ActError::Failed(error.to_string())),
    };
    let row = machine.view().row;
    let Some(parts) = outdated_parts(&row, &pool) else { return Ok(None) };
    machine.restart().await?;
    Ok(Some(format!("restarted with the new {parts}{}", how_it_began(machine))))
}

fn how_it_began(machine: &Machine) -> String {
    let start = machine.view().row.last_start;
    start.map_or(String::new(), |start| format!(" ({} in {:.0} ms)", start.how, start.total_ms))
}
