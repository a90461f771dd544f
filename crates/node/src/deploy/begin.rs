//! After the commit: network, ports, machines.

use std::sync::Arc;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::manifest::Deployment;
use mvm_model::{InstanceState, Role};
use mvm_protocol::api::{ApiError, DeployEvent};

use super::plan::Plan;
use super::{Events, failed};
use crate::agent::Agent;
use crate::bases;
use crate::machine::{ActError, Machine};
use crate::publish::Bound;
use crate::store::{self, TenantRow};

/// What of the committed did not become true.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// In words.
    said: Vec<String>,
    /// Machines that go on with what they had before.
    behind: Vec<Behind>,
}

/// A machine that did not take what is wanted of it now.
#[derive(Debug)]
pub struct Behind {
    /// Its address.
    pub address: String,
    /// Why.
    why: ActError,
}

impl std::fmt::Display for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} goes on with what it had before: {}", self.address, self.why)
    }
}

impl Problems {
    pub(super) fn add(&mut self, problem: impl ToString) {
        self.said.push(problem.to_string());
    }

    /// A machine that was restarted has taken what it did not before.
    pub(super) fn settle(&mut self, restarted: &[String]) {
        self.behind.retain(|behind| !restarted.contains(&behind.address));
    }

    /// All of them, if there are any.
    pub(super) fn tell(self) -> Result<(), ApiError> {
        let behind = self.behind.iter().map(Behind::to_string);
        let all: Vec<String> = behind.chain(self.said).collect();
        if all.is_empty() { Ok(()) } else { Err(failed(all.join("\n"))) }
    }
}

/// Makes what is committed true, as far as that can be: one thing that fails keeps no other from being done.
pub(super) async fn bring_about(
    agent: &Arc<Agent>,
    wanted: &Deployment,
    tenant: &TenantRow,
    plan: &Plan,
    bound: Vec<Bound>,
    events: &Events,
) -> Problems {
    let mut problems = Problems::default();
    for (what, how) in &plan.changes {
        events.send(DeployEvent::Changed { what: what.clone(), how: how.clone() });
    }
    if let Err(error) = agent.hands.ensure_network(agent.network_of(tenant)).await {
        problems.add(format!("the network of {}: {error}", tenant.id));
    }
    reached(KillPoint::DeployNetworkMade);
    if let Err(error) = agent.resolvers.keep(agent, tenant).await {
        problems.add(format!("the resolver of {}: {error}", tenant.id));
    }
    agent.publishing.keep_only(&tenant.id, &wanted.publish).await;
    for port in bound {
        agent.publishing.open(agent, tenant, port);
    }
    // Those that lead elsewhere now were closed a moment ago.
    for taken in agent.publishing.open_all(agent, tenant) {
        problems.add(taken);
    }
    // Always: where an earlier deployment could not hand its changes over, this one does, or says so again.
    problems.behind = refresh(agent, tenant).await;
    make_bases(agent, wanted, events).await;
    if let Err(error) = start_new(agent, wanted, tenant, events, &mut problems).await {
        problems.add(error.message);
    }
    problems
}

/// Machines that run take what changed about them; gives those that did not. Each does so itself, in its turn: one that is
/// just coming up may have begun with what was wanted before.
pub async fn refresh(agent: &Arc<Agent>, tenant: &TenantRow) -> Vec<Behind> {
    let machines = agent.machines(|machine| machine.place.tenant == tenant.id);
    let refreshed = futures::future::join_all(machines.iter().map(|machine| async move {
        match machine.refresh().await {
            // Destroyed meanwhile.
            Ok(_) | Err(ActError::Gone) => None,
            Err(why) => Some(Behind { address: machine.view().row.address(), why }),
        }
    }));
    refreshed.await.into_iter().flatten().collect()
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
    problems: &mut Problems,
) -> Result<(), ApiError> {
    let mut by_priority: Vec<Role> = wanted.pools.iter().map(|pool| pool.role).collect();
    by_priority.sort_by_key(|role| role.priority());
    by_priority.dedup_by_key(|role| role.priority());
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
            let Some(ip) = ip else {
                problems.add(format!("{} has no address in {}", row.id, tenant.subnet));
                continue;
            };
            events.send(DeployEvent::Created { instance: row.address(), ip });
            events.step(row.address(), "starting");
            beginning.push(agent.add_machine(tenant, row.clone(), ip));
        }
        let begun = futures::future::join_all(beginning.iter().map(|machine| begin(machine, events))).await;
        problems.said.extend(begun.into_iter().flatten());
    }
    Ok(())
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
