//! Instances: the only rows with runtime state.

use mvm_host::{ProcessIdentity, SnapshotInfo, SnapshotMemory};
use mvm_model::{InstanceId, InstanceState, PoolId, Profile, Resources, TenantId};
use mvm_protocol::api::StartReport;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{Sql, from_json, from_text, now_secs, to_json};

/// One instance.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRow {
    /// Its id.
    pub id: InstanceId,
    /// Where it belongs.
    pub place: Place,
    /// Its state.
    pub state: InstanceState,
    /// In this state since, in seconds since 1970.
    pub since: u64,
    /// What it becomes without anyone asking again.
    pub goal: Option<Goal>,
    /// Raised at every start and wake.
    pub generation: u64,
    /// Raised before every launch.
    pub disk_epoch: u64,
    /// Why it is in its state.
    pub reason: Option<String>,
    /// What its VMM was launched with.
    pub launched: Option<Recorded>,
    /// Its VMM, while there is one.
    pub process: Option<ProcessIdentity>,
    /// Its snapshot, while there is one that was not consumed.
    pub snapshot: Option<SnapshotInfo>,
    /// How it last came to run.
    pub last_start: Option<StartReport>,
    /// When its workload wants to be woken, in seconds since 1970, as it said when it last fell asleep; kept until then, whatever
    /// runs it meanwhile.
    pub wake_at: Option<u64>,
    /// The act that was begun and not finished.
    pub intent: Option<Intent>,
}

/// What never changes about an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// Offset of its address in the tenant's subnet.
    pub offset: u16,
    /// Uid of its VMM.
    pub uid: u32,
    /// Its machine-id: 32 hex digits.
    pub machine_id: String,
}

impl Place {
    /// The whole address of the instance of this id: `alice/workers/i-0000002a`.
    fn address(&self, id: InstanceId) -> String {
        format!("{}/{}/{id}", self.tenant, self.pool)
    }
}

/// What a VMM was launched with: a wake must match it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Revision of its image.
    pub revision: String,
    /// vCPUs, memory, disk.
    pub resources: Resources,
    /// The base that its memory is a copy of, if it is one.
    #[serde(default)]
    pub base: Option<String>,
    /// While it is given another image: what it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Box<Upgrade>>,
}

/// An upgrade that is under way: what a machine goes back to where it does not come up with another image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// The revision that it is to have.
    pub to: String,
    /// The one that it had.
    pub from: String,
    /// The image that its pool goes back to.
    pub image: String,
    /// The profile that its pool goes back to.
    pub profile: Profile,
    /// The revision that its pool goes back to, which is not always the machine's; once it did, the one that it has then.
    /// Where an earlier agent noted none: `from`.
    #[serde(default)]
    pub pool_revision: Option<String>,
    /// The state that it was in.
    pub state: InstanceState,
    /// Why it goes back, once it does.
    #[serde(default)]
    pub failed: Option<String>,
    /// Its disk is back, and it is to start with what it had.
    #[serde(default)]
    pub is_back: bool,
}

impl Upgrade {
    /// The revision that its pool has from then on where it goes back.
    pub fn revision_of_pool(&self) -> &String {
        self.pool_revision.as_ref().unwrap_or(&self.from)
    }

    /// The revision that one starts with whose pool has this one: what it had, unless its pool was given another since it went
    /// back.
    pub fn starts_with<'a>(&'a self, pool: &'a String) -> &'a String {
        if self.is_back && self.revision_of_pool() == pool { &self.from } else { pool }
    }
}

/// Where an instance goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// New instances that begin running, and restarts.
    Running,
    /// New instances that begin asleep: started once, then put to sleep.
    Sleeping,
}

/// An act that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// Towards running by a cold boot.
    Start,
    /// Towards running from its snapshot.
    Wake,
    /// Towards warm.
    Warm,
    /// From warm towards running.
    Resume,
    /// Towards sleeping.
    Sleep,
    /// Towards stopped.
    Stop,
    /// Towards another data disk: stopped for it, it begins anew with that.
    Restore,
    /// Towards another image, or back from it.
    Upgrade,
    /// Towards nothing.
    Destroy,
}

/// An instance to be.
#[derive(Debug, Clone)]
pub struct NewInstance {
    /// Its id.
    pub id: InstanceId,
    /// Where it belongs.
    pub place: Place,
    /// How it begins.
    pub goal: Option<Goal>,
}

impl NewInstance {
    /// Its whole address.
    pub fn address(&self) -> String {
        self.place.address(self.id)
    }

    /// Makes the row, in state `ready`: its pool has a revision.
    pub fn insert(&self, tx: &Transaction<'_>) -> Sql<()> {
        let Place { tenant, pool, offset, uid, machine_id } = &self.place;
        tx.execute(
            "INSERT INTO instances (id, tenant, pool, offset, uid, machine_id, state, since, goal)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                self.id.get(),
                tenant.as_str(),
                pool.as_str(),
                offset,
                uid,
                machine_id,
                InstanceState::Ready.as_str(),
                now_secs(),
                self.goal.as_ref().map(to_json).transpose()?,
            ],
        )?;
        Ok(())
    }
}

