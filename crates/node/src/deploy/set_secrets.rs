//! Some of a tenant's secrets set to other values, and handed to its machines.

use std::sync::Arc;

use mvm_model::TenantId;
use mvm_model::manifest::name_of_secret;
use mvm_protocol::api::{
    ApiError, Delivery, ErrorCode, SecretTaker, SecretValue, SecretsRequest, SecretsSet,
};

use super::apply::present;
use super::failed;
use super::secrets::{Sealed, Secrets};
use crate::agent::{Agent, AgentError};
use crate::machine::{ActError, Machine};
use crate::store::{self, Audit, PoolRow};

/// Sets them, durably, and then has every machine that is given any of them take it. One that cannot is named in the answer: what
/// is set stays so, and it is given it when it comes up again, or when they are set once more.
///
/// # Errors
/// Nothing was changed then.
pub async fn set_secrets(
    agent: &Arc<Agent>,
    tenant: &TenantId,
    request: SecretsRequest,
) -> Result<SecretsSet, ApiError> {
    let names: Vec<_> = request.secrets.iter().map(|s| (s.scope.clone(), s.key.clone())).collect();
    let (changed, pools) = commit(agent, tenant, request.secrets).await?;
    let depends = |machine: &Machine| {
        let pool = pools.iter().find(|pool| pool.spec.id == machine.place.pool);
        pool.is_some_and(|pool| names.iter().any(|(scope, key)| pool.spec.depends_on(scope, key)))
    };
    let machines = agent.machines(|machine| machine.place.tenant == *tenant && depends(machine));
    // Also where nothing is another now: one that could not take them the last time may now.
    let machines = futures::future::join_all(machines.iter().map(hand_over)).await;
    Ok(SecretsSet { changed, machines: machines.into_iter().flatten().collect() })
}

async fn commit(
    agent: &Agent,
    tenant: &TenantId,
    values: Vec<SecretValue>,
) -> Result<(Vec<String>, Vec<PoolRow>), ApiError> {
    if let Some(secret) = values.iter().find(|s| name_of_secret(&s.scope, &s.key).is_none()) {
        let message = format!("no name gives a secret `{}/{}`", secret.scope, secret.key);
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    let _changing = agent.changing.lock().await;
    let present = present(agent, tenant).await?;
    let (Some(deployment), Some(row)) = (present.deployment(), &present.tenant) else {
        return Err(AgentError::NoTenant(tenant.clone()).into());
    };
    let mut secrets = Secrets::look(agent, &deployment, None).await?;
    secrets.overlay(values);
    // There is no manifest in which a key would be at fault.
    secrets.check(&deployment).map_err(|error| ApiError { key: None, ..error })?;
    let changes = secrets.changes().into_iter().map(|how| Audit::new(tenant, "SecretsSet", how));
    let audits: Vec<Audit> = changes.collect();
    if let Some(Sealed { wrapped, rows }) = secrets.seal(agent, row).await? {
        let id = tenant.clone();
        let write = move |tx: &rusqlite::Transaction<'_>| {
            if let Some(wrapped) = wrapped {
                store::save_tenant_key(tx, &id, &wrapped)?;
            }
            store::replace_secrets(tx, &id, &rows)?;
            audits.iter().try_for_each(|audit| audit.append(tx, &id))
        };
        agent.store.write(write).await.map_err(failed)?;
        // What was replaced is to be gone from the journal, too.
        if let Err(error) = agent.store.empty_journal().await {
            tracing::warn!(%error, "the values of before stay in the store's journal, sealed, until it is full");
        }
    }
    Ok((secrets.changed(), present.pools))
}

/// What became of it; nothing of a machine that was destroyed meanwhile.
async fn hand_over(machine: &Machine) -> Option<SecretTaker> {
    let (delivery, why) = match machine.refresh().await {
        Ok(true) => (Delivery::Taken, None),
        Ok(false) => (Delivery::Later, None),
        Err(ActError::Gone) => return None,
        Err(why) => (Delivery::Failed, Some(why.to_string())),
    };
    Some(SecretTaker { instance: machine.view().row.address(), delivery, why })
}
