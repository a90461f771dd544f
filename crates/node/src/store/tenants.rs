//! Tenants and their pools.

use mvm_host::Uplink;
use mvm_model::manifest::Publish;
use mvm_model::{Endpoints, NetId, PoolId, PoolSpec, Quotas, RoutingTable, TenantId, TenantSubnet};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{Sql, from_json, from_text, to_json};

/// A tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantRow {
    /// Its id.
    pub id: TenantId,
    /// Its network number.
    pub net_id: NetId,
    /// Its subnet.
    pub subnet: TenantSubnet,
    /// Its pair of addresses towards the host.
    pub uplink: Uplink,
    /// Its limits.
    pub quotas: Quotas,
    /// Its routes.
    pub routes: RoutingTable,
    /// Ports of the host that lead to it.
    pub publish: Vec<Publish>,
    /// The services outside that its gateways speak to.
    pub endpoints: Endpoints,
    /// Since when, in seconds since 1970.
    pub created_at: u64,
    /// Being destroyed.
    pub doomed: bool,
}

/// A pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolRow {
    /// Its tenant.
    pub tenant: TenantId,
    /// What is wanted of it.
    pub spec: PoolSpec,
    /// Revision of its image that new starts take.
    pub revision: String,
    /// Being destroyed.
    pub doomed: bool,
}

impl TenantRow {
    fn read(row: &Row<'_>) -> Sql<Self> {
        let net_id: u64 = row.get("net_id")?;
        Ok(Self {
            id: from_text(row, "id")?,
            net_id: NetId::new(net_id).map_err(|e| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Integer, e.into())
            })?,
            subnet: from_json(row, "subnet")?,
            uplink: from_json(row, "uplink")?,
            quotas: from_json(row, "quotas")?,
            routes: from_json(row, "routes")?,
            publish: from_json(row, "publish")?,
            endpoints: from_json(row, "endpoints")?,
            created_at: row.get("created_at")?,
            doomed: row.get("doomed")?,
        })
    }

    /// Makes it, or changes what may change.
    pub fn save(&self, tx: &Transaction<'_>) -> Sql<()> {
        tx.execute(
            "INSERT INTO tenants (id, net_id, subnet, uplink, quotas, routes, publish, created_at, doomed, endpoints)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (id) DO UPDATE SET quotas = ?5, routes = ?6, publish = ?7, doomed = ?9, endpoints = ?10",
            params![
                self.id.as_str(),
                u64::from(self.net_id),
                to_json(&self.subnet)?,
                to_json(&self.uplink)?,
                to_json(&self.quotas)?,
                to_json(&self.routes)?,
                to_json(&self.publish)?,
                self.created_at,
                self.doomed,
                to_json(&self.endpoints)?,
            ],
        )?;
        Ok(())
    }
}

/// One tenant.
pub fn tenant(tx: &Transaction<'_>, id: &TenantId) -> Sql<Option<TenantRow>> {
    tx.prepare_cached("SELECT * FROM tenants WHERE id = ?1")?
        .query_row([id.as_str()], TenantRow::read)
        .optional()
}

/// Every tenant, by name.
pub fn tenants(tx: &Transaction<'_>) -> Sql<Vec<TenantRow>> {
    tx.prepare_cached("SELECT * FROM tenants ORDER BY id")?.query_map([], TenantRow::read)?.collect()
}

/// Removes a tenant and everything that belongs to it.
pub fn remove_tenant(tx: &Transaction<'_>, id: &TenantId) -> Sql<()> {
    tx.execute("DELETE FROM tenants WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

impl PoolRow {
    fn read(row: &Row<'_>) -> Sql<Self> {
        Ok(Self {
            tenant: from_text(row, "tenant")?,
            spec: from_json(row, "spec")?,
            revision: row.get("revision")?,
            doomed: row.get("doomed")?,
        })
    }

    /// Makes it, or changes it.
    pub fn save(&self, tx: &Transaction<'_>) -> Sql<()> {
        tx.execute(
            "INSERT INTO pools (tenant, id, spec, revision, doomed) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (tenant, id) DO UPDATE SET spec = ?3, revision = ?4, doomed = ?5",
            params![
                self.tenant.as_str(),
                self.spec.id.as_str(),
                to_json(&self.spec)?,
                self.revision,
                self.doomed
            ],
        )?;
        super::bases::note_revision(tx, &self.tenant, &self.spec.id, &self.revision)
    }
}

/// Removes a pool and what is known of its instances and bases.
pub fn remove_pool(tx: &Transaction<'_>, tenant: &TenantId, id: &PoolId) -> Sql<()> {
    tx.execute("DELETE FROM pools WHERE tenant = ?1 AND id = ?2", [tenant.as_str(), id.as_str()])?;
    Ok(())
}

/// One pool.
pub fn pool(tx: &Transaction<'_>, tenant: &TenantId, id: &PoolId) -> Sql<Option<PoolRow>> {
    tx.prepare_cached("SELECT * FROM pools WHERE tenant = ?1 AND id = ?2")?
        .query_row([tenant.as_str(), id.as_str()], PoolRow::read)
        .optional()
}

/// Every pool of a tenant, or of all of them, by name.
pub fn pools(tx: &Transaction<'_>, tenant: Option<&TenantId>) -> Sql<Vec<PoolRow>> {
    tx.prepare_cached("SELECT * FROM pools WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, id")?
        .query_map([tenant.map(TenantId::as_str)], PoolRow::read)?
        .collect()
}
