//! Cold starts for machines that run or sleep with another image or other resources than are wanted.

use std::sync::Arc;

use mvm_model::InstanceId;
use mvm_protocol::api::{ApiError, DeployEvent};

use super::plan::outdated_parts;
use super::{Events, failed};
use crate::agent::Agent;
use crate::machine::{ActError, Machine};

/// Restarts these one after another, in this order, as far as they still need it; gives the addresses of those that were.
/// Where one does not come back, those after it are left as they are.
pub(super) async fn restart(
    agent: &Arc<Agent>,
    machines: &[(InstanceId, String)],
    events: &Events,
) -> Result<Vec<String>, ApiError> {
    let mut restarted = Vec::new();
    for (number, (id, address)) in machines.iter().enumerate() {
        if events.is_abandoned() {
            return Err(failed("the restarts were abandoned"));
        }
        let Some(machine) = agent.machine(*id) else { continue };
        events.step(address, format!("restarting ({} of {})", number + 1, machines.len()));
        let how = one(agent, &machine).await.map_err(|error| {
            let left = machines.len() - number - 1;
            failed(format!(
                "{address} was not restarted: {error}. {left} that differ after it were left as they are; all else is done"
            ))
        })?;
        if let Some(how) = how {
            events.send(DeployEvent::Changed { what: address.clone(), how });
        }
        restarted.push(address.clone());
    }
    Ok(restarted)
}

/// In words what was done, if it still needed it.
async fn one(agent: &Arc<Agent>, machine: &Machine) -> Result<Option<String>, ActError> {
    machine.settled().await?;
    let failed = |error: crate::agent::AgentError| ActError::Failed(error.to_string());
    let pool = agent.pool(&machine.place.tenant, &machine.place.pool).await.map_err(failed)?;
    let row = machine.view().row;
    let Some(parts) = outdated_parts(&row, &pool) else { return Ok(None) };
    machine.restart().await?;
    let start = machine.view().row.last_start;
    let how = start.map_or(String::new(), |start| format!(" ({} in {:.0} ms)", start.how, start.total_ms));
    Ok(Some(format!("restarted with the new {parts}{how}")))
}
