//! People, and the workers that are theirs.

use mvm_model::{InstanceId, TelegramId, TenantId, User, UserName};
use mvm_protocol::openclaw::OneTimeLink;
use rusqlite::{Row, Transaction, params};

use super::{Sql, from_text};

/// A person served by a tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct UserRow {
    /// Their tenant.
    pub tenant: TenantId,
    /// What is wanted of them; who they are to Telegram also where they have said so themselves.
    pub user: User,
    /// Their worker; none once it was destroyed.
    pub instance: Option<InstanceId>,
    /// What makes whoever opens it first this user.
    pub link: Option<OneTimeLink>,
    /// Since when, in seconds since 1970.
    pub created_at: u64,
}

impl UserRow {
    fn read(row: &Row<'_>) -> Sql<Self> {
        let code: Option<String> = row.get("code_sha256")?;
        let expires: Option<u64> = row.get("code_expires_at")?;
        Ok(Self {
            tenant: from_text(row, "tenant")?,
            user: User {
                name: from_text(row, "name")?,
                telegram: row.get::<_, Option<i64>>("telegram")?.and_then(TelegramId::new),
                monthly_limit_cents: row.get("monthly_limit_cents")?,
            },
            instance: row.get::<_, Option<u32>>("instance")?.map(InstanceId::new),
            link: code.zip(expires).map(|(code_sha256, expires_at)| OneTimeLink { code_sha256, expires_at }),
            created_at: row.get("created_at")?,
        })
    }

    /// Makes them, or changes them.
    pub fn save(&self, tx: &Transaction<'_>) -> Sql<()> {
        tx.execute(
            "INSERT INTO users (tenant, name, telegram, monthly_limit_cents, instance, code_sha256, code_expires_at, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (tenant, name) DO UPDATE SET
                telegram = ?3, monthly_limit_cents = ?4, instance = ?5, code_sha256 = ?6, code_expires_at = ?7",
            params![
                self.tenant.as_str(),
                self.user.name.as_str(),
                self.user.telegram.map(TelegramId::get),
                self.user.monthly_limit_cents,
                self.instance.map(InstanceId::get),
                self.link.as_ref().map(|link| &link.code_sha256),
                self.link.as_ref().map(|link| link.expires_at),
                self.created_at,
            ],
        )?;
        Ok(())
    }
}

/// A tenant's users, or everyone's, by name.
pub fn users(tx: &Transaction<'_>, tenant: Option<&TenantId>) -> Sql<Vec<UserRow>> {
    tx.prepare_cached("SELECT * FROM users WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, name")?
        .query_map([tenant.map(TenantId::as_str)], UserRow::read)?
        .collect()
}

/// One of them.
pub fn user(tx: &Transaction<'_>, tenant: &TenantId, name: &UserName) -> Sql<Option<UserRow>> {
    Ok(users(tx, Some(tenant))?.into_iter().find(|row| row.user.name == *name))
}
