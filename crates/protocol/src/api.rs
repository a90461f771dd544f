//! The agent's HTTP API, spoken over a Unix socket: types of requests and answers.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `GET /v1/agent` | → [`AgentInfo`] |
//! | `POST /v1/agent/stop` | → `{}`; machines keep running |
//! | `POST /v1/deploy` | [`DeployRequest`] → lines of [`DeployEvent`] |
//! | `POST /v1/change` | [`ChangeRequest`] → lines of [`DeployEvent`] |
//! | `GET /v1/tenants` | → [`TenantSummary`]s |
//! | `GET /v1/tenants/{tenant}` | → [`TenantInfo`] |
//! | `GET /v1/tenants/{tenant}/manifest` | → the text of a manifest that asks for what there is |
//! | `GET /v1/tenants/{tenant}/secrets` | → [`SecretInfo`]s |
//! | `POST /v1/tenants/{tenant}/secrets` | [`SecretsRequest`] → [`SecretsSet`] |
//! | `DELETE /v1/tenants/{tenant}` | → [`Destroyed`] |
//! | `GET /v1/pools?tenant=` | → [`PoolSummary`]s |
//! | `GET /v1/pools/{tenant}/{pool}` | → [`PoolInfo`] |
//! | `DELETE /v1/pools/{tenant}/{pool}` | → [`Destroyed`] |
//! | `POST /v1/pools/{tenant}/{pool}/scale` | [`ScaleRequest`] → lines of [`ScaleEvent`] |
//! | `GET /v1/instances?tenant=&pool=` | → [`InstanceSummary`]s |
//! | `GET /v1/instances/{tenant}/{pool}/{instance}` | → [`InstanceInfo`] |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/{act}` | [`Act`] as the last part → [`ActDone`] |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/exec` | [`ExecRequest`], upgrade to [`UPGRADE`] → records |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/logs` | [`LogsRequest`], upgrade to [`UPGRADE`] → records |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/copy` | [`CopyRequest`], upgrade to [`UPGRADE`] → records as of [`GuestRequest::Copy`](crate::control::GuestRequest::Copy) |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/forward` | [`ForwardRequest`], upgrade to [`UPGRADE`] → records of one connection |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/backup` | [`BackupRequest`], upgrade to [`UPGRADE`] → records, with [`BackupNote`]s |
//! | `POST /v1/instances/{tenant}/{pool}/{instance}/restore` | [`RestoreRequest`], upgrade to [`UPGRADE`] → records, with [`BackupNote`]s |
//! | `POST /v1/pools/{tenant}/{pool}/restore` | the same for one more instance of the pool |
//! | `GET /v1/instances/{tenant}/{pool}/{instance}/stats` | → [`InstanceStats`], of one |
//! | `DELETE /v1/instances/{tenant}/{pool}/{instance}` | → [`Destroyed`] |
//! | `GET /v1/stats?tenant=&pool=` | → [`InstanceStats`], measured over half a second |
//! | `GET /v1/node` | → [`NodeInfo`] |
//! | `GET /v1/node/stats` | → [`NodeStats`], measured over half a second |
//! | `GET /v1/node/disk` | → [`NodeDisk`] |
//! | `GET /v1/status` | → [`NodeStatus`] |
//! | `GET /v1/status/{tenant}` | → [`TenantStatus`] |
//! | `GET /v1/users?tenant=` | → [`UserSummary`]s |
//! | `POST /v1/users/{tenant}/{user}/link` | → [`UserLink`] |
//! | `GET /v1/events/{tenant}` | → [`AuditEntry`]s |
//! | `GET /v1/events/{tenant}/follow` | → lines of [`AuditEntry`], those to come too |
//! | `POST /v1/net/verify` | → [`NetReport`] |
//!
//! `{instance}` is an id, a unique prefix of one, or `-` for the only instance of a pool. Whatever fails answers
//! with a status of 4xx or 5xx and an [`ApiError`].

mod backup;
mod doctor;
mod instances;
mod scale;
mod secrets;
mod status;
mod usage;
mod users;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mvm_model::manifest::{Change, Deployment, Difference, Publish};
use mvm_model::{Endpoints, NetId, PoolId, PoolSpec, Quotas, Role, Route, TenantId, TenantSubnet};
use serde::{Deserialize, Serialize};

