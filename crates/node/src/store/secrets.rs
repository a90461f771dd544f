//! Sealed secrets and wrapped keys: this module sees no value in clear.

use mvm_model::TenantId;
use rusqlite::{OptionalExtension, Transaction, params};

use super::Sql;

/// A sealed secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    /// As in `/run/secrets/<scope>/<KEY>`.
    pub scope: String,
    /// As in `/run/secrets/<scope>/<KEY>`.
    pub key: String,
    /// Its sealed value.
    pub sealed: Vec<u8>,
    /// When its value was last another, in seconds since 1970, where that is known.
    pub set_at: Option<u64>,
    /// The file that it was read from by whoever gave it, where it was one.
    pub file: Option<String>,
    /// As whom its service knows whoever has this value, where that was asked.
    pub account: Option<String>,
}

/// Replaces all of a tenant's secrets.
pub fn replace_secrets(tx: &Transaction<'_>, tenant: &TenantId, secrets: &[SealedRow]) -> Sql<()> {
    tx.execute("DELETE FROM secrets WHERE tenant = ?1", [tenant.as_str()])?;
    for row in secrets {
        tx.execute(
            "INSERT INTO secrets (tenant, scope, key, sealed, set_at, file, account) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![tenant.as_str(), row.scope, row.key, row.sealed, row.set_at, row.file, row.account],
        )?;
    }
    Ok(())
}

/// A tenant's secrets, sealed.
pub fn secrets(tx: &Transaction<'_>, tenant: &TenantId) -> Sql<Vec<SealedRow>> {
    tx.prepare_cached(
        "SELECT scope, key, sealed, set_at, file, account FROM secrets WHERE tenant = ?1 ORDER BY scope, key",
    )?
    .query_map([tenant.as_str()], |row| {
        let (scope, key, sealed) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(SealedRow { scope, key, sealed, set_at: row.get(3)?, file: row.get(4)?, account: row.get(5)? })
    })?
    .collect()
}

/// The name of a tenant's bot at Telegram, where it is known of the token that the tenant has.
pub fn bot(tx: &Transaction<'_>, tenant: &TenantId) -> Sql<Option<String>> {
    let secrets = secrets(tx, tenant)?;
    Ok(secrets.into_iter().find(|row| row.scope == "telegram").and_then(|row| row.account))
}

/// A tenant's wrapped data key.
pub fn tenant_key(tx: &Transaction<'_>, tenant: &TenantId) -> Sql<Option<Vec<u8>>> {
    tx.query_row("SELECT wrapped FROM tenant_keys WHERE tenant = ?1", [tenant.as_str()], |row| row.get(0))
        .optional()
}

/// Keeps a tenant's wrapped data key.
pub fn save_tenant_key(tx: &Transaction<'_>, tenant: &TenantId, wrapped: &[u8]) -> Sql<()> {
    tx.execute(
        "INSERT INTO tenant_keys (tenant, wrapped) VALUES (?1, ?2)",
        params![tenant.as_str(), wrapped],
    )?;
    Ok(())
}
