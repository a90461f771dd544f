//! The privileged hands of an agent: they launch and end machines, make disks and networks, build images.
//!
//! Nothing here decides; the agent does, and asks by a [`Request`]. Requests and replies can be serialized, so that the
//! hands can move into a process of their own. Some things hand over more than data and stand beside them: events of
//! machines that ended, connections into a tenant's namespace, and a build's progress; and so do data disks that are read or
//! written as files.
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | what can be asked, and the typed way to ask it |
//! | `machines` | VMMs: their launch, their channels, their end |
//! | `launching` | what they are started with, and what is written down of it |
//! | `engine` | which VMM there is and how it runs guests on this host |
//! | `bases` | what machines begin from |
//! | `spares` | VMMs started ahead |
//! | `nameless` | what VMMs are called that are no instance's yet |
//! | `rest` | whether what is kept of machines' memory is whole |
//! | `disks` | data disks: made, read, replaced |
//! | `strays` | what an earlier agent left that nobody owns |
//! | [`requirements`] | what all of it needs of this host, before there is an agent too |
//! | `paths` | where things are |

mod bases;
mod disks;
mod engine;
mod error;
mod host;
mod launching;
mod machines;
mod nameless;
mod paths;
pub mod request;
mod requirements;
mod rest;
mod spares;
mod strays;

pub use bases::BaseLaunch;
pub use disks::NewDisk;
pub use error::HostError;
pub use host::{Host, HostConfig, HostEvent, MachineEnded, boot_id, group_id};
pub use mvm_image::{BuildStep, ImageSource};
pub use mvm_network::{
    Expected as ExpectedNetwork, Finding, NodeTag, PortSpec, ResolverSockets, TenantNetwork, Uplink,
    may_be_told,
};
pub use mvm_vmm::{
    BaseFacts, BaseInfo, Ended, MemoryUsage, Misfit, ProcessIdentity, Shape, SnapshotFacts, SnapshotInfo,
    SnapshotMemory,
};
pub use request::{AtRest, Damage, Launch, LaunchKind, Launched, Reply, Request};
pub use requirements::requirements;
pub use spares::SpareOrder;