pub use backup::{BackedUp, BackupNote, BackupRequest, RestoreRequest, Restored};
pub use doctor::DoctorReport;
pub use instances::{
    Act, ActDone, CopyRequest, ExecRequest, ForwardRequest, InstanceInfo, InstanceSummary, LogsRequest,
    StartReport, millis,
};
pub use scale::{ScaleAct, ScaleEvent, ScaleOutcome, ScaleRequest, Scaled};
pub use secrets::{Delivery, SecretInfo, SecretTaker, SecretsRequest, SecretsSet};
pub use status::{
    DeploymentLine, LastMessage, MachineStatus, NodeStatus, PoolStatus, PortStatus, TenantStatus, Trouble,
    Wakes,
};
pub use usage::{
    AgentStats, Folder, InstanceStats, MinimumStats, NodeDisk, NodeInfo, NodeStats, Spread, StartStats,
    TenantDisk, VmmStats,
};

pub use users::{UserLink, UserSummary, Worker};

use crate::SecretBytes;

/// The protocol that exec, logs, copy, forward, backup and restore upgrade to: [`crate::record`]s.
pub const UPGRADE: &str = "mvm-records";
/// The header of an upgrade that says how long the machine took to wake for it, in milliseconds.
pub const WOKEN: &str = "mvm-woken-ms";

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What went wrong and what to do about it.
    pub message: String,
    /// The key of the manifest at fault, where it is one: `publish[0].port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl ApiError {
    /// One that no key of a manifest is at fault for.
    pub fn new(code: ErrorCode, message: impl ToString) -> Self {
        Self { code, message: message.to_string(), key: None }
    }
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No such tenant, pool or instance.
    NotFound,
    /// More than one instance is meant.
    Ambiguous,
    /// The request makes no sense.
    Invalid,
    /// The state of things does not allow it.
    Refused,
    /// It was tried and failed.
    Failed,
}

/// How the agent is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AgentInfo {
    /// Version of mvm.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Data folder.
    pub data_dir: String,
    /// Run folder.
    pub run_dir: String,
    /// Since when, in seconds since 1970.
    pub started_at: u64,
    /// Engine and its version, and how it runs machines: `qemu 7.2.22 (emulation)`.
    pub engine: String,
    /// Tenants.
    pub tenants: usize,
    /// Instances by state.
    pub instances: BTreeMap<String, usize>,
}

/// What a person wants of a tenant, with the values of its secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeployRequest {
    /// The manifest's content; recipe paths are absolute.
    pub deployment: Deployment,
    /// All of its secrets; where absent, those there are stay.
    #[serde(default)]
    pub secrets: Option<Vec<SecretValue>>,
    /// How it is gone about.
    #[serde(default)]
    pub mode: DeployMode,
}

/// What a command wants changed of what is wanted of a tenant; the rest stays, and so do images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeRequest {
    /// The change; recipe paths are absolute.
    pub change: Change,
    /// How it is gone about.
    #[serde(default)]
    pub mode: DeployMode,
}

/// How a deployment or a change is gone about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeployMode {
    /// Nothing is done: what would be is told.
    pub dry_run: bool,
    /// Machines that run or sleep with something else than is wanted are restarted.
    pub restart: bool,
    /// Machines that run or sleep with another image than is wanted are given it, or it is not wanted any more.
    pub upgrade: bool,
    /// The tenant has to be new.
    pub only_new: bool,
}

