//! Bases: a machine of a pool that was stopped before it became anyone, from which the pool's machines begin.
//!
//! ```text
//! cold boot ── hello ── prewarm ── pause ── write ── commit
//! ```
//! One is made whenever a pool has a revision, or this host a shape, that none fits; machines start cold meanwhile. One that
//! the pool has no more use for goes when no machine maps it and no snapshot lies over it: after a start, or within a minute.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mvm_host::{AtRest, BaseFacts, BaseLaunch};
use mvm_kill_point::{KillPoint, reached};
use mvm_model::{PoolId, TenantId};
use mvm_protocol::PROTOCOL_VERSION;
use mvm_protocol::control::{GuestReply, GuestRequest};
use tokio::net::UnixStream;
use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, AgentError};
use crate::session::Session;
use crate::store::{self, Audit, BaseRow, PoolRow, now_millis, now_secs};

/// How long the machine may take to boot; emulated and on a busy host.
const BOOT: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(20);
/// How long its prewarm may take, whatever the recipe allows it.
const PREWARM: Duration = Duration::from_secs(3600);
/// How long a person waits for a base that something of theirs would begin from.
const IN_TIME: Duration = Duration::from_secs(60);
/// After one could not be made, another is not tried for every machine that starts.
const NOT_AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// A base could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// What the agent knows.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The host.
    #[error(transparent)]
    Host(#[from] mvm_host::HostError),
    /// Its guest.
    #[error("the machine that was to become a base of {pool}: {reason}")]
    Guest {
        /// The pool's address.
        pool: String,
        /// What it did, or did not.
        reason: String,
    },
}

impl From<store::StoreError> for BaseError {
    fn from(error: store::StoreError) -> Self {
        Self::Agent(error.into())
    }
}

/// What came of looking for a base.
#[derive(Debug, Clone, PartialEq)]
pub enum Ensured {
    /// One that fits was there.
    There(BaseRow),
    /// It was made.
    Made(BaseRow),
}

/// The base that machines of a pool begin from now, if there is one.
///
/// # Errors
/// The store's.
pub async fn current(agent: &Agent, pool: &PoolRow) -> Result<Option<BaseRow>, AgentError> {
    let (tenant, id, revision) = (pool.tenant.clone(), pool.spec.id.clone(), pool.revision.clone());
    let rows = agent.store.read(move |tx| store::bases(tx, Some((&tenant, &id)))).await?;
    Ok(rows.into_iter().find(|row| row.revision == revision))
}

/// Who looks for the base of which pool, or makes it: one at a time for each.
#[derive(Debug, Default)]
pub struct Makers {
    all: Mutex<HashMap<(TenantId, PoolId), Arc<Maker>>>,
    /// Bases are collected by one at a time: who is through finds that all of it is gone.
    collecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Maker {
    turn: tokio::sync::Mutex<()>,
    /// The pool is no more: nothing is made for it.
    gone: CancellationToken,
    failed_at: Mutex<Option<Instant>>,
}

impl Makers {
    fn of(&self, tenant: &TenantId, pool: &PoolId) -> Arc<Maker> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry((tenant.clone(), pool.clone())).or_default())
    }

    /// Has everything given up that is made for a tenant, or for one of its pools, and resolves when it is.
    pub async fn give_up(&self, tenant: &TenantId, pool: Option<&PoolId>) {
        let meant: Vec<_> = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.extract_if(|(of, id), _| of == tenant && pool.is_none_or(|pool| id == pool)).collect()
        };
        for (_, maker) in meant {
            maker.gone.cancel();
            drop(maker.turn.lock().await);
        }
    }
}

impl Maker {
    /// Whether it was in vain a short while ago.
    fn has_just_failed(&self) -> bool {
        let failed_at = self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|at| at.elapsed() < NOT_AGAIN_WITHIN)
    }
}

/// How much of a base that is there is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Whether it fits.
    AtShape,
    /// Whether its files are whole, too: where a start from it was refused.
    AtContent,
}

/// Makes the base of a pool, unless there is one that fits.
///
/// # Errors
/// [`BaseError`]; the pool's machines start cold then.
pub async fn ensure(
    agent: &Arc<Agent>,
    tenant: &TenantId,
    pool: &PoolId,
    look: Look,
) -> Result<Ensured, BaseError> {
    let maker = agent.bases.of(tenant, pool);
    let _one_at_a_time = maker.turn.lock().await;
    let ensured = look_or_make(agent, &maker, tenant, pool, look).await;
    let failed_at = ensured.is_err().then(Instant::now);
    *maker.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = failed_at;
    ensured
}

