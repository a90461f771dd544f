//! `status`: a page about one deployment, or about the node.

use std::collections::BTreeMap;

use mvm_model::manifest::Publish;
use mvm_model::{DesiredCounts, TenantId};
use serde::{Deserialize, Serialize};

use super::{InstanceSummary, NodeInfo, PoolSummary, StartReport, TenantSummary};

/// How a tenant is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantStatus {
    /// What `tenant list` says.
    #[serde(flatten)]
    pub summary: TenantSummary,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortStatus>,
    /// Its pools.
    pub pool_status: Vec<PoolStatus>,
    /// Its machines.
    pub machines: Vec<MachineStatus>,
    /// When a message last came for one of its machines, as far as is known.
    pub last_message: Option<LastMessage>,
    /// Its wakes from sleep in the last 24 hours.
    pub wakes: Wakes,
    /// What is wrong, and what to do about it.
    pub troubles: Vec<Trouble>,
}

/// A port of the host that leads to machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortStatus {
    /// Where it is, and where it leads to.
    #[serde(flatten)]
    pub publish: Publish,
    /// Whether the agent listens there.
    pub open: bool,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolStatus {
    /// What `pool list` says.
    #[serde(flatten)]
    pub summary: PoolSummary,
    /// How many instances are wanted, and in which state new ones begin.
    pub desired: DesiredCounts,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MachineStatus {
    /// What `instance list` says.
    #[serde(flatten)]
    pub summary: InstanceSummary,
    /// Why it is in its state: why it failed, or why a wake became a cold start.
    pub reason: Option<String>,
    /// Holds that keep it awake.
    pub holds: usize,
    /// How its last start or wake went.
    pub last_start: Option<StartReport>,
    /// When a message last came for it, in milliseconds since 1970. Messages to a machine that ran are known since the agent's
    /// start only.
    pub last_message_ms: Option<u64>,
    /// When it is woken for what its workload has planned, unless something else wakes it before, in seconds since 1970.
    pub wake_at: Option<u64>,
}

/// The last message to any machine of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LastMessage {
    /// The machine's address.
    pub instance: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Wakes from sleep in the last 24 hours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Wakes {
    /// How many.
    pub count: usize,
    /// Of these, those for a message.
    pub for_messages: usize,
    /// How many went by a cold start, because the snapshot was refused or failed.
    pub cold: usize,
    /// Half of those from a snapshot took no longer, in milliseconds.
    pub median_ms: Option<f64>,
    /// The slowest of them, in milliseconds.
    pub slowest_ms: Option<f64>,
    /// When the last one was, in milliseconds since 1970.
    pub last_ms: Option<u64>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trouble {
    /// What.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// How the node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeStatus {
    /// What `node info` says.
    #[serde(flatten)]
    pub node: NodeInfo,
    /// Since when the agent runs, in seconds since 1970.
    pub started_at: u64,
    /// Its tenants.
    pub deployments: Vec<DeploymentLine>,
    /// What is wrong with the node itself, and what to do about it.
    pub troubles: Vec<Trouble>,
}

/// A tenant, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeploymentLine {
    /// Its id.
    pub tenant: TenantId,
    /// Its instances by state.
    pub instances: BTreeMap<String, usize>,
    /// When a message last came for one of them, in milliseconds since 1970.
    pub last_message_ms: Option<u64>,
    /// How many things are wrong with it: its own status says which. Its network is not looked at for this.
    pub troubles: usize,
}
