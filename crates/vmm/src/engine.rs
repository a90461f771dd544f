//! What an engine is: the one interface behind which machines are started, put to sleep and woken.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use mvm_model::MacAddr;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::ended::{Ended, Exit};
use crate::error::Result;
use crate::process::ProcessIdentity;
use crate::shape::Shape;
use crate::snapshot::{BaseFacts, BaseInfo, Restore, SnapshotFacts, SnapshotInfo, SnapshotOptions};

/// A machine as it is to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Name of the process and the cgroup, of letters, digits and hyphens; unique on the host.
    pub name: String,
    /// Processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// What its memory is a private copy of.
    pub memory: MemoryBase,
    /// The kernel, an uncompressed ELF file that `uid` can read.
    pub kernel: PathBuf,
    /// The initrd, which `uid` can read.
    pub initrd: PathBuf,
    /// Added to the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// `vda`: a file that is never written. Its size is a multiple of 512 bytes.
    pub rootfs: PathBuf,
    /// `vdb`: the machine's own file. Its size is a multiple of 512 bytes.
    pub data: PathBuf,
    /// The network device's address. A woken guest sets its own.
    pub mac: MacAddr,
    /// The machine's own folder, for sockets and logs; made with mode 0700 if missing. At most 80 bytes long.
    pub run_dir: PathBuf,
    /// Uid and gid of the VMM: not root's, and no other machine's, as equal users may signal and trace one another.
    pub uid: u32,
}

/// What a machine's memory is a private copy of. (Pages that it has not written cost nothing in a snapshot.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryBase {
    /// Zeros: anonymous memory, which no file and so no other machine shares.
    Empty,
    /// A base, which other machines map too.
    Shared {
        /// Its id.
        id: String,
        /// Its folder.
        folder: PathBuf,
        /// The node of the read-only block device that its memory is behind.
        node: PathBuf,
    },
    /// A flat memory that is this machine's alone.
    Own {
        /// Its folder.
        folder: PathBuf,
    },
}

impl MemoryBase {
    /// The id of the base, if it is one.
    pub fn id(&self) -> Option<String> {
        match self {
            Self::Shared { id, .. } => Some(id.clone()),
            Self::Empty | Self::Own { .. } => None,
        }
    }
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With its kernel.
    Cold,
    /// With [`Machine::restore`].
    Restore,
    /// Ahead of the machine that it will be, with a stand-in for a data disk of this size: [`Machine::assign`].
    Spare {
        /// Bytes of the data disk.
        data_bytes: u64,
    },
}

/// What a machine's VMM takes of the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Resident bytes.
    pub resident: u64,
    /// Resident bytes, those shared with others counted by their share.
    pub proportional: u64,
}

/// A program that runs machines.
#[async_trait]
pub trait Engine: Send + Sync {
    /// The shape a machine of this spec would have now.
    ///
    /// # Errors
    /// If its disks cannot be examined.
    fn shape(&self, spec: &MachineSpec) -> Result<Shape>;

    /// The shape with a data disk of another size than the spec's.
    ///
    /// # Errors
    /// If its root file system cannot be examined.
    fn shape_with(&self, spec: &MachineSpec, data_bytes: u64) -> Result<Shape>;

    /// Starts the VMM. Its guest waits, with the network link down, for [`Machine::cont`].
    ///
    /// For [`Start::Restore`] the order is: launch, connect the control socket, restore, cont.
    ///
    /// # Errors
    /// If it did not come up; then nothing is left of it.
    async fn launch(
        &self,
        spec: &MachineSpec,
        tap: Option<OwnedFd>,
        start: Start,
    ) -> Result<Box<dyn Machine>>;

    /// The live process of a machine of this spec, whether or not whoever launched it lived to record it.
    ///
    /// # Errors
    /// If the run folder cannot be read.
    fn find(&self, spec: &MachineSpec) -> Result<Option<ProcessIdentity>>;

    /// Takes up a machine that an earlier agent started. `shape` is the one it was launched with: the engine's binary may
    /// have been replaced since, but not the one that runs.
    ///
    /// # Errors
    /// [`Error::Gone`](crate::Error::Gone) if it does not run any more.
    async fn reattach(
        &self,
        spec: &MachineSpec,
        shape: Shape,
        identity: &ProcessIdentity,
    ) -> Result<Box<dyn Machine>>;