/// One secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValue {
    /// As in `/run/secrets/<scope>/<KEY>`.
    pub scope: String,
    /// As in `/run/secrets/<scope>/<KEY>`.
    pub key: String,
    /// Its value.
    pub value: SecretBytes,
    /// The absolute path of the file that it was read from, where it was one: what a rotation reads again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// As whom its service knows whoever has it, where that was asked: a bot's name without its `@`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// A line of a deployment's progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum DeployEvent {
    /// A step begins: `image echo`, `alice/workers/i-0000002a`.
    Step {
        /// What it is about; later lines about the same thing have the same text.
        what: String,
        /// What happens to it.
        doing: String,
        /// How far it is.
        done: u64,
        /// Of how much; 0 where nobody knows.
        total: u64,
    },
    /// A key that is another: of a deployment that does nothing.
    Differ(Difference),
    /// An instance was created, and begins.
    Created {
        /// Its address.
        instance: String,
        /// Its address on the tenant's network.
        ip: Ipv4Addr,
    },
    /// Something was made or changed.
    Changed {
        /// What, as an address: `alice/workers`.
        what: String,
        /// How.
        how: String,
    },
    /// Something differs from the manifest and stays: too many instances, a change that needs a restart.
    Differs {
        /// What, as an address.
        what: String,
        /// How it differs, and what would change it.
        how: String,
    },
    /// A new user is whoever first opens their link.
    Link(UserLink),
    /// All is as the manifest says.
    Done {
        /// How many changes were made; 0 means there was nothing to do.
        changes: usize,
    },
    /// It failed. Everything that this deployment made before is undone, or is named here as left.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// What a rollback of a pool did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RolledBack {
    /// The revision that it had.
    pub from: String,
    /// The revision that machines take at their next start.
    pub to: String,
}

/// What a collection removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Collected {
    /// Bases, by id.
    pub bases: Vec<String>,
    /// Revisions of images.
    pub revisions: Vec<String>,
}

/// What `node scrub` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ScrubReport {
    /// How many revisions of images, bases and snapshots were read.
    pub checked: usize,
    /// Those that are not what was written.
    pub damaged: Vec<Damaged>,
}

/// Something at rest that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Damaged {
    /// What: `revision 0123…`, `base 0123…`, or the address of an instance, whose snapshot it is.
    pub what: String,
    /// What is wrong with it, and what follows.
    pub detail: String,
}

/// A line of `tenant list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantSummary {
    /// Its id.
    pub id: TenantId,
    /// Its network number.
    pub net_id: NetId,
    /// Its subnet.
    pub subnet: TenantSubnet,
    /// Pools.
    pub pools: usize,
    /// Instances by state.
    pub instances: BTreeMap<String, usize>,
}

/// `tenant info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantInfo {
    /// What `tenant list` says.
    #[serde(flatten)]
    pub summary: TenantSummary,
    /// Its limits.
    pub quotas: Quotas,
    /// Its pools.
    pub pool_ids: Vec<PoolId>,
    /// Ports of the host that lead to it.
    pub publish: Vec<Publish>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Names of its secrets, as `scope/KEY`.
    pub secrets: Vec<String>,
    /// Where the services outside are for it.
    pub endpoints: Endpoints,
    /// Since when, in seconds since 1970.
    pub created_at: u64,
}

/// A line of `pool list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolSummary {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub id: PoolId,
    /// What its machines are for.
    pub role: Role,
    /// Its image.
    pub image: String,
    /// Revision of the image that new starts take.
    pub revision: Option<String>,
    /// Instances by state.
    pub instances: BTreeMap<String, usize>,
}

/// `pool info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolInfo {
    /// What `pool list` says.
    #[serde(flatten)]
    pub summary: PoolSummary,
    /// Everything that is wanted of it.
    pub spec: PoolSpec,
}

/// What was destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Destroyed {
    /// Whole addresses.
    pub destroyed: Vec<String>,
}

/// One entry of a tenant's audit log: each names the hash of the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// Counts from 1.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What it is about, as an address.
    pub subject: String,
    /// What happened: `InstanceStarted`, `WakeRefused`, …
    pub kind: String,
    /// In words.
    pub detail: String,
    /// SHA-256 over the entry before and this one's content, in hex.
    pub hash: String,
}

/// What `net verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetReport {
    /// How many things were looked at.
    pub checked: usize,
    /// What is not as it should be.
    pub findings: Vec<NetFinding>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetFinding {
    /// Which: `tap tn3i4 of alice`.
    pub object: String,
    /// How it should be.
    pub expected: String,
    /// How it is.
    pub found: String,
    /// What to do.
    pub remedy: String,
}
