//! What an agent can ask of its host.

mod launch;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use mvm_model::{HostName, InstanceId, NetId, Requirement, Resources, SnapshotCompression, TenantId};
use mvm_network::{Expected, Finding, PortSpec, TenantNetwork, Uplink};
use mvm_vmm::{BaseFacts, BaseInfo, MemoryUsage, ProcessIdentity, Shape, SnapshotFacts, SnapshotInfo};
use serde::{Deserialize, Serialize};

use crate::bases::BaseLaunch;
use crate::spares::SpareOrder;
use crate::{Host, HostError};

pub use launch::{Launch, LaunchKind, Launched};

/// Something privileged to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// What do tenant networks need of this host?
    Preflight,
    /// Find a free pair of link-local addresses.
    ChooseUplink {
        /// Those of other tenants.
        taken: Vec<Uplink>,
    },
    /// Make a tenant's network, or repair it.
    EnsureNetwork(TenantNetwork),
    /// Remove a tenant's network.
    RemoveNetwork(NetId),
    /// Compare networks with what they should be.
    VerifyNetworks(Vec<Expected>),
    /// Compare what is inside one tenant's namespace with how it should be.
    VerifyNetwork(Box<Expected>),
    /// Put a running machine's rules in force anew.
    Admit {
        /// Its tenant's network.
        network: TenantNetwork,
        /// Its port.
        port: PortSpec,
    },
    /// Let a tenant's machines that reach a name reach addresses of it.
    LetReach {
        /// The tenant's network.
        network: TenantNetwork,
        /// The name.
        name: HostName,
        /// Its addresses.
        addresses: Vec<Ipv4Addr>,
        /// For how long.
        lifetime: Duration,
    },
    /// Make an instance's data disk.
    MakeDisk {
        /// The instance.
        instance: InstanceId,
        /// Its size; 0 makes the empty device.
        mib: u64,
    },
    /// Give an instance the data disk that was kept for it, in the place of its own if it has one.
    ReplaceDisk(InstanceId),
    /// Remove an instance's files.
    RemoveMachine(InstanceId),
    /// Start a VMM. Its guest waits.
    Launch(Box<Launch>),
    /// Take up a VMM that an earlier agent started.
    Reattach {
        /// The instance.
        instance: InstanceId,
        /// Its VMM's process.
        process: ProcessIdentity,
        /// Its port as it is wanted now.
        port: PortSpec,
    },
    /// Load the snapshot that a VMM was launched for.
    Restore(InstanceId),
    /// Let the guest run.
    GoOn(InstanceId),
    /// Stop the guest's processors.
    Pause(InstanceId),
    /// Set the network link.
    SetLink {
        /// The instance.
        instance: InstanceId,
        /// Up or down.
        up: bool,
    },
    /// Wait until a machine's own image has been read through: its snapshot cannot be written before.
    AwaitCheck(InstanceId),
    /// Write a paused machine's snapshot.
    Snapshot {
        /// What is recorded with it.
        facts: SnapshotFacts,
        /// How its memory is compressed.
        compression: SnapshotCompression,
    },
    /// Remove an instance's snapshot; not its own image, which its VMM may map.
    DiscardSnapshot(InstanceId),
    /// Remove an instance's own image.
    DiscardOwn(InstanceId),
    /// Tell the shape that a machine would have now.
    Shape {
        /// Revision of its image.
        revision: String,
        /// vCPUs, memory, disk.
        resources: Resources,
    },
    /// Remove a revision of an image.
    RemoveRevision(String),
    /// Start a machine that is to become a base. Its guest waits.
    StartBase(BaseLaunch),
    /// Let the guest of a machine run that is to become a base.
    LetBaseRun(String),
    /// Make a base of a machine that was started for it, and end the machine.
    WriteBase {
        /// The machine's name.
        name: String,
        /// What is recorded with it.
        facts: BaseFacts,
    },
    /// End a machine that was to become a base.
    EndBase(String),
    /// Remove a base.
    RemoveBase(String),
    /// Start and end spares until a pool has so many.
    KeepSpares(SpareOrder),
    /// End the spares of a tenant, or all.
    EndSpares(Option<TenantId>),
    /// End what was started ahead, also for bases, and start nothing ahead any more.
    Close,
    /// Read what is at rest and name what is damaged.
    Scrub(Vec<AtRest>),
    /// Wait for a VMM to end by itself.
    WaitEnd {
        /// The instance.
        instance: InstanceId,
        /// For so long.
        within: Duration,
    },
    /// End a VMM, and take its port away.
    End {
        /// The instance.
        instance: InstanceId,
        /// Its process, where an earlier agent started it.
        process: Option<ProcessIdentity>,
    },
    /// Keep the console's log small.
    TrimConsole(InstanceId),
    /// The last lines of the console's log.
    ConsoleTail(InstanceId),
    /// Read some of the console's log.
    ReadConsole {
        /// The instance.
        instance: InstanceId,
        /// After so many bytes.
        from: u64,
    },
    /// Why did the host end a VMM by itself?
    WhyEnded(InstanceId),
    /// Was a VMM killed?
    WasKilled(InstanceId),
    /// What does a VMM take of the host's memory?
    MemoryUsage(InstanceId),
    /// Remove what nobody owns.
    RemoveStrays {
        /// Instances there are, with their VMMs.
        instances: Vec<(InstanceId, Option<ProcessIdentity>)>,
        /// Those of them that are to have another data disk.
        restores: Vec<InstanceId>,
        /// Networks there are.
        networks: Vec<NetId>,
        /// Bases there are.
        bases: Vec<String>,
        /// Revisions of images that something needs.
        revisions: Vec<String>,
    },
}

