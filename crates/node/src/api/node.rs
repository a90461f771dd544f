//! The agent itself, deployments, the network.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use mvm_host::{AtRest, ExpectedNetwork};
use mvm_protocol::api::{
    AgentInfo, Damaged, DeployEvent, DeployRequest, ErrorCode, NetFinding, NetReport, ScrubReport,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Failure, Shared, fault};
use crate::agent::Agent;
use crate::deploy::{self, Events};
use crate::machine::Machine;
use crate::store;

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

/// How many machines are in which state.
pub fn count_states(machines: &[Machine]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for machine in machines {
        *counts.entry(machine.state().to_string()).or_default() += 1;
    }
    counts
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
    let (events, progress) = Events::channel();
    // A task of its own: a client that goes away does not leave half a deployment.
    tokio::spawn(deploy::deploy(agent, request, events));
    event_lines(progress)
}

/// Events as they come, a line of JSON each.
pub fn event_lines(progress: UnboundedReceiver<DeployEvent>) -> Response {
    let lines = UnboundedReceiverStream::new(progress).map(|event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(line)
    });
    ([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

pub async fn verify(State(agent): Shared) -> Result<Json<NetReport>, Failure> {
    let expected = expected_networks(&agent).await?;
    let checked = expected.iter().map(|tenant| 1 + tenant.ports.len()).sum();
    let findings = agent.hands.verify_networks(expected).await;
    let findings = findings.map_err(|error| fault(ErrorCode::Failed, error))?;
    let findings = findings
        .into_iter()
        .map(|f| NetFinding { object: f.object, expected: f.expected, found: f.found, remedy: f.remedy })
        .collect();
    Ok(Json(NetReport { checked, findings }))
}

pub async fn scrub(State(agent): Shared) -> Result<Json<ScrubReport>, Failure> {
    let bases = agent.store.read(|tx| store::bases(tx, None)).await?;
    let asleep = agent.machines(|machine| machine.view().row.snapshot.is_some());
    let snapshots = asleep.iter().filter_map(|machine| {
        Some(AtRest::Snapshot { instance: machine.id, snapshot: machine.view().row.snapshot? })
    });
    let all: Vec<AtRest> =
        bases.into_iter().map(|base| AtRest::Base(base.id)).chain(snapshots).collect();
    let checked = all.len();
    let found = agent.hands.scrub(all).await.map_err(|error| fault(ErrorCode::Failed, error))?;
    let damaged = found.into_iter().filter_map(|damage| {
        let (what, follows) = match damage.what {
            AtRest::Base(id) => (format!("base {id}"), "its pool's machines start cold: `mvm pool build` makes another"),
            AtRest::Snapshot { instance, snapshot } => {
                let row = agent.machine(instance)?.view().row;
                // Woken or destroyed while it was read.
                if row.snapshot.is_none_or(|now| now.digest != snapshot.digest) {
                    return None;
                }
                (format!("{}/{}/{}", row.place.tenant, row.place.pool, row.id), "it will start cold, without its memory")
            }
        };
        Some(Damaged { what, detail: format!("{}; {follows}", damage.detail) })
    });
    Ok(Json(ScrubReport { checked, damaged: damaged.collect() }))
}

async fn expected_networks(agent: &Arc<Agent>) -> Result<Vec<ExpectedNetwork>, Failure> {
    let (tenants, pools) = agent.store.read(|tx| Ok((store::tenants(tx)?, store::pools(tx, None)?))).await?;
    let expected = tenants.iter().map(|tenant| {
        let running = agent.machines(|m| m.place.tenant == tenant.id && m.state().has_vmm());
        let ports = running.iter().filter_map(|machine| {
            let pool = pools.iter().find(|p| p.tenant == tenant.id && p.spec.id == machine.place.pool)?;
            Some(agent.port_of(tenant, &machine.view().row, machine.ip, &pool.spec))
        });
        ExpectedNetwork { network: agent.network_of(tenant), ports: ports.collect() }
    });
    Ok(expected.collect())
}
