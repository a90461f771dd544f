//! A VMM to be started, and one that was.

use mvm_model::{InstanceId, PoolId, Resources, TenantId};
use mvm_network::{PortSpec, TenantNetwork};
use mvm_vmm::{ProcessIdentity, SnapshotInfo};
use serde::{Deserialize, Serialize};

/// A VMM that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Its process.
    pub process: ProcessIdentity,
    /// Whether it had been started ahead.
    pub spare: bool,
}

/// A VMM to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The instance.
    pub instance: InstanceId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// Uid of the VMM.
    pub uid: u32,
    /// Revision of the image.
    pub revision: String,
    /// vCPUs, memory, disk.
    pub resources: Resources,
    /// The tenant's network.
    pub network: TenantNetwork,
    /// The machine's port on it.
    pub port: PortSpec,
    /// How the machine begins.
    pub kind: LaunchKind,
}

/// How a machine begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchKind {
    /// With its kernel.
    Cold,
    /// From a base.
    Clone {
        /// The base's id.
        base: String,
    },
    /// From its snapshot.
    Restore {
        /// What was committed with the sleep.
        snapshot: SnapshotInfo,
        /// The data disk's write epoch.
        disk_epoch: u64,
    },
}