/// Something that machines begin or go on from, by what was committed with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AtRest {
    /// A base, by its id.
    Base(String),
    /// An instance's snapshot.
    Snapshot {
        /// The instance.
        instance: InstanceId,
        /// What was committed with its sleep.
        snapshot: SnapshotInfo,
    },
    /// A revision of an image.
    Revision(String),
}

/// Something that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// What.
    pub what: AtRest,
    /// What is wrong with it.
    pub detail: String,
}

/// What came of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// It was done.
    Done,
    /// To Preflight.
    Requirements(Vec<Requirement>),
    /// To ChooseUplink.
    Uplink(Uplink),
    /// To VerifyNetworks and VerifyNetwork.
    Findings(Vec<Finding>),
    /// To Launch.
    Launched(Launched),
    /// To Shape.
    Shape(Shape),
    /// To StartBase: the machine's name.
    BaseStarted(String),
    /// To WriteBase.
    Base(BaseInfo),
    /// To KeepSpares: how many wait.
    Spares(u32),
    /// To Scrub.
    Damages(Vec<Damage>),
    /// To Snapshot.
    Snapshot(SnapshotInfo),
    /// To WaitEnd and WasKilled: whether it did or was.
    Ended(bool),
    /// To ConsoleTail.
    Console(Option<String>),
    /// To ReadConsole: some of it, and how many bytes are before what follows.
    ConsolePiece(Vec<u8>, u64),
    /// To WhyEnded; nothing where it did not.
    Why(Option<String>),
    /// To MemoryUsage.
    MemoryUsage(MemoryUsage),
}

/// Asks one request and takes the one reply that answers it.
macro_rules! ask {
    ($host:expr, $request:expr, $reply:pat => $value:expr) => {
        match $host.call($request).await? {
            $reply => Ok($value),
            _ => Err(HostError::Confused),
        }
    };
}

/// The typed way to ask. Each fails as [`Host::call`] does.
#[allow(clippy::missing_errors_doc)]
impl Host {
    /// What tenant networks need of this host, each tried.
    pub async fn preflight(&self) -> Result<Vec<Requirement>, HostError> {
        ask!(self, Request::Preflight, Reply::Requirements(requirements) => requirements)
    }

    /// A free pair of link-local addresses.
    pub async fn choose_uplink(&self, taken: Vec<Uplink>) -> Result<Uplink, HostError> {
        ask!(self, Request::ChooseUplink { taken }, Reply::Uplink(uplink) => uplink)
    }

    /// Makes a tenant's network, or repairs it.
    pub async fn ensure_network(&self, network: TenantNetwork) -> Result<(), HostError> {
        ask!(self, Request::EnsureNetwork(network), Reply::Done => ())
    }

    /// Removes a tenant's network.
    pub async fn remove_network(&self, net_id: NetId) -> Result<(), HostError> {
        ask!(self, Request::RemoveNetwork(net_id), Reply::Done => ())
    }

    /// What is not as it should be.
    pub async fn verify_networks(&self, expected: Vec<Expected>) -> Result<Vec<Finding>, HostError> {
        ask!(self, Request::VerifyNetworks(expected), Reply::Findings(findings) => findings)
    }

