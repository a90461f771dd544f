//! Pools' images over time: builds, rollbacks, and the collection of what nothing needs any more.
//!
//! A new revision, or an earlier one, is what machines take at their next start. Those that run or sleep keep theirs.

use std::collections::BTreeSet;
use std::sync::Arc;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::{PoolId, TenantId};
use mvm_protocol::api::{ApiError, Collected, DeployEvent, ErrorCode, RolledBack};

use crate::agent::Agent;
use crate::bases::{self, Ensured, Look};
use crate::deploy::{Events, mend_image};
use crate::spares;
use crate::store::{self, Audit, PoolRow};

/// Builds a pool's image anew, or what is damaged of it, and the base of its machines. The last event is `Done` or `Failed`.
pub async fn build(agent: Arc<Agent>, tenant: TenantId, pool: PoolId, events: Events) {
    let last = match try_build(&agent, &tenant, &pool, &events).await {
        Ok(changes) => DeployEvent::Done { changes },
        Err(error) => DeployEvent::Failed { error },
    };
    events.send(last);
}

async fn try_build(
    agent: &Arc<Agent>,
    tenant: &TenantId,
    pool: &PoolId,
    events: &Events,
) -> Result<usize, ApiError> {
    let what = format!("{tenant}/{pool}");
    let mut changes = 0;
    {
        let _changing = agent.changing.lock().await;
        let mut row = agent.pool(tenant, pool).await?;
        let (revision, replaced) = mend_image(agent, &row.spec.image, events).await.map_err(failed)?;
        if replaced > 0 {
            let how = format!("{replaced} damaged files of revision {revision} are made anew");
            events.send(DeployEvent::Changed { what: what.clone(), how });
            changes += 1;
        }
        if row.revision != revision {
            row.revision = revision;
            let detail = format!("revision {}", row.revision);
            change(agent, row, "PoolBuilt", detail.clone()).await?;
            events.send(DeployEvent::Changed { what: what.clone(), how: detail });
            changes += 1;
        }
    }
    events.step(&what, "looking for the base of its machines, or making it");
    if let Ensured::Made(base) = bases::ensure(agent, tenant, pool, Look::AtContent).await.map_err(failed)? {
        let how = format!("base {} is made", base.id.chars().take(12).collect::<String>());
        events.send(DeployEvent::Changed { what, how });
        changes += 1;
    }
    Ok(changes)
}

/// Goes back to the revision that the pool had before the one it has.
pub async fn roll_back(agent: &Arc<Agent>, tenant: &TenantId, pool: &PoolId) -> Result<RolledBack, ApiError> {
    let _changing = agent.changing.lock().await;
    let mut row = agent.pool(tenant, pool).await?;
    let (of_tenant, of_pool) = (tenant.clone(), pool.clone());
    let all = agent.store.read(move |tx| store::latest_revisions(tx, &of_tenant, &of_pool)).await?;
    let Some(earlier) = all.into_iter().find(|revision| *revision != row.revision) else {
        let message = format!("{tenant}/{pool} has had one revision only: there is none to go back to");
        return Err(ApiError { code: ErrorCode::Refused, message, key: None });
    };
    let from = std::mem::replace(&mut row.revision, earlier.clone());
    change(agent, row, "PoolRolledBack", format!("from revision {from} to {earlier}")).await?;
    bases::ensure_soon(agent, tenant.clone(), pool.clone(), Look::AtShape);
    Ok(RolledBack { from, to: earlier })
}

async fn change(
    agent: &Arc<Agent>,
    row: PoolRow,
    kind: &'static str,
    detail: String,
) -> Result<(), ApiError> {
    let of = (row.tenant.clone(), row.spec.id.clone());
    let audit = Audit::new(format!("{}/{}", row.tenant, row.spec.id), kind, detail);
    agent
        .store
        .write(move |tx| {
            row.save(tx)?;
            audit.append(tx, &row.tenant)
        })
        .await?;
    // The spares that it has are of another revision.
    spares::keep_soon(agent, of);
    Ok(())
}

/// Removes bases and revisions of a pool that nothing needs: no pool, no machine, no snapshot, and no rollback by one step.
pub async fn collect(agent: &Arc<Agent>, tenant: &TenantId, pool: &PoolId) -> Result<Collected, ApiError> {
    agent.pool(tenant, pool).await?;
    let bases = bases::collect(agent, tenant, pool).await.map_err(failed)?;
    let _changing = agent.changing.lock().await;
    let (of_tenant, of_pool) = (tenant.clone(), pool.clone());
    let unused = agent
        .store
        .write(move |tx| {
            let in_use = used_revisions(tx)?;
            let had = store::latest_revisions(tx, &of_tenant, &of_pool)?;
            // It keeps the one it has and the one before. One that is still used stays known: later it is not. The others are
            // forgotten first: files without a row are found by the next agent.
            let unneeded: Vec<&String> = had.iter().skip(2).filter(|r| !in_use.contains(*r)).collect();
            unneeded.iter().try_for_each(|r| store::forget_revision(tx, &of_tenant, &of_pool, r))?;
            let kept = kept_revisions(tx)?;
            Ok(unneeded.into_iter().filter(|r| !kept.contains(*r)).cloned().collect::<Vec<String>>())
        })
        .await?;
    reached(KillPoint::RevisionsForgotten);
    let discarding = unused.iter().map(|revision| agent.hands.discard_revision(revision.clone()));
    // One that cannot be removed does not keep the others.
    let discarded = futures::future::join_all(discarding).await;
    discarded.into_iter().collect::<Result<Vec<()>, _>>().map_err(failed)?;
    Ok(Collected { bases, revisions: unused })
}

/// The revisions whose files have to be there.
pub(crate) fn needed_revisions(tx: &rusqlite::Transaction<'_>) -> store::Sql<BTreeSet<String>> {
    let mut needed = kept_revisions(tx)?;
    needed.extend(used_revisions(tx)?);
    Ok(needed)
}

/// The revisions that some pool of this node has or has had.
fn kept_revisions(tx: &rusqlite::Transaction<'_>) -> store::Sql<BTreeSet<String>> {
    let mut kept = BTreeSet::new();
    for pool in store::pools(tx, None)? {
        kept.extend(store::latest_revisions(tx, &pool.tenant, &pool.spec.id)?);
    }
    Ok(kept)
}

/// The revisions that some pool, base, machine or snapshot of this node has now.
pub fn used_revisions(tx: &rusqlite::Transaction<'_>) -> store::Sql<BTreeSet<String>> {
    let mut needed: BTreeSet<String> =
        store::pools(tx, None)?.into_iter().map(|pool| pool.revision).collect();
    needed.extend(store::bases(tx, None)?.into_iter().map(|base| base.revision));
    for row in store::instances(tx, None, None)? {
        let keeps = row.state.has_vmm() || row.snapshot.is_some() || row.intent.is_some();
        needed.extend(row.upgrade().map(|upgrade| upgrade.from.clone()));
        needed.extend(row.launched.filter(|_| keeps).map(|launched| launched.revision));
    }
    Ok(needed)
}

fn failed(error: impl ToString) -> ApiError {
    ApiError { code: ErrorCode::Failed, message: error.to_string(), key: None }
}
