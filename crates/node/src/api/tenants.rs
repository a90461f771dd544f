//! Tenants, their pools, their audit logs.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use mvm_model::{PoolId, TenantId};
use mvm_protocol::api::{
    AuditEntry, Destroyed, ErrorCode, PoolInfo, PoolSummary, ScaleRequest, TenantInfo, TenantSummary,
};
use serde::Deserialize;

use super::{Failure, Shared, fault, lines, parsed};
use crate::agent::Agent;
use crate::machine::Machine;
use crate::store::{self, PoolRow, SealedRow, TenantRow};
use crate::usage::count_states;
use crate::{deploy, destroy, scale};

/// How often a log that is followed is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Narrows a listing.
#[derive(Debug, Deserialize)]
pub struct Filter {
    pub tenant: Option<TenantId>,
    pub pool: Option<PoolId>,
}

impl Filter {
    /// Whether a machine is meant.
    pub fn takes(&self, machine: &Machine) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| machine.place.tenant == *tenant)
            && self.pool.as_ref().is_none_or(|pool| machine.place.pool == *pool)
    }
}

pub(super) fn summary(agent: &Agent, row: &TenantRow, pools: usize) -> TenantSummary {
    TenantSummary {
        id: row.id.clone(),
        net_id: row.net_id,
        subnet: row.subnet,
        pools,
        instances: count_states(&agent.machines(|machine| machine.place.tenant == row.id)),
    }
}

pub async fn list(State(agent): Shared) -> Result<Json<Vec<TenantSummary>>, Failure> {
    let (rows, pools) = agent.store.read(|tx| Ok((store::tenants(tx)?, store::pools(tx, None)?))).await?;
    let of = |row: &TenantRow| pools.iter().filter(|pool| pool.tenant == row.id).count();
    Ok(Json(rows.iter().map(|row| summary(&agent, row, of(row))).collect()))
}

pub async fn info(State(agent): Shared, Path(id): Path<String>) -> Result<Json<TenantInfo>, Failure> {
    let id: TenantId = parsed(&id)?;
    let row = agent.tenant(&id).await?;
    let wanted = id.clone();
    let (pools, secrets) = agent
        .store
        .read(move |tx| Ok((store::pools(tx, Some(&wanted))?, store::secrets(tx, &wanted)?)))
        .await?;
    Ok(Json(TenantInfo {
        summary: summary(&agent, &row, pools.len()),
        quotas: row.quotas,
        pool_ids: pools.into_iter().map(|pool| pool.spec.id).collect(),
        publish: row.publish,
        routes: row.routes.routes,
        secrets: secrets.iter().map(name_of).collect(),
        endpoints: row.endpoints,
        created_at: row.created_at,
    }))
}

/// As the text of a manifest.
pub async fn manifest(State(agent): Shared, Path(id): Path<String>) -> Result<String, Failure> {
    let id: TenantId = parsed(&id)?;
    let row = agent.tenant(&id).await?;
    let (mut pools, secrets, users) = agent
        .store
        .read(move |tx| {
            let pools = store::pools(tx, Some(&id))?;
            Ok((pools, store::secrets(tx, &id)?, store::users(tx, Some(&id))?))
        })
        .await?;
    pools.retain(|pool| !pool.doomed);
    let secrets: Vec<String> = secrets.iter().map(name_of).collect();
    Ok(deploy::deployment(&row, &pools, &users).to_manifest(&secrets))
}

fn name_of(secret: &SealedRow) -> String {
    format!("{}/{}", secret.scope, secret.key)
}

pub async fn destroy(State(agent): Shared, Path(id): Path<String>) -> Result<Json<Destroyed>, Failure> {
    let id: TenantId = parsed(&id)?;
    // In a task of its own: a client that goes away does not leave half of it.
    let destroying = tokio::spawn(async move { destroy::tenant(&agent, &id).await });
    let destroyed = destroying.await.map_err(|error| fault(ErrorCode::Failed, error))??;
    Ok(Json(Destroyed { destroyed }))
}

pub async fn events(State(agent): Shared, Path(id): Path<String>) -> Result<Json<Vec<AuditEntry>>, Failure> {
    let id: TenantId = parsed(&id)?;
    agent.tenant(&id).await?;
    let entries = agent.store.read(move |tx| store::entries(tx, &id, 0)).await?;
    if let Some(seq) = store::first_broken(&entries) {
        tracing::error!(seq, "the audit log was changed from outside: its hashes do not fit from here on");
    }
    Ok(Json(entries))
}

/// The log, and each further entry when it is committed, until the tenant or the client is gone.
pub async fn follow_events(State(agent): Shared, Path(id): Path<String>) -> Result<Response, Failure> {
    let id: TenantId = parsed(&id)?;
    agent.tenant(&id).await?;
    let (events, to_client) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut last = 0;
        while !events.is_closed() && agent.tenant(&id).await.is_ok() {
            let tenant = id.clone();
            let entries = match agent.store.read(move |tx| store::entries(tx, &tenant, last)).await {
                Ok(entries) => entries,
                Err(error) => return tracing::warn!(tenant = %id, %error, "its events are not followed"),
            };
            for entry in entries {
                last = entry.seq;
                // Fails only where nobody reads them any more.
                let _ = events.send(entry);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    });
    Ok(lines(to_client))
}

pub(super) fn pool_summary(agent: &Agent, row: &PoolRow) -> PoolSummary {
    let of_pool = agent.machines(|m| m.place.tenant == row.tenant && m.place.pool == row.spec.id);
    PoolSummary {
        tenant: row.tenant.clone(),
        id: row.spec.id.clone(),
        role: row.spec.role,
        image: row.spec.image.clone(),
        revision: Some(row.revision.clone()),
        instances: count_states(&of_pool),
    }
}

pub async fn pools(
    State(agent): Shared,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<PoolSummary>>, Failure> {
    if let Some(tenant) = &filter.tenant {
        agent.tenant(tenant).await?;
    }
    let rows = agent.store.read(move |tx| store::pools(tx, filter.tenant.as_ref())).await?;
    Ok(Json(rows.iter().map(|row| pool_summary(&agent, row)).collect()))
}

pub async fn pool(
    State(agent): Shared,
    Path((tenant, pool)): Path<(String, String)>,
) -> Result<Json<PoolInfo>, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    agent.tenant(&tenant).await?;
    let row = agent.pool(&tenant, &pool).await?;
    Ok(Json(PoolInfo { summary: pool_summary(&agent, &row), spec: row.spec }))
}

pub async fn scale(
    State(agent): Shared,
    Path((tenant, pool)): Path<(String, String)>,
    Json(request): Json<ScaleRequest>,
) -> Result<Response, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    let (events, progress) = tokio::sync::mpsc::unbounded_channel();
    // A task of its own: a client that goes away does not leave half an act.
    tokio::spawn(scale::scale(agent, tenant, pool, request, events));
    Ok(lines(progress))
}
