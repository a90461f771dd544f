//! The end of tenants, pools and instances: nothing of them is left.

use std::sync::Arc;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::{DesiredCounts, InstanceState, PoolId, TenantId};
use mvm_protocol::api::{ApiError, ErrorCode};

use crate::agent::{Agent, AgentError};
use crate::deploy;
use crate::machine::{ActError, Machine};
use crate::store::{self, Audit, StoreError};

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let code = match error {
            AgentError::NoTenant(_) | AgentError::NoPool(..) | AgentError::NoUser(..) => ErrorCode::NotFound,
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
    agent.resolvers.close(id).await;
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
    agent.bases.give_up(id, None).await;
    agent.hands.discard_spares(Some(id.clone())).await.map_err(failed)?;
    let of_tenant = agent.store.read(|tx| store::bases(tx, None)).await?;
    for base in of_tenant.into_iter().filter(|base| base.tenant == *id) {
        agent.hands.discard_base(base.id).await.map_err(failed)?;
    }
    Ok(())
}

/// Destroys a pool, and the published ports and routes that lead to it. It is marked first, as a tenant is.
pub async fn pool(agent: &Arc<Agent>, tenant: &TenantId, id: &PoolId) -> Result<Vec<String>, ApiError> {
    let _changing = agent.changing.lock().await;
    let mut owner = agent.tenant(tenant).await?;
    let mut row = agent.pool(tenant, id).await?;
    if owner.doomed {
        return Err(ApiError::new(ErrorCode::Refused, format!("tenant {tenant} is being destroyed")));
    }
    row.doomed = true;
    owner.publish.retain(|publish| publish.pool != *id);
    owner.routes.routes.retain(|route| route.target.pool_id != *id);
    let saved = (row, owner.clone());
    agent
        .store
        .write(move |tx| {
            saved.0.save(tx)?;
            saved.1.save(tx)
        })
        .await?;
    reached(KillPoint::PoolDestroyMarked);
    agent.publishing.keep_only(tenant, &owner.publish).await;
    let of_pool = agent.machines(|machine| machine.place.tenant == *tenant && machine.place.pool == *id);
    let destroyed = futures::future::join_all(of_pool.iter().map(|machine| instance(agent, machine))).await;
    let mut gone = destroyed.into_iter().collect::<Result<Vec<_>, _>>()?;
    reached(KillPoint::PoolDestroyMachinesGone);
    agent.bases.give_up(tenant, Some(id)).await;
    let (of_tenant, of_pool) = (tenant.clone(), id.clone());
    let bases = agent.store.read(move |tx| store::bases(tx, Some((&of_tenant, &of_pool)))).await?;
    for base in bases {
        // The spares that wait for its machines go with it.
        agent.hands.discard_base(base.id).await.map_err(|error| ApiError::new(ErrorCode::Failed, error))?;
    }
    let address = format!("{tenant}/{id}");
    let audit = Audit::new(&address, "PoolDestroyed", format!("and its {} instances", gone.len()));
    let (of_tenant, of_pool) = (tenant.clone(), id.clone());
    agent
        .store
        .write(move |tx| {
            store::remove_pool(tx, &of_tenant, &of_pool)?;
            audit.append(tx, &of_tenant)
        })
        .await?;
    gone.push(address);
    if let Err(error) = agent.resolvers.keep(agent, &owner).await {
        tracing::warn!(%error, %tenant, "after the end of pool {id}");
    }
    // Gateways that run learn that its routes are gone. One that does not is no reason to keep the pool.
    for behind in deploy::refresh(agent, &owner).await {
        tracing::warn!(%behind, pool = %id, "after the pool's end");
    }
    Ok(gone)
}

/// Has a pool want one fewer where it wants more than it has now that one in this state is gone: whoever destroys an instance
/// does not want it to be made again. A pool whose wish was lowered before, as by `pool scale`, is left as it is.
pub fn want_no_more(
    tx: &rusqlite::Transaction<'_>,
    place: &store::Place,
    state: InstanceState,
) -> store::Sql<()> {
    let Some(mut pool) = store::pool(tx, &place.tenant, &place.pool)? else { return Ok(()) };
    if u64::from(pool.spec.desired.total()) > store::count_instances(tx, &place.tenant, &place.pool)? {
        lower(&mut pool.spec.desired, state);
        pool.save(tx)?;
    }
    Ok(())
}

/// One fewer of those that are in this state, or else of any.
fn lower(desired: &mut DesiredCounts, state: InstanceState) {
    let DesiredCounts { running, warm, sleeping } = desired;
    let order = match state {
        InstanceState::Sleeping => [sleeping, running, warm],
        _ => [running, sleeping, warm],
    };
    if let Some(count) = order.into_iter().find(|count| **count > 0) {
        *count -= 1;
    }
}

/// Destroys one instance; its pool does not want it any more then.
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
