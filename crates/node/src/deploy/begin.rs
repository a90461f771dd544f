//! After the commit: network, ports, machines.

use std::sync::Arc;

use mvm_model::manifest::Deployment;
use mvm_model::{InstanceState, Role};
use mvm_protocol::api::{ApiError, DeployEvent};

use super::plan::Plan;
use super::{Events, failed};
use crate::agent::Agent;
use crate::bases;
use crate::kill_point::{KillPoint, reached};
use crate::machine::{ActError, Machine};
use crate::publish::Bound;
use crate::store::{self, TenantRow};

/// Makes what is committed true.
pub(super) async fn bring_about(
    agent: &Arc<Agent>,
    wanted: &Deployment,
    tenant: &TenantRow,
    plan: &Plan,
    bound: Vec<Bound>,
    events: &Events,
) -> Result<(), ApiError> {
    agent.hands.ensure_network(agent.network_of(tenant)).await.map_err(failed)?;
    reached(KillPoint::DeployNetworkMade);
    agent.publishing.keep_only(&tenant.id, &wanted.publish).await;
    for port in bound {
        agent.publishing.open(agent, tenant, port);
    }
    // Those that lead elsewhere now were closed a moment ago.
    if let Some(taken) = agent.publishing.open_all(agent, tenant).first() {
        return Err(failed(taken));
    }
    for (what, how) in &plan.changes {
        events.send(DeployEvent::Changed { what: what.clone(), how: how.clone() });
    }
    // Always: where an earlier deployment could not hand its changes over, this one does, or says so again.
    refresh(agent, tenant).await?;
    make_bases(agent, wanted, events).await;
    start_new(agent, wanted, tenant, events).await
}

/// Machines that run take what changed about them. Each does so itself, in its turn: one that is just coming up may have
/// begun with what was wanted before.
pub async fn refresh(agent: &Arc<Agent>, tenant: &TenantRow) -> Result<(), ApiError> {
    let machines = agent.machines(|machine| machine.place.tenant == tenant.id);
    let refreshed = futures::future::join_all(machines.iter().map(|machine| async move {
        match machine.refresh().await {
            // Destroyed meanwhile.
            Ok(()) | Err(ActError::Gone) => None,
            Err(error) => {
                let address = machine.view().row.address();
                Some(format!("{address} goes on with what it had before: {error}"))
            }
        }
    }));
    let problems: Vec<String> = refreshed.await.into_iter().flatten().collect();
    if problems.is_empty() { Ok(()) } else { Err(failed(problems.join("\n"))) }
}

/// Machines begin from bases: made first, they cost one boot a pool. A pool whose base cannot be made starts its machines cold.
async fn make_bases(agent: &Arc<Agent>, wanted: &Deployment, events: &Events) {
    let pools = wanted.pools.iter().filter(|pool| pool.desired.total() > 0);
    let making = pools.map(|pool| async {
        let what = format!("{}/{}", wanted.tenant, pool.id);
        events.step(&what, "looking for the base of its machines, or making it");
        let outcome = bases::ensure_in_time(agent, &wanted.tenant, &pool.id).await;
        events.progress(what, outcome, 1, 1);
    });
    futures::future::join_all(making).await;
}

/// Starts the tasks of new instances, pools in rising priority, and waits for each to be where it begins.
async fn start_new(
    agent: &Arc<Agent>,
    wanted: &Deployment,
    tenant: &TenantRow,
    events: &Events,
) -> Result<(), ApiError> {
    let mut by_priority: Vec<Role> = wanted.pools.iter().map(|pool| pool.role).collect();
    by_priority.sort_by_key(|role| role.priority());
    by_priority.dedup_by_key(|role| role.priority());
    let mut problems = Vec::new();
    for priority in by_priority.iter().map(|role| role.priority()) {
        // Read anew for each: one may have been destroyed while others started.
        let id = tenant.id.clone();
        let rows = agent.store.read(move |tx| store::instances(tx, Some(&id), None)).await.map_err(failed)?;
        let of_priority = rows.iter().filter(|row| {
            agent.machine(row.id).is_none()
                && wanted.pools.iter().any(|p| p.id == row.place.pool && p.role.priority() == priority)
        });
        let mut beginning = Vec::new();
        for row in of_priority {
            let ip = tenant.subnet.machine_ip(row.place.offset);
            let ip = ip.ok_or_else(|| failed(format!("{} has no address in {}", row.id, tenant.subnet)))?;
            events.send(DeployEvent::Created { instance: row.address(), ip });
            events.step(row.address(), "starting");
            beginning.push(agent.add_machine(tenant, row.clone(), ip));
        }
        let begun = futures::future::join_all(beginning.iter().map(|machine| begin(machine, events))).await;
        problems.extend(begun.into_iter().flatten());
    }
    if problems.is_empty() { Ok(()) } else { Err(failed(problems.join("\n"))) }
}

/// Waits until a new machine is where it begins; in words why it is not.
async fn begin(machine: &Machine, events: &Events) -> Option<String> {
    let settled = machine.settled().await;
    let row = machine.view().row;
    let running = matches!(row.state, InstanceState::Running | InstanceState::Sleeping);
    let how =
        row.last_start.as_ref().map_or(String::new(), |s| format!(" ({} in {:.0} ms)", s.how, s.total_ms));
    events.progress(row.address(), format!("{}{how}", row.state), 1, 1);
    match settled {
        Ok(()) if running => None,
        Ok(()) => {
            let reason = row.reason.clone().unwrap_or_else(|| "it was not started".to_owned());
            Some(format!("{} is {}: {reason}", row.address(), row.state))
        }
        Err(error) => Some(format!("{}: {error}", row.address())),
    }
}
