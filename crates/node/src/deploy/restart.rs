//! Cold starts for machines that run or sleep with another image or other resources than are wanted.

use std::sync::Arc;

use mvm_model::{InstanceId, InstanceState};
use mvm_protocol::api::{ApiError, DeployEvent};

use super::plan::outdated_parts;
use super::{Events, failed};
use crate::agent::Agent;
use crate::machine::{ActError, Asker, Machine};

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

/// In words what was done, if it still needed it. Afterwards it is in the state that it was in.
async fn one(agent: &Arc<Agent>, machine: &Machine) -> Result<Option<String>, ActError> {
    machine.settled().await?;
    let failed = |error: crate::agent::AgentError| ActError::Failed(error.to_string());
    let pool = agent.pool(&machine.place.tenant, &machine.place.pool).await.map_err(failed)?;
    let row = machine.view().row;
    let Some(parts) = outdated_parts(&row, &pool) else { return Ok(None) };
    // Whether it may run again has to be certain before it is stopped.
    let tenant = agent.tenant(&machine.place.tenant).await.map_err(failed)?;
    let admission = agent.admissions.admit(&tenant, machine.id, pool.spec.resources);
    let _admission = admission.map_err(|exceeded| ActError::Failed(exceeded.to_string()))?;
    // Asked for together, so that no message finds it stopped in between.
    let (stopped, ran) = tokio::join!(biased; machine.stop(), machine.run(Asker::Person));
    stopped?;
    ran?;
    match row.state {
        InstanceState::Sleeping => machine.sleep(Asker::Person).await.map(drop)?,
        InstanceState::Warm => machine.warm(Asker::Person).await.map(drop)?,
        _ => {}
    }
    let start = machine.view().row.last_start;
    let how = start.map_or(String::new(), |start| format!(" ({} in {:.0} ms)", start.how, start.total_ms));
    Ok(Some(format!("restarted with the new {parts}{how}")))
}
