//! A tenant's secrets, one by one.

use axum::Json;
use axum::extract::{Path, State};
use mvm_model::TenantId;
use mvm_model::manifest::name_of_secret;
use mvm_protocol::api::{ErrorCode, SecretInfo, SecretsRequest, SecretsSet};

use super::{Failure, Shared, fault, parsed};
use crate::store::{self, SealedRow};
use crate::{deploy, seal};

pub async fn list(State(agent): Shared, Path(id): Path<String>) -> Result<Json<Vec<SecretInfo>>, Failure> {
    let id: TenantId = parsed(&id)?;
    agent.tenant(&id).await?;
    let rows = agent.store.read(move |tx| store::secrets(tx, &id)).await?;
    let info = |row: SealedRow| SecretInfo {
        secret: format!("{}/{}", row.scope, row.key),
        name: name_of_secret(&row.scope, &row.key),
        set_at: row.set_at,
        file: row.file,
        bytes: seal::value_len(&row.sealed),
    };
    Ok(Json(rows.into_iter().map(info).collect()))
}

pub async fn set(
    State(agent): Shared,
    Path(id): Path<String>,
    Json(request): Json<SecretsRequest>,
) -> Result<Json<SecretsSet>, Failure> {
    let id: TenantId = parsed(&id)?;
    // In a task of its own: a client that goes away does not leave half of it.
    let setting = tokio::spawn(async move { deploy::set_secrets(&agent, &id, request).await });
    let set = setting.await.map_err(|error| fault(ErrorCode::Failed, error))??;
    Ok(Json(set))
}
