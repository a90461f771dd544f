//! What machines and the node take.

use axum::Json;
use axum::extract::{Path, Query, State};
use mvm_protocol::api::{InstanceStats, NodeDisk, NodeInfo, NodeStats};

use super::instances::find;
use super::tenants::Filter;
use super::{Failure, Shared};
use crate::usage;

pub async fn instances(
    State(agent): Shared,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<InstanceStats>>, Failure> {
    if let Some(tenant) = &filter.tenant {
        agent.tenant(tenant).await?;
        if let Some(pool) = &filter.pool {
            agent.pool(tenant, pool).await?;
        }
    }
    let machines = agent.machines(|machine| filter.takes(machine));
    let mut stats = usage::stats(&agent, &machines).await?;
    stats.sort_by(|a, b| (&a.tenant, &a.pool, a.id).cmp(&(&b.tenant, &b.pool, b.id)));
    Ok(Json(stats))
}

pub async fn instance(
    State(agent): Shared,
    Path((t, p, i)): Path<(String, String, String)>,
) -> Result<Json<Vec<InstanceStats>>, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    Ok(Json(usage::stats(&agent, &[machine]).await?))
}

pub async fn info(State(agent): Shared) -> Result<Json<NodeInfo>, Failure> {
    Ok(Json(usage::info(&agent).await?))
}

pub async fn node(State(agent): Shared) -> Result<Json<NodeStats>, Failure> {
    Ok(Json(usage::node_stats(&agent).await?))
}

pub async fn disk(State(agent): Shared) -> Result<Json<NodeDisk>, Failure> {
    Ok(Json(usage::disk(&agent).await?))
}