impl InstanceRow {
    /// The upgrade that is under way.
    pub fn upgrade(&self) -> Option<&Upgrade> {
        self.launched.as_ref()?.upgrade.as_deref()
    }

    /// Whether a data disk may be kept for it.
    pub fn keeps_a_disk(&self) -> bool {
        self.intent == Some(Intent::Restore) || self.upgrade().is_some()
    }

    /// The base that it cannot do without: the one that its VMM maps, or that its snapshot lies over.
    pub fn base(&self) -> Option<&str> {
        let asleep = self.snapshot.as_ref().map(|snapshot| match &snapshot.memory {
            SnapshotMemory::Delta { base } => base.as_deref(),
            SnapshotMemory::Own => None,
        });
        let launched = self.launched.as_ref().filter(|_| self.state.has_vmm() || self.intent.is_some());
        asleep.unwrap_or(launched.and_then(|launched| launched.base.as_deref()))
    }

    fn read(row: &Row<'_>) -> Sql<Self> {
        Ok(Self {
            id: InstanceId::new(row.get("id")?),
            place: Place {
                tenant: from_text(row, "tenant")?,
                pool: from_text(row, "pool")?,
                offset: row.get("offset")?,
                uid: row.get("uid")?,
                machine_id: row.get("machine_id")?,
            },
            state: from_text(row, "state")?,
            since: row.get("since")?,
            goal: optional_json(row, "goal")?,
            generation: row.get("generation")?,
            disk_epoch: row.get("disk_epoch")?,
            reason: row.get("reason")?,
            launched: optional_json(row, "launched")?,
            process: optional_json(row, "process")?,
            snapshot: optional_json(row, "snapshot")?,
            last_start: optional_json(row, "last_start")?,
            wake_at: row.get("wake_at")?,
            intent: optional_json(row, "intent")?,
        })
    }

    /// Writes what changes about it.
    pub fn save(&self, tx: &Transaction<'_>) -> Sql<()> {
        let changed = tx
            .prepare_cached(
            "UPDATE instances SET state = ?2, since = ?3, goal = ?4, generation = ?5, disk_epoch = ?6, reason = ?7,
             launched = ?8, process = ?9, snapshot = ?10, last_start = ?11, intent = ?12,
             wake_at = ?13 WHERE id = ?1",
        )?
        .execute(params![
            self.id.get(),
            self.state.as_str(),
            self.since,
            json_column(&self.goal)?,
            self.generation,
            self.disk_epoch,
            self.reason,
            json_column(&self.launched)?,
            json_column(&self.process)?,
            json_column(&self.snapshot)?,
            json_column(&self.last_start)?,
            json_column(&self.intent)?,
            self.wake_at,
        ])?;
        // One that was destroyed meanwhile must not seem to live on.
        if changed == 1 { Ok(()) } else { Err(rusqlite::Error::QueryReturnedNoRows) }
    }

    /// Its whole address: `alice/workers/i-0000002a`.
    pub fn address(&self) -> String {
        self.place.address(self.id)
    }
}

fn json_column<T: Serialize>(value: &Option<T>) -> Sql<Option<String>> {
    value.as_ref().map(to_json).transpose()
}

fn optional_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> Sql<Option<T>> {
    let present: Option<String> = row.get(column)?;
    present.map(|_| from_json(row, column)).transpose()
}

/// One instance.
pub fn instance(tx: &Transaction<'_>, id: InstanceId) -> Sql<Option<InstanceRow>> {
    tx.prepare_cached("SELECT * FROM instances WHERE id = ?1")?
        .query_row([id.get()], InstanceRow::read)
        .optional()
}

/// The instances of a pool, of a tenant, or all of them, by id.
pub fn instances(
    tx: &Transaction<'_>,
    tenant: Option<&TenantId>,
    pool: Option<&PoolId>,
) -> Sql<Vec<InstanceRow>> {
    tx.prepare_cached(
        "SELECT * FROM instances WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR pool = ?2)
         ORDER BY tenant, pool, id",
    )?
    .query_map([tenant.map(TenantId::as_str), pool.map(PoolId::as_str)], InstanceRow::read)?
    .collect()
}

/// How many instances a pool has.
pub fn count_instances(tx: &Transaction<'_>, tenant: &TenantId, pool: &PoolId) -> Sql<u64> {
    tx.prepare_cached("SELECT COUNT(*) FROM instances WHERE tenant = ?1 AND pool = ?2")?
        .query_row([tenant.as_str(), pool.as_str()], |row| row.get(0))
}

/// Removes an instance; its address is free again.
pub fn remove_instance(tx: &Transaction<'_>, id: InstanceId) -> Sql<()> {
    tx.execute("DELETE FROM instances WHERE id = ?1", [id.get()])?;
    Ok(())
}

/// Every uid that a VMM of this node has.
pub fn uids(tx: &Transaction<'_>) -> Sql<std::collections::BTreeSet<u32>> {
    tx.prepare_cached("SELECT uid FROM instances")?.query_map([], |row| row.get(0))?.collect()
}
