//! People.

use mvm_model::{InstanceId, InstanceState, PoolId, TenantId, User, UserName};
use serde::{Deserialize, Serialize};

/// A person in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UserSummary {
    /// Their tenant.
    pub tenant: TenantId,
    /// Who they are.
    #[serde(flatten)]
    pub user: User,
    /// Their worker; none once it was destroyed.
    pub worker: Option<Worker>,
    /// Until when their one-time link is valid, in seconds since 1970, while nobody has opened it.
    pub link_expires_at: Option<u64>,
    /// Since when, in seconds since 1970.
    pub created_at: u64,
}

/// A person's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Worker {
    /// Its pool.
    pub pool: PoolId,
    /// Its id.
    pub id: InstanceId,
    /// Its state.
    pub state: InstanceState,
}

/// What makes whoever opens it first a user: `https://t.me/<bot>?start=<code>`. It is told once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UserLink {
    /// The user.
    pub user: UserName,
    /// The bot, without its `@`; not known where nobody asked Telegram about the token that it has now.
    #[serde(default)]
    pub bot: Option<String>,
    /// The code.
    pub code: String,
    /// When it ceases to be valid, in seconds since 1970.
    pub expires_at: u64,
}