    /// Removes what a machine that has ended leaves on the host: sockets, its process's record and cgroups. Logs stay. To be called
    /// where nobody held the machine when it ended; doing it twice is fine.
    ///
    /// # Errors
    /// If the host's mounts cannot be listed.
    fn clear(&self, spec: &MachineSpec) -> Result<()>;
}

/// A machine with a process. Dropping it changes nothing for the machine.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Its process, to be recorded for [`Engine::reattach`].
    fn identity(&self) -> &ProcessIdentity;

    /// The Unix socket of its port `mvm.control`. One connection at a time; it can be connected again.
    fn control_socket(&self) -> &Path;

    /// The file with its serial console's output, see [`trim_console`](crate::trim_console).
    fn console(&self) -> &Path;

    /// Controllers that the host lacks, so that the machine is not limited by them.
    fn missing_limits(&self) -> &[String];

    /// Makes a spare the machine of this spec: its data disk becomes the spec's, and it is found in the spec's run folder, to
    /// which the caller has moved its own. Name, uid, processors, memory and root file system are as they were launched.
    ///
    /// # Errors
    /// If the disk cannot be handed over; then it is good only for [`kill`](Self::kill).
    async fn assign(self: Box<Self>, spec: &MachineSpec, shape: Shape) -> Result<Box<dyn Machine>>;

    /// Loads a snapshot or a base into a machine launched for that, and checks it to the end. The guest stays paused with
    /// its link down.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) and others; then the machine is good only for [`kill`](Self::kill).
    async fn restore(&self, restore: Restore) -> Result<()>;

    /// Sets the network link up or down.
    ///
    /// # Errors
    /// If the VMM does not answer.
    async fn set_link(&self, up: bool) -> Result<()>;

    /// Stops the processors; what was on its way to the disks gets there.
    ///
    /// # Errors
    /// If the VMM does not answer.
    async fn pause(&self) -> Result<()>;

    /// Lets the processors run: for the first time or again, also after [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// If the VMM does not answer.
    async fn cont(&self) -> Result<()>;

    /// Whether the processors run.
    ///
    /// # Errors
    /// If the VMM does not answer.
    async fn is_running(&self) -> Result<bool>;

    /// Writes a paused machine's snapshot to a folder that does not exist yet, durably; the data disk is flushed
    /// first. The machine stays paused: the caller commits the sleep and kills it, or lets it run again.
    ///
    /// # Errors
    /// If it is not paused, or something could not be written; then there is no such folder.
    async fn snapshot(
        &self,
        folder: &Path,
        facts: SnapshotFacts,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo>;

    /// Makes a base of a paused machine that was started cold, in a folder below `bases` that is named by its id, durably.
    /// The machine is then good only for [`kill`](Self::kill).
    ///
    /// # Errors
    /// If it is not paused, or something could not be written; then there is no such folder.
    async fn make_base(&self, bases: &Path, facts: BaseFacts) -> Result<BaseInfo>;

    /// Ends the VMM in order, with its disks flushed; kills it if that takes longer than `patience`.
    /// The guest is not asked: the caller does that before.
    ///
    /// # Errors
    /// If even killing fails.
    async fn quit(&self, patience: Duration) -> Result<Ended>;

    /// Kills the VMM and waits for its end.
    ///
    /// # Errors
    /// If it may not be killed.
    async fn kill(&self) -> Result<Ended>;

    /// Holds the machine's end as soon as there is one, whoever caused it.
    fn ended(&self) -> watch::Receiver<Option<Ended>>;

    /// What it takes of the host's memory.
    ///
    /// # Errors
    /// If it has ended.
    async fn memory_usage(&self) -> Result<MemoryUsage>;

    /// Waits for the end.
    async fn wait(&self) -> Ended {
        let mut ended = self.ended();
        let found = ended.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        found.unwrap_or(Ended { exit: Exit::StatusUnknown, shutdown: None })
    }
}