async fn look_or_make(
    agent: &Arc<Agent>,
    maker: &Maker,
    tenant: &TenantId,
    pool: &PoolId,
    look: Look,
) -> Result<Ensured, BaseError> {
    let wanted = agent.pool(tenant, pool).await?;
    if wanted.doomed || agent.tenant(tenant).await?.doomed {
        return Err(guest(&wanted, "it is being destroyed"));
    }
    let shape = agent.hands.shape(wanted.revision.clone(), wanted.spec.resources).await?;
    if let Some(base) = current(agent, &wanted).await?
        && base.shape.fits(&shape).is_ok()
        && (look == Look::AtShape || is_whole(agent, &base).await?)
    {
        return Ok(Ensured::There(base));
    }
    let base = make(agent, maker, &wanted).await?;
    try_to_collect(agent, tenant, pool).await;
    Ok(Ensured::Made(base))
}

/// Whether its files are what was written. A damaged one is as good as none: whatever lies over it starts cold.
async fn is_whole(agent: &Agent, base: &BaseRow) -> Result<bool, BaseError> {
    let found = agent.hands.scrub(vec![AtRest::Base(base.id.clone())]).await?;
    for damage in &found {
        tracing::warn!(base = base.id, detail = damage.detail, "a base is damaged: another is made");
    }
    Ok(found.is_empty())
}

/// The same, but waits for no longer than a person would: a prewarm may take an hour. It goes on then, and machines start cold
/// meanwhile. In words what came of it.
pub async fn ensure_in_time(agent: &Arc<Agent>, tenant: &TenantId, pool: &PoolId) -> String {
    let (of, tenant, pool) = (Arc::clone(agent), tenant.clone(), pool.clone());
    let ensuring = tokio::spawn(async move { ensure(&of, &tenant, &pool, Look::AtShape).await });
    match tokio::time::timeout(IN_TIME, ensuring).await {
        Ok(Ok(Ok(Ensured::Made(_)))) => "its base is made".to_owned(),
        Ok(Ok(Ok(Ensured::There(_)))) => "its base is there".to_owned(),
        Ok(Ok(Err(error))) => format!("no base, its machines start cold: {error}"),
        Ok(Err(ended)) => format!("no base, its machines start cold: {ended}"),
        Err(_) => "its base takes a while: its machines start cold until it is made".to_owned(),
    }
}

/// Makes it meanwhile, unless that is done already or was in vain a moment ago; machines start cold until it is there.
pub fn ensure_soon(agent: &Arc<Agent>, tenant: TenantId, pool: PoolId, look: Look) {
    let maker = agent.bases.of(&tenant, &pool);
    if maker.turn.try_lock().is_err() || maker.has_just_failed() {
        return;
    }
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        match ensure(&agent, &tenant, &pool, look).await {
            Ok(Ensured::Made(base)) => tracing::info!(%tenant, %pool, base = base.id, "a base is made"),
            Ok(Ensured::There(_)) => {}
            Err(error) => tracing::warn!(%tenant, %pool, %error, "no base: machines start cold"),
        }
    });
}

async fn make(agent: &Arc<Agent>, maker: &Maker, pool: &PoolRow) -> Result<BaseRow, BaseError> {
    let tenant = agent.tenant(&pool.tenant).await?;
    let turn = agent.boots.acquire().await.map_err(|error| guest(pool, error))?;
    let launch = BaseLaunch {
        revision: pool.revision.clone(),
        resources: pool.spec.resources,
        network: agent.network_of(&tenant),
    };
    let name = agent.hands.launch_base(launch).await?;
    reached(KillPoint::BaseLaunched);
    let facts = BaseFacts {
        tenant: pool.tenant.to_string(),
        pool: pool.spec.id.to_string(),
        revision: pool.revision.clone(),
        recorded_at_ms: now_millis(),
    };
    let ready = tokio::select! {
        ready = get_ready(agent, pool, &name, turn) => ready,
        () = maker.gone.cancelled() => Err(guest(pool, "it is being destroyed")),
    };
    let made = match ready {
        Ok(()) => {
            reached(KillPoint::BaseReady);
            agent.hands.make_base(name, facts).await?
        }
        Err(error) => {
            agent.hands.give_up_base(name).await?;
            return Err(error);
        }
    };
    reached(KillPoint::BaseWritten);
    let row = BaseRow {
        id: made.id,
        tenant: pool.tenant.clone(),
        pool: pool.spec.id.clone(),
        revision: pool.revision.clone(),
        shape: made.shape,
        memory_bytes: made.memory_bytes,
        made_at: now_secs(),
    };
    let (inserted, tenant) = (row.clone(), pool.tenant.clone());
    let detail = format!("of revision {}, {} MiB", row.revision, row.memory_bytes >> 20);
    let audit = Audit::new(format!("{}/{}", row.tenant, row.pool), "BaseMade", detail);
    agent
        .store
        .write(move |tx| {
            inserted.insert(tx)?;
            audit.append(tx, &tenant)
        })
        .await?;
    reached(KillPoint::BaseCommitted);
    Ok(row)
}

