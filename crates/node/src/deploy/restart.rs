//! Machines that run or sleep with another image or other resources than are wanted.

use std::sync::Arc;

use mvm_model::InstanceId;
use mvm_protocol::api::DeployEvent;

use super::Events;
use super::plan::outdated_parts;
use crate::agent::{Agent, AgentError};
use crate::machine::{ActError, Machine};

/// What came of restarts.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// The addresses of those that were restarted.
    pub(super) restarted: Vec<String>,
    /// Of those that did not need it any more.
    pub(super) up_to_date: Vec<String>,
    /// Why not all were.
    pub(super) problem: Option<String>,
}

/// Restarts these one after another, in this order, as far as they still need it. Where one does not come back, those after
/// it are left as they are.
pub(super) async fn restart(
    agent: &Arc<Agent>,
    machines: &[(InstanceId, String)],
    events: &Events,
) -> Restarts {
    let mut restarts = Restarts::default();
    for (number, (id, address)) in machines.iter().enumerate() {
        if events.is_abandoned() {
            restarts.problem = Some("the restarts were abandoned".to_owned());
            break;
        }
        let Some(machine) = agent.machine(*id) else { continue };
        events.step(address, format!("restarting ({} of {})", number + 1, machines.len()));
        match one(agent, &machine).await {
            Ok(Some(how)) => {
                events.send(DeployEvent::Changed { what: address.clone(), how });
                restarts.restarted.push(address.clone());
            }
            // Destroyed meanwhile, or on its way to it.
            Ok(None) | Err(ActError::Gone) => restarts.up_to_date.push(address.clone()),
            Err(error) => {
                let left = machines.len() - number - 1;
                restarts.problem = Some(format!(
                    "{address} was not restarted: {error}. {left} that differ after it were left as they are"
                ));
                break;
            }
        }
    }
    restarts
}

/// In words what was done, if it still needed it.
async fn one(agent: &Arc<Agent>, machine: &Machine) -> Result<Option<String>, ActError> {
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
    let start = machine.view().row.last_start;
    let how = start.map_or(String::new(), |start| format!(" ({} in {:.0} ms)", start.how, start.total_ms));
    Ok(Some(format!("restarted with the new {parts}{how}")))
}
