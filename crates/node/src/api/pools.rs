//! Pools' images: build, rollback, collection; and pools' end.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use mvm_model::{PoolId, TenantId};
use mvm_protocol::api::{Collected, Destroyed, ErrorCode, RolledBack};

use super::{Failure, Shared, fault, lines, parsed};
use crate::deploy::Events;
use crate::{destroy, pools};

type Address = Path<(String, String)>;

pub async fn build(State(agent): Shared, Path((tenant, pool)): Address) -> Result<Response, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    agent.tenant(&tenant).await?;
    agent.pool(&tenant, &pool).await?;
    let (events, progress) = Events::channel();
    // A task of its own: a client that goes away does not leave half of it.
    tokio::spawn(pools::build(agent, tenant, pool, events));
    Ok(lines(progress))
}

pub async fn roll_back(
    State(agent): Shared,
    Path((tenant, pool)): Address,
) -> Result<Json<RolledBack>, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    let rolling = tokio::spawn(async move { pools::roll_back(&agent, &tenant, &pool).await });
    Ok(Json(rolling.await.map_err(|error| fault(ErrorCode::Failed, error))??))
}

pub async fn collect(
    State(agent): Shared,
    Path((tenant, pool)): Address,
) -> Result<Json<Collected>, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    let collecting = tokio::spawn(async move { pools::collect(&agent, &tenant, &pool).await });
    Ok(Json(collecting.await.map_err(|error| fault(ErrorCode::Failed, error))??))
}

pub async fn destroy(
    State(agent): Shared,
    Path((tenant, pool)): Address,
) -> Result<Json<Destroyed>, Failure> {
    let (tenant, pool): (TenantId, PoolId) = (parsed(&tenant)?, parsed(&pool)?);
    let destroying = tokio::spawn(async move { destroy::pool(&agent, &tenant, &pool).await });
    let destroyed = destroying.await.map_err(|error| fault(ErrorCode::Failed, error))??;
    Ok(Json(Destroyed { destroyed }))
}