    /// What is not as it should be inside one tenant's namespace.
    pub async fn verify_network(&self, expected: Expected) -> Result<Vec<Finding>, HostError> {
        ask!(self, Request::VerifyNetwork(Box::new(expected)), Reply::Findings(findings) => findings)
    }

    /// Puts a running machine's rules in force anew.
    pub async fn admit(&self, network: TenantNetwork, port: PortSpec) -> Result<(), HostError> {
        ask!(self, Request::Admit { network, port }, Reply::Done => ())
    }

    /// Lets a tenant's machines that reach a name reach addresses of it for so long.
    pub async fn let_reach(
        &self,
        network: TenantNetwork,
        name: HostName,
        addresses: Vec<Ipv4Addr>,
        lifetime: Duration,
    ) -> Result<(), HostError> {
        ask!(self, Request::LetReach { network, name, addresses, lifetime }, Reply::Done => ())
    }

    /// Makes an instance's data disk.
    pub async fn make_disk(&self, instance: InstanceId, mib: u64) -> Result<(), HostError> {
        ask!(self, Request::MakeDisk { instance, mib }, Reply::Done => ())
    }

    /// Gives an instance the data disk that was kept for it; nothing to do where it has it already. Only while nothing uses
    /// its own.
    pub async fn replace_disk(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::ReplaceDisk(instance), Reply::Done => ())
    }

    /// Removes an instance's files.
    pub async fn remove_machine(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::RemoveMachine(instance), Reply::Done => ())
    }

    /// Starts a VMM, whose guest waits for [`Host::go_on`].
    pub async fn launch(&self, launch: Launch) -> Result<Launched, HostError> {
        ask!(self, Request::Launch(Box::new(launch)), Reply::Launched(launched) => launched)
    }

    /// Takes up a VMM that an earlier agent started.
    pub async fn reattach(
        &self,
        instance: InstanceId,
        process: ProcessIdentity,
        port: PortSpec,
    ) -> Result<(), HostError> {
        ask!(self, Request::Reattach { instance, process, port }, Reply::Done => ())
    }

    /// Loads the snapshot that a VMM was launched for; its control channel must be connected.
    pub async fn restore(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::Restore(instance), Reply::Done => ())
    }

    /// Lets the guest run.
    pub async fn go_on(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::GoOn(instance), Reply::Done => ())
    }

    /// Stops the guest's processors.
    pub async fn pause(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::Pause(instance), Reply::Done => ())
    }

    /// Sets the network link.
    pub async fn set_link(&self, instance: InstanceId, up: bool) -> Result<(), HostError> {
        ask!(self, Request::SetLink { instance, up }, Reply::Done => ())
    }

    /// Waits until a machine's own image has been read through, so that its snapshot need not wait for that.
    pub async fn checked(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::AwaitCheck(instance), Reply::Done => ())
    }

    /// Writes a paused machine's snapshot, durably.
    pub async fn snapshot(
        &self,
        facts: SnapshotFacts,
        compression: SnapshotCompression,
    ) -> Result<SnapshotInfo, HostError> {
        ask!(self, Request::Snapshot { facts, compression }, Reply::Snapshot(info) => info)
    }

    /// Removes an instance's own image.
    pub async fn discard_own(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::DiscardOwn(instance), Reply::Done => ())
    }

    /// The shape that a machine would have now.
    pub async fn shape(&self, revision: String, resources: Resources) -> Result<Shape, HostError> {
        ask!(self, Request::Shape { revision, resources }, Reply::Shape(shape) => shape)
    }

    /// Removes a revision of an image.
    pub async fn discard_revision(&self, revision: String) -> Result<(), HostError> {
        ask!(self, Request::RemoveRevision(revision), Reply::Done => ())
    }

    /// Starts a machine that is to become a base; its guest waits. Gives its name.
    pub async fn launch_base(&self, launch: BaseLaunch) -> Result<String, HostError> {
        ask!(self, Request::StartBase(launch), Reply::BaseStarted(name) => name)
    }

    /// Lets its guest run.
    pub async fn go_on_base(&self, name: String) -> Result<(), HostError> {
        ask!(self, Request::LetBaseRun(name), Reply::Done => ())
    }

    /// Makes a base of it, and ends it.
    pub async fn make_base(&self, name: String, facts: BaseFacts) -> Result<BaseInfo, HostError> {
        ask!(self, Request::WriteBase { name, facts }, Reply::Base(info) => info)
    }

    /// Ends it without having made a base.
    pub async fn give_up_base(&self, name: String) -> Result<(), HostError> {
        ask!(self, Request::EndBase(name), Reply::Done => ())
    }

    /// Removes a base.
    pub async fn discard_base(&self, id: String) -> Result<(), HostError> {
        ask!(self, Request::RemoveBase(id), Reply::Done => ())
    }

    /// Has a pool have so many spares. Gives how many there are.
    pub async fn order_spares(&self, order: SpareOrder) -> Result<u32, HostError> {
        ask!(self, Request::KeepSpares(order), Reply::Spares(count) => count)
    }

    /// Ends the spares of a tenant, or all.
    pub async fn discard_spares(&self, tenant: Option<TenantId>) -> Result<(), HostError> {
        ask!(self, Request::EndSpares(tenant), Reply::Done => ())
    }

    /// Ends what was started ahead, also for bases; from now on nothing is.
    pub async fn close(&self) -> Result<(), HostError> {
        ask!(self, Request::Close, Reply::Done => ())
    }

    /// What of this is damaged.
    pub async fn scrub(&self, all: Vec<AtRest>) -> Result<Vec<Damage>, HostError> {
        ask!(self, Request::Scrub(all), Reply::Damages(found) => found)
    }

    /// Removes an instance's snapshot.
    pub async fn discard_snapshot(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::DiscardSnapshot(instance), Reply::Done => ())
    }

    /// Whether a VMM ends by itself within a time.
    pub async fn wait_end(&self, instance: InstanceId, within: Duration) -> Result<bool, HostError> {
        ask!(self, Request::WaitEnd { instance, within }, Reply::Ended(ended) => ended)
    }

    /// Ends a VMM, and takes its port away. Nothing to do where there is none.
    pub async fn end(&self, instance: InstanceId, process: Option<ProcessIdentity>) -> Result<(), HostError> {
        ask!(self, Request::End { instance, process }, Reply::Done => ())
    }

    /// Keeps the console's log small.
    pub async fn trim_console(&self, instance: InstanceId) -> Result<(), HostError> {
        ask!(self, Request::TrimConsole(instance), Reply::Done => ())
    }

    /// The last lines of the console's log.
    pub async fn console_tail(&self, instance: InstanceId) -> Result<Option<String>, HostError> {
        ask!(self, Request::ConsoleTail(instance), Reply::Console(tail) => tail)
    }

    /// Some of the console's log after so many bytes, nothing at its end, and where to go on. A log that was shortened since
    /// goes on at its end.
    pub async fn read_console(&self, instance: InstanceId, from: u64) -> Result<(Vec<u8>, u64), HostError> {
        ask!(self, Request::ReadConsole { instance, from }, Reply::ConsolePiece(text, next) => (text, next))
    }

    /// Why the host ended a VMM by itself, until that is discarded.
    pub async fn why_ended(&self, instance: InstanceId) -> Result<Option<String>, HostError> {
        ask!(self, Request::WhyEnded(instance), Reply::Why(why) => why)
    }

    /// Whether a VMM was ended by a kill from outside, which says nothing about what it was working on.
    pub async fn was_killed(&self, instance: InstanceId) -> Result<bool, HostError> {
        ask!(self, Request::WasKilled(instance), Reply::Ended(killed) => killed)
    }

    /// What a VMM takes of the host's memory.
    pub async fn memory_usage(&self, instance: InstanceId) -> Result<MemoryUsage, HostError> {
        ask!(self, Request::MemoryUsage(instance), Reply::MemoryUsage(usage) => usage)
    }

    /// Removes what nobody owns.
    pub async fn remove_strays(
        &self,
        instances: Vec<(InstanceId, Option<ProcessIdentity>)>,
        restores: Vec<InstanceId>,
        networks: Vec<NetId>,
        bases: Vec<String>,
        revisions: Vec<String>,
    ) -> Result<(), HostError> {
        let request = Request::RemoveStrays { instances, restores, networks, bases, revisions };
        ask!(self, request, Reply::Done => ())
    }

    /// The Unix socket of a machine's control channel.
    pub fn control_socket(&self, instance: InstanceId) -> PathBuf {
        self.paths().run_of(instance).join("control.sock")
    }
}
