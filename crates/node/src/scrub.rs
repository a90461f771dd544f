//! Reads everything that is at rest through before a start or a wake does, and says what is damaged and what follows.

use std::sync::Arc;

use mvm_host::{AtRest, Damage, SnapshotInfo};
use mvm_model::InstanceId;
use mvm_protocol::api::{ApiError, Damaged, ErrorCode, ScrubReport};

use crate::agent::{Agent, AgentError};
use crate::bases::{self, Look};
use crate::pools;
use crate::store::{self, BaseRow, InstanceRow};

/// Reads all of it. Of a base that is damaged another is made, where its pool needs one.
///
/// # Errors
/// The store's or the host's.
pub async fn scrub(agent: &Arc<Agent>) -> Result<ScrubReport, ApiError> {
    let all = at_rest(agent).await?;
    let checked = all.len();
    let found = agent.hands.scrub(all).await;
    let mut damaged = Vec::new();
    for Damage { what, detail } in found.map_err(|error| ApiError::new(ErrorCode::Failed, error))? {
        let told = match what {
            AtRest::Base(id) => of_base(agent, id).await?,
            AtRest::Snapshot { instance, snapshot } => of_snapshot(agent, instance, &snapshot),
            AtRest::Revision(revision) => of_revision(agent, revision).await?,
        };
        damaged.extend(told.map(|(what, follows)| Damaged { what, detail: format!("{detail}; {follows}") }));
    }
    Ok(ScrubReport { checked, damaged })
}

async fn at_rest(agent: &Agent) -> Result<Vec<AtRest>, AgentError> {
    let kept = agent.store.read(|tx| Ok((store::bases(tx, None)?, pools::used_revisions(tx)?)));
    let (bases, revisions) = kept.await?;
    let asleep = agent.machines(|machine| machine.view().row.snapshot.is_some());
    let snapshots = asleep.iter().filter_map(|machine| {
        Some(AtRest::Snapshot { instance: machine.id, snapshot: machine.view().row.snapshot? })
    });
    let bases = bases.into_iter().map(|base| AtRest::Base(base.id));
    Ok(revisions.into_iter().map(AtRest::Revision).chain(bases).chain(snapshots).collect())
}

/// What it is, and what follows from its damage; nothing where it went while it was read.
type Told = Option<(String, String)>;

async fn of_base(agent: &Arc<Agent>, id: String) -> Result<Told, AgentError> {
    let bases = agent.store.read(|tx| store::bases(tx, None)).await?;
    let Some(base) = bases.into_iter().find(|base| base.id == id) else { return Ok(None) };
    let pool = agent.pool(&base.tenant, &base.pool).await?;
    let is_current = bases::current(agent, &pool).await?.is_some_and(|current| current.id == base.id);
    let mut follows = "no machine begins from it or wakes over it any more".to_owned();
    if is_current {
        follows += &format!(": those of {}/{} start cold until another is made", base.tenant, base.pool);
        bases::ensure_soon(agent, base.tenant.clone(), base.pool.clone(), Look::AtContent);
    }
    let (awake, asleep) = over(agent, &base);
    if asleep > 0 {
        follows += &format!("; {asleep} asleep over it will start cold, without their memory");
    }
    if awake > 0 {
        follows += &format!("; {awake} run over it, and may have read what is damaged: stop and start them");
    }
    Ok(Some((format!("base {id}"), follows)))
}

/// How many machines have a VMM that maps a base, and how many are asleep over it.
fn over(agent: &Agent, base: &BaseRow) -> (usize, usize) {
    let over = agent.machines(|machine| machine.view().row.base() == Some(&base.id));
    let asleep = over.iter().filter(|machine| machine.view().row.snapshot.is_some()).count();
    (over.len() - asleep, asleep)
}

fn of_snapshot(agent: &Agent, instance: InstanceId, snapshot: &SnapshotInfo) -> Told {
    let row = agent.machine(instance)?.view().row;
    // Woken or destroyed while it was read.
    row.snapshot.as_ref().filter(|now| now.digest == snapshot.digest)?;
    Some((row.address(), "it will start cold, without its memory".to_owned()))
}

async fn of_revision(agent: &Agent, revision: String) -> Result<Told, AgentError> {
    let id = revision.clone();
    let kept = agent.store.read(move |tx| {
        let is_used = pools::used_revisions(tx)?.contains(&id);
        let of_pools = store::pools(tx, None)?.into_iter().filter(|pool| pool.revision == id);
        Ok((is_used, of_pools.map(|pool| format!("{}/{}", pool.tenant, pool.spec.id)).collect::<Vec<_>>()))
    });
    let (is_used, of_pools) = kept.await?;
    if !is_used {
        return Ok(None);
    }
    let has_it = |row: InstanceRow| row.launched.is_some_and(|launched| launched.revision == revision);
    let machines = agent.machines(|machine| has_it(machine.view().row));
    let machines: Vec<String> = machines.iter().map(|machine| machine.view().row.address()).collect();
    let follows = match of_pools.first() {
        // What a machine that runs has open stays what it is.
        Some(pool) => {
            format!(
                "`mvm pool build {pool}` makes its files anew, unless it builds another revision by now; \
                 stop and start machines that run on it"
            )
        }
        None if machines.is_empty() => "no pool has it any more, and no machine".to_owned(),
        None => format!(
            "no pool has it any more: stop and start {}, for the revision that their pool has",
            machines.join(", ")
        ),
    };
    Ok(Some((format!("revision {revision}"), follows)))
}
