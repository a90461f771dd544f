//! A page about a tenant, or about the node.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use mvm_host::Finding;
use mvm_model::{InstanceState, TenantId};
use mvm_protocol::api::{
    DeploymentLine, ErrorCode, LastMessage, MachineStatus, NodeStatus, PoolStatus, PortStatus, TenantStatus,
    Trouble,
};

use super::node::expected_network;
use super::{Failure, Shared, fault, instances, parsed, tenants};
use crate::agent::Agent;
use crate::resolver;
use crate::scale::Reserve;
use crate::status::{self, DAY_MS, KINDS, Recent};
use crate::store::{self, PoolRow, TenantRow, now_millis};
use crate::usage;

pub async fn tenant(State(agent): Shared, Path(id): Path<String>) -> Result<Json<TenantStatus>, Failure> {
    let id: TenantId = parsed(&id)?;
    let row = agent.tenant(&id).await?;
    let mut status = of(&agent, &row).await?;
    let network = network(&agent, &row).await?;
    status.troubles.extend(network.into_iter().map(status::of_network));
    Ok(Json(status))
}

pub async fn node(State(agent): Shared) -> Result<Json<NodeStatus>, Failure> {
    let rows = agent.store.read(store::tenants).await?;
    let mut deployments = Vec::new();
    for row in &rows {
        let TenantStatus { summary, last_message, troubles, .. } = of(&agent, row).await?;
        deployments.push(DeploymentLine {
            tenant: summary.id,
            instances: summary.instances,
            last_message_ms: last_message.map(|message| message.at_ms),
            troubles: troubles.len(),
        });
    }
    let node = usage::info(&agent).await?;
    let memory = usage::memory()?;
    // Not even a machine of no size would be admitted.
    let shortage = Reserve::of(memory).ok().and_then(|reserve| reserve.shortage(memory, 0));
    let troubles = status::of_node(memory, shortage, &node.data_dir);
    Ok(Json(NodeStatus { node, started_at: agent.started_at, deployments, troubles }))
}

/// Everything but the network.
async fn of(agent: &Agent, row: &TenantRow) -> Result<TenantStatus, Failure> {
    let id = row.id.clone();
    let (pools, entries) = agent
        .store
        .read(move |tx| {
            let since = now_millis().saturating_sub(DAY_MS);
            Ok((store::pools(tx, Some(&id))?, store::recent_entries(tx, &id, &KINDS, since)?))
        })
        .await?;
    let recent = Recent::read(&entries);
    let open = agent.publishing.open_ports(&row.id);
    let ports: Vec<PortStatus> = row
        .publish
        .iter()
        .map(|port| PortStatus { publish: port.clone(), open: open.contains(port) })
        .collect();
    let pool_status: Vec<PoolStatus> = pools
        .iter()
        .map(|pool| PoolStatus { summary: tenants::pool_summary(agent, pool), desired: pool.spec.desired })
        .collect();
    let machines = machines(agent, &pools, &recent);
    let last_message = machines.iter().filter_map(|machine| {
        let summary = &machine.summary;
        let instance = format!("{}/{}/{}", summary.tenant, summary.pool, summary.id);
        Some(LastMessage { instance, at_ms: machine.last_message_ms? })
    });
    let last_message = last_message.max_by_key(|message| message.at_ms);
    let mut troubles = Vec::new();
    if row.doomed {
        let what = format!("{} is being destroyed", row.id);
        troubles.push(Trouble { what, remedy: "nothing: it is gone when that is done".to_owned() });
    }
    if let Some(why) = agent.resolvers.trouble(&row.id) {
        let what = format!("names are not answered to machines of {}: {why}", row.id);
        troubles.push(Trouble { what, remedy: resolver::REMEDY.to_owned() });
    }
    let of_pools: Vec<_> = pool_status
        .iter()
        .zip(&pools)
        .map(|(status, pool)| status::Pool {
            status,
            restart: pool.spec.restart,
            gets_messages: is_target(row, pool),
        })
        .collect();
    troubles.extend(status::of_tenant(&of_pools, &machines, &ports));
    let summary = tenants::summary(agent, row, pools.len());
    Ok(TenantStatus { summary, ports, pool_status, machines, last_message, wakes: recent.wakes, troubles })
}

/// Whether messages are for it.
fn is_target(row: &TenantRow, pool: &PoolRow) -> bool {
    row.publish.iter().any(|port| port.pool == pool.spec.id)
        || row.routes.routes.iter().any(|route| route.target.pool_id == pool.spec.id)
}

fn machines(agent: &Agent, pools: &[PoolRow], recent: &Recent) -> Vec<MachineStatus> {
    let mut machines: Vec<MachineStatus> = pools
        .iter()
        .flat_map(|pool| {
            let own = agent.machines(|m| m.place.tenant == pool.tenant && m.place.pool == pool.spec.id);
            own.into_iter().map(move |machine| {
                let row = machine.view().row;
                let last_message_ms =
                    machine.last_message().max(recent.messages.get(&row.address()).copied());
                MachineStatus {
                    summary: instances::summary(&machine, pool.spec.role),
                    reason: row.reason,
                    holds: machine.holds(),
                    last_start: row.last_start,
                    last_message_ms,
                    wake_at: row.wake_at.filter(|_| row.state != InstanceState::Running),
                }
            })
        })
        .collect();
    machines.sort_by(|a, b| (&a.summary.pool, a.summary.id).cmp(&(&b.summary.pool, b.summary.id)));
    machines
}

/// What is wrong with a tenant's network. While its machines start or end it is in between, and nothing is said.
async fn network(agent: &Agent, row: &TenantRow) -> Result<Vec<Finding>, Failure> {
    let pools: BTreeMap<_, _> = {
        let id = row.id.clone();
        let pools = agent.store.read(move |tx| store::pools(tx, Some(&id))).await?;
        pools.into_iter().map(|pool| (pool.spec.id.clone(), pool)).collect()
    };
    let rests = || agent.machines(|m| m.place.tenant == row.id && m.view().act.is_some()).is_empty();
    let before = expected_network(agent, row, &pools);
    if !rests() {
        return Ok(Vec::new());
    }
    let found = agent.hands.verify_network(before.clone()).await;
    let found = found.map_err(|error| fault(ErrorCode::Failed, error))?;
    let is_the_same = rests() && expected_network(agent, row, &pools) == before;
    Ok(if is_the_same { found } else { Vec::new() })
}
