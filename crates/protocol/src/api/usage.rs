//! What machines, and the node, take: `instance stats`, `node info|stats|disk`.

use std::collections::BTreeMap;

use mvm_model::{InstanceId, InstanceState, PoolId, TenantId};
use serde::{Deserialize, Serialize};

/// What an instance takes of the host. What only a VMM has is absent where there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstanceStats {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// Its id.
    pub id: InstanceId,
    /// Its state.
    pub state: InstanceState,
    /// Its VMM's process.
    pub pid: Option<u32>,
    /// The memory that its guest has, in MiB.
    pub mem_mib: u32,
    /// Memory of its VMM, what it shares with others counted in full.
    pub resident_bytes: Option<u64>,
    /// Memory of its VMM, what it shares with others counted by its share.
    pub proportional_bytes: Option<u64>,
    /// CPU time of its VMM since that started, in seconds.
    pub cpu_seconds: Option<f64>,
    /// CPU over the half second of the measurement, in percent of one core.
    pub cpu_percent: Option<f64>,
    /// Running since its last start or wake, in seconds.
    pub uptime_seconds: Option<u64>,
    /// What its data disk takes on the host's disk.
    pub data_disk_bytes: u64,
    /// What its snapshot takes on the host's disk.
    pub snapshot_bytes: u64,
}

/// A folder and the file system that it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Folder {
    /// Where.
    pub path: String,
    /// What the file system can take yet.
    pub free_bytes: u64,
    /// What it can hold.
    pub total_bytes: u64,
}

/// `node info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// The host's name.
    pub host: String,
    /// Version of mvm.
    pub version: String,
    /// The host's kernel.
    pub kernel: String,
    /// The processor's name.
    pub cpu_model: String,
    /// Cores that mvm may use.
    pub cores: usize,
    /// The host's memory.
    pub memory_bytes: u64,
    /// What of it programs could take without swapping.
    pub available_bytes: u64,
    /// Engine and its version, and how it runs machines: `qemu 7.2.22 (emulation)`.
    pub engine: String,
    /// Where everything is that is kept.
    pub data_dir: Folder,
    /// Where sockets are, and what a reboot may forget.
    pub run_dir: Folder,
    /// Tenants.
    pub tenants: usize,
    /// Instances by state.
    pub instances: BTreeMap<String, usize>,
}

/// `node stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeStats {
    /// Processes that run or wait for the disk, on average over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// The host's processors over the half second of the measurement, in percent of all of them.
    pub cpu_percent: f64,
    /// The host's memory.
    pub memory_bytes: u64,
    /// What of it programs could take without swapping.
    pub available_bytes: u64,
    /// All VMMs together.
    pub vmms: VmmStats,
    /// The agent itself.
    pub agent: AgentStats,
    /// Instances by state.
    pub instances: BTreeMap<String, usize>,
    /// How often a minimum runtime of a pool made a difference since the agent's start.
    pub minimums: MinimumStats,
    /// The last start of each machine that runs and came to run since the agent's start, by how it did.
    pub starts: Vec<StartStats>,
}

/// How often a minimum runtime made a difference; the audit log has each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MinimumStats {
    /// A machine that would have been put to sleep had to run for longer: once a run (`TransitionDeferred`).
    pub deferred: u64,
    /// A person had one stopped, paused or put to sleep before its time was over (`MinRuntimeOverridden`).
    pub overridden: u64,
}

/// What all VMMs take together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmmStats {
    /// How many were measured.
    pub count: usize,
    /// Their memory; what they share is counted once.
    pub proportional_bytes: u64,
    /// CPU time of those that live, in seconds.
    pub cpu_seconds: f64,
    /// CPU over the half second of the measurement, in percent of one core.
    pub cpu_percent: f64,
}

/// What the agent takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AgentStats {
    /// Its process.
    pub pid: u32,
    /// Its memory.
    pub resident_bytes: u64,
    /// Its CPU time, in seconds.
    pub cpu_seconds: f64,
    /// CPU over the half second of the measurement, in percent of one core.
    pub cpu_percent: f64,
    /// Since its start, in seconds.
    pub uptime_seconds: u64,
}

/// How long starts of one kind took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StartStats {
    /// `cold boot`, `clone`, `wake`.
    pub how: String,
    /// How many.
    pub count: usize,
    /// From the request until the guest had confirmed its identity.
    pub confirmed_ms: Spread,
    /// From the request to ready.
    pub total_ms: Spread,
}

/// How long something takes, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Spread {
    /// Half of them took no longer.
    pub median: f64,
    /// 95 of 100 took no longer.
    pub p95: f64,
}

/// `node disk`: what is under the data folder, by blocks that are really taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeDisk {
    /// The data folder.
    pub data_dir: Folder,
    /// Images, and the packages they are built from.
    pub images_bytes: u64,
    /// Bases that machines are cloned from.
    pub bases_bytes: u64,
    /// By tenant.
    pub tenants: Vec<TenantDisk>,
    /// Everything else: the store, for one.
    pub other_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// What a tenant's instances take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantDisk {
    /// The tenant.
    pub tenant: TenantId,
    /// Its instances.
    pub instances: usize,
    /// Their data disks.
    pub data_disk_bytes: u64,
    /// Their snapshots.
    pub snapshot_bytes: u64,
}
