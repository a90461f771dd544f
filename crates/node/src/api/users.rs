//! People.

use axum::Json;
use axum::extract::{Path, Query, State};
use mvm_model::{TenantId, UserName};
use mvm_protocol::api::{UserLink, UserSummary, Worker};

use super::tenants::Filter;
use super::{Failure, Shared, parsed};
use crate::{store, users};

pub async fn list(
    State(agent): Shared,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<UserSummary>>, Failure> {
    if let Some(tenant) = &filter.tenant {
        agent.tenant(tenant).await?;
    }
    let rows = agent.store.read(move |tx| store::users(tx, filter.tenant.as_ref())).await?;
    let summary = |row: store::UserRow| UserSummary {
        worker: row.instance.and_then(|id| agent.machine(id)).map(|machine| Worker {
            pool: machine.place.pool.clone(),
            id: machine.id,
            state: machine.state(),
        }),
        tenant: row.tenant,
        user: row.user,
        link_expires_at: row.link.map(|link| link.expires_at),
        created_at: row.created_at,
    };
    Ok(Json(rows.into_iter().map(summary).collect()))
}

pub async fn link(
    State(agent): Shared,
    Path((tenant, user)): Path<(String, String)>,
) -> Result<Json<UserLink>, Failure> {
    let (tenant, user): (TenantId, UserName) = (parsed(&tenant)?, parsed(&user)?);
    agent.tenant(&tenant).await?;
    Ok(Json(users::link(&agent, &tenant, &user).await?))
}
