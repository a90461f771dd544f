//! Bases, and the revisions that a pool's image has had.

use mvm_host::Shape;
use mvm_model::{PoolId, TenantId};
use rusqlite::{Row, Transaction, params};

use super::{Sql, from_json, from_text, now_secs, to_json};

/// What machines of one pool begin from.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseRow {
    /// Its id.
    pub id: String,
    /// The tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// The revision whose files it runs.
    pub revision: String,
    /// The virtual hardware that it fits.
    pub shape: Shape,
    /// Bytes of memory in it.
    pub memory_bytes: u64,
    /// When it was made, in seconds since 1970.
    pub made_at: u64,
}

impl BaseRow {
    fn read(row: &Row<'_>) -> Sql<Self> {
        Ok(Self {
            id: row.get("id")?,
            tenant: from_text(row, "tenant")?,
            pool: from_text(row, "pool")?,
            revision: row.get("revision")?,
            shape: from_json(row, "shape")?,
            memory_bytes: row.get("memory_bytes")?,
            made_at: row.get("made_at")?,
        })
    }

    /// Makes the row: from here on machines may begin from it.
    pub fn insert(&self, tx: &Transaction<'_>) -> Sql<()> {
        tx.execute(
            "INSERT INTO bases (id, tenant, pool, revision, shape, memory_bytes, made_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                self.id,
                self.tenant.as_str(),
                self.pool.as_str(),
                self.revision,
                to_json(&self.shape)?,
                self.memory_bytes,
                self.made_at,
            ],
        )?;
        Ok(())
    }
}

/// The bases of a pool, or all of them, the newest first.
pub fn bases(tx: &Transaction<'_>, of: Option<(&TenantId, &PoolId)>) -> Sql<Vec<BaseRow>> {
    let (tenant, pool) = of.map(|(tenant, pool)| (tenant.as_str(), pool.as_str())).unzip();
    tx.prepare_cached(
        "SELECT * FROM bases WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR pool = ?2)
         ORDER BY rowid DESC",
    )?
    .query_map([tenant, pool], BaseRow::read)?
    .collect()
}

/// Whether this base is there.
pub fn has_base(tx: &Transaction<'_>, id: &str) -> Sql<bool> {
    tx.prepare_cached("SELECT 1 FROM bases WHERE id = ?1")?.exists([id])
}

/// Forgets a base.
pub fn remove_base(tx: &Transaction<'_>, id: &str) -> Sql<()> {
    tx.execute("DELETE FROM bases WHERE id = ?1", [id])?;
    Ok(())
}

/// Notes that a pool has this revision from now on.
pub(super) fn note_revision(
    tx: &Transaction<'_>,
    tenant: &TenantId,
    pool: &PoolId,
    revision: &str,
) -> Sql<()> {
    let latest = latest_revisions(tx, tenant, pool)?.into_iter().next();
    if latest.as_deref() == Some(revision) {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO revisions (tenant, pool, revision, since) VALUES (?1, ?2, ?3, ?4)",
        params![tenant.as_str(), pool.as_str(), revision, now_secs()],
    )?;
    Ok(())
}

/// The revisions that a pool has had, the one that it has first; each once.
pub fn latest_revisions(tx: &Transaction<'_>, tenant: &TenantId, pool: &PoolId) -> Sql<Vec<String>> {
    tx.prepare_cached(
        "SELECT revision FROM revisions WHERE tenant = ?1 AND pool = ?2 GROUP BY revision ORDER BY max(seq) DESC",
    )?
    .query_map([tenant.as_str(), pool.as_str()], |row| row.get(0))?
    .collect()
}

/// Forgets that a pool has had a revision.
pub fn forget_revision(tx: &Transaction<'_>, tenant: &TenantId, pool: &PoolId, revision: &str) -> Sql<()> {
    tx.execute(
        "DELETE FROM revisions WHERE tenant = ?1 AND pool = ?2 AND revision = ?3",
        params![tenant.as_str(), pool.as_str(), revision],
    )?;
    Ok(())
}
