//! The agent itself, deployments, the network.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use mvm_host::ExpectedNetwork;
use mvm_model::{PoolId, TenantId};
use mvm_protocol::api::{
    AgentInfo, ChangeRequest, DeployRequest, ErrorCode, NetFinding, NetReport, ScrubReport,
};

use super::{Failure, Shared, fault, lines};
use crate::agent::Agent;
use crate::deploy::{self, Events, Request};
use crate::resolver;
use crate::store::{self, PoolRow, TenantRow};
use crate::usage::count_states;

pub async fn info(State(agent): Shared) -> Result<Json<AgentInfo>, Failure> {
    let tenants = agent.store.read(|tx| Ok(store::tenants(tx)?.len())).await?;
    Ok(Json(AgentInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        data_dir: agent.config.data_dir.display().to_string(),
        run_dir: agent.config.run_dir.display().to_string(),
        started_at: agent.started_at,
        engine: agent.hands.engine(),
        tenants,
        instances: count_states(&agent.machines(|_| true)),
    }))
}

pub async fn stop(State(agent): Shared) -> Json<serde_json::Value> {
    let stop = agent.stopping.clone();
    tokio::spawn(async move {
        // The answer goes out first.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        stop.cancel();
    });
    Json(serde_json::json!({}))
}

pub async fn deploy(State(agent): Shared, Json(request): Json<DeployRequest>) -> Response {
    begin(agent, Request::Manifest(request))
}

pub async fn change(State(agent): Shared, Json(request): Json<ChangeRequest>) -> Response {
    begin(agent, Request::Change(request))
}

fn begin(agent: Arc<Agent>, request: Request) -> Response {
    let (events, progress) = Events::channel();
    // A task of its own: a client that goes away does not leave half a deployment.
    tokio::spawn(deploy::deploy(agent, request, events));
    lines(progress)
}

pub async fn verify(State(agent): Shared) -> Result<Json<NetReport>, Failure> {
    let expected = expected_networks(&agent).await?;
    let checked = expected.iter().map(|tenant| 1 + tenant.ports.len()).sum();
    let findings = agent.hands.verify_networks(expected).await;
    let findings = findings.map_err(|error| fault(ErrorCode::Failed, error))?;
    let findings = findings.into_iter().map(|f| NetFinding {
        object: f.object,
        expected: f.expected,
        found: f.found,
        remedy: f.remedy,
    });
    let resolvers = agent.resolvers.troubles().into_iter().map(|(tenant, why)| NetFinding {
        object: format!("resolver of tenant {tenant}"),
        expected: "answers to machines that ask for names".to_owned(),
        found: why,
        remedy: resolver::REMEDY.to_owned(),
    });
    Ok(Json(NetReport { checked, findings: findings.chain(resolvers).collect() }))
}

pub async fn scrub(State(agent): Shared) -> Result<Json<ScrubReport>, Failure> {
    Ok(Json(crate::scrub::scrub(&agent).await?))
}

async fn expected_networks(agent: &Arc<Agent>) -> Result<Vec<ExpectedNetwork>, Failure> {
    let (tenants, pools) = agent.store.read(|tx| Ok((store::tenants(tx)?, store::pools(tx, None)?))).await?;
    let mut of_tenant: BTreeMap<TenantId, BTreeMap<PoolId, PoolRow>> = BTreeMap::new();
    for pool in pools {
        of_tenant.entry(pool.tenant.clone()).or_default().insert(pool.spec.id.clone(), pool);
    }
    let none = BTreeMap::new();
    let expected = tenants
        .iter()
        .map(|tenant| expected_network(agent, tenant, of_tenant.get(&tenant.id).unwrap_or(&none)));
    Ok(expected.collect())
}

/// How a tenant's network should be now, with the ports of its machines that run.
pub(super) fn expected_network(
    agent: &Agent,
    tenant: &TenantRow,
    pools: &BTreeMap<PoolId, PoolRow>,
) -> ExpectedNetwork {
    let running = agent.machines(|m| m.place.tenant == tenant.id && m.state().has_vmm());
    let ports = running.iter().filter_map(|machine| {
        let pool = pools.get(&machine.place.pool)?;
        Some(agent.port_of(tenant, &machine.view().row, machine.ip, &pool.spec))
    });
    ExpectedNetwork { network: agent.network_of(tenant), ports: ports.collect() }
}
