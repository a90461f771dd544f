//! Backups and restores, as streams of records.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::response::Response;
use hyper_util::rt::TokioIo;
use mvm_model::{PoolId, TenantId};
use mvm_protocol::api::{BackupRequest, RestoreRequest};

use super::instances::{Address, find};
use super::streams::{upgraded, upgrading};
use super::{Failure, Shared, parsed};
use crate::backup::{self, Target};

pub async fn back_up(
    State(agent): Shared,
    Path((t, p, i)): Address,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    let (BackupRequest {}, upgrade) = upgrading(request).await?;
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            backup::back_up(&agent, &machine, TokioIo::new(client)).await;
        }
    });
    Ok(upgraded())
}

pub async fn restore(
    State(agent): Shared,
    Path((t, p, i)): Address,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    restore_to(agent, Target::Instance(machine), request).await
}

pub async fn restore_new(
    State(agent): Shared,
    Path((tenant, pool)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    agent.tenant(&tenant).await?;
    agent.pool(&tenant, &pool).await?;
    restore_to(agent, Target::New { tenant, pool }, request).await
}

async fn restore_to(
    agent: std::sync::Arc<crate::agent::Agent>,
    target: Target,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (RestoreRequest {}, upgrade) = upgrading(request).await?;
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            backup::restore(&agent, target, TokioIo::new(client)).await;
        }
    });
    Ok(upgraded())
}