/// Boots it, has it do what its recipe wants done ahead, and leaves it alone.
async fn get_ready(
    agent: &Agent,
    pool: &PoolRow,
    name: &str,
    turn: SemaphorePermit<'_>,
) -> Result<(), BaseError> {
    let path = agent.hands.base_socket(name).ok_or_else(|| guest(pool, "it is gone"))?;
    let channel = UnixStream::connect(&path).await.map_err(|error| guest(pool, error))?;
    agent.hands.go_on_base(name.to_owned()).await?;
    // It is nobody, so nothing that it asks is answered.
    let opening = Session::open(channel, path, Arc::new(drop));
    let session = tokio::time::timeout(BOOT, opening).await;
    let session = session.map_err(|_| guest(pool, format!("no answer within {} s", BOOT.as_secs())))?;
    let session = session.map_err(|error| guest(pool, error))?;
    let hello = GuestRequest::Hello { protocol: PROTOCOL_VERSION };
    match session.ask(&hello, "Hello", ANSWER).await.map_err(|error| guest(pool, error))? {
        GuestReply::Hello { protocol: PROTOCOL_VERSION, .. } => {}
        other => return Err(guest(pool, format!("its guest speaks another protocol: {other:?}"))),
    }
    // It has booted. What its recipe wants may take long, and keeps others from booting no more than a service would.
    drop(turn);
    match session.ask(&GuestRequest::Prewarm, "Prewarm", PREWARM).await.map_err(|error| guest(pool, error))? {
        GuestReply::Prewarmed { success: true, .. } => Ok(()),
        GuestReply::Prewarmed { detail, .. } => Err(guest(pool, format!("its prewarm failed: {detail}"))),
        other => Err(guest(pool, format!("its answer to Prewarm makes no sense: {other:?}"))),
    }
}

fn guest(pool: &PoolRow, reason: impl ToString) -> BaseError {
    BaseError::Guest { pool: format!("{}/{}", pool.tenant, pool.spec.id), reason: reason.to_string() }
}

/// Removes the bases of a pool that nothing needs any more, and gives their ids.
///
/// # Errors
/// The store's or the host's; what was not removed is removed by the next agent.
pub async fn collect(agent: &Agent, tenant: &TenantId, pool: &PoolId) -> Result<Vec<String>, BaseError> {
    let _one_at_a_time = agent.bases.collecting.lock().await;
    let (tenant, pool) = (tenant.clone(), pool.clone());
    let unused = agent
        .store
        .write(move |tx| {
            let unused = unneeded(tx, &tenant, &pool)?;
            // Forgotten first: files without a row are found by the next agent, a row without files would be used.
            unused.iter().try_for_each(|id| store::remove_base(tx, id)).map(|()| unused)
        })
        .await?;
    reached(KillPoint::BasesForgotten);
    let mut failure = Ok(());
    for id in &unused {
        // One that cannot be removed keeps no other; the next agent finds it.
        failure = agent.hands.discard_base(id.clone()).await.and(failure);
    }
    failure?;
    Ok(unused)
}

/// The bases of a pool that are not its current one, that no VMM maps and no snapshot lies over.
fn unneeded(tx: &rusqlite::Transaction<'_>, tenant: &TenantId, pool: &PoolId) -> store::Sql<Vec<String>> {
    let revision = store::pool(tx, tenant, pool)?.map(|pool| pool.revision);
    let mut rows = store::bases(tx, Some((tenant, pool)))?;
    if let Some(current) = rows.iter().position(|row| Some(&row.revision) == revision.as_ref()) {
        rows.remove(current);
    }
    if rows.is_empty() {
        // This is asked every minute, and most pools have the current one only: their machines' rows need not be read.
        return Ok(Vec::new());
    }
    let needed: BTreeSet<String> = store::instances(tx, Some(tenant), Some(pool))?
        .iter()
        .filter_map(|row| row.base().map(str::to_owned))
        .collect();
    Ok(rows.into_iter().map(|row| row.id).filter(|id| !needed.contains(id)).collect())
}

/// Removes the bases of all pools that nothing needs any more, as far as they can be removed now.
pub async fn collect_all(agent: &Agent) {
    let pools = agent.store.read(|tx| {
        let all: BTreeSet<_> =
            store::bases(tx, None)?.into_iter().map(|base| (base.tenant, base.pool)).collect();
        let mut due = Vec::new();
        for (tenant, pool) in all {
            if !unneeded(tx, &tenant, &pool)?.is_empty() {
                due.push((tenant, pool));
            }
        }
        Ok(due)
    });
    match pools.await {
        Ok(pools) => {
            for (tenant, pool) in pools {
                try_to_collect(agent, &tenant, &pool).await;
            }
        }
        Err(error) => tracing::warn!(%error, "bases are not collected"),
    }
}

/// As [`collect`]; what fails is logged.
pub async fn try_to_collect(agent: &Agent, tenant: &TenantId, pool: &PoolId) {
    match collect(agent, tenant, pool).await {
        Ok(ids) if ids.is_empty() => {}
        Ok(ids) => tracing::info!(%tenant, %pool, bases = ?ids, "bases that nothing needs are removed"),
        Err(error) => tracing::warn!(%tenant, %pool, %error, "bases are not collected"),
    }
}
