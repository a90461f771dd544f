//! The end of tenants and instances: nothing of them is left.

use std::sync::Arc;

use mvm_model::TenantId;
use mvm_protocol::api::{ApiError, ErrorCode};

use crate::agent::{Agent, AgentError};
use crate::kill_point::{KillPoint, reached};
use crate::machine::{ActError, Machine};
use crate::store::{self, StoreError};

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let code = match error {
            AgentError::NoTenant(_) | AgentError::NoPool(..) => ErrorCode::NotFound,
            AgentError::Store(_) | AgentError::Seal(_) => ErrorCode::Failed,
        };
        Self { code, message: error.to_string(), key: None }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        AgentError::from(error).into()
    }
}

/// Destroys a tenant. It is marked first, so that an agent that dies in the middle of it goes on when it is back.
pub async fn tenant(agent: &Arc<Agent>, id: &TenantId) -> Result<Vec<String>, ApiError> {
    let _changing = agent.changing.lock().await;
    let mut row = agent.tenant(id).await?;
    row.doomed = true;
    let doomed = row.clone();
    agent.store.write(move |tx| doomed.save(tx)).await?;
    reached(KillPoint::DestroyMarked);
    agent.publishing.keep_only(id, &[]).await;
    let machines = agent.machines(|machine| machine.place.tenant == *id);
    let destroyed = futures::future::join_all(machines.iter().map(|machine| instance(agent, machine))).await;
    let mut gone = destroyed.into_iter().collect::<Result<Vec<_>, _>>()?;
    reached(KillPoint::DestroyMachinesGone);
    remove_bases(agent, id).await?;
    agent.hands.remove_network(row.net_id).await.map_err(|error| ApiError {
        code: ErrorCode::Failed,
        message: error.to_string(),
        key: None,
    })?;
    reached(KillPoint::DestroyNetworkRemoved);
    let wanted = id.clone();
    agent.store.write(move |tx| store::remove_tenant(tx, &wanted)).await?;
    if let Err(error) = agent.store.empty_journal().await {
        tracing::warn!(%error, "the store's journal may hold what was sealed for {id} until it is full");
    }
    gone.push(id.to_string());
    Ok(gone)
}

/// What a tenant's machines began from, and the VMMs that were started for the next ones.
async fn remove_bases(agent: &Arc<Agent>, id: &TenantId) -> Result<(), ApiError> {
    let failed = |error: mvm_host::HostError| ApiError {
        code: ErrorCode::Failed,
        message: error.to_string(),
        key: None,
    };
    // None is begun for a tenant that is doomed.
    agent.bases.give_up(id).await;
    agent.hands.discard_spares(Some(id.clone())).await.map_err(failed)?;
    let of_tenant = agent.store.read(|tx| store::bases(tx, None)).await?;
    for base in of_tenant.into_iter().filter(|base| base.tenant == *id) {
        agent.hands.discard_base(base.id).await.map_err(failed)?;
    }
    Ok(())
}

/// Destroys one instance.
pub async fn instance(agent: &Arc<Agent>, machine: &Machine) -> Result<String, ApiError> {
    let address = machine.view().row.address();
    match machine.destroy().await {
        // Somebody else's wish for the same was done first.
        Ok(()) | Err(ActError::Gone) => {}
        Err(error) => {
            let message = format!("{address}: {error}");
            return Err(ApiError { code: ErrorCode::Failed, message, key: None });
        }
    }
    agent.forget_machine(machine.id);
    Ok(address)
}
