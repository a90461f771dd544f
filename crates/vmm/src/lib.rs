//! Starts, snapshots and ends virtual machines.
//!
//! [`Engine`] and [`Machine`] are the interface; [`QemuEngine`] is the engine. A sleep and a wake go so:
//!
//! ```no_run
//! # use mvm_vmm::*;
//! # async fn sleep_and_wake(
//! #     engine: &dyn Engine, machine: Box<dyn Machine>, spec: &MachineSpec, facts: SnapshotFacts, options: &SnapshotOptions, expected: Expected,
//! # ) -> Result<()> {
//! # let folder = std::path::Path::new("/var/lib/mvm/sleep");
//! machine.pause().await?;
//! let info = machine.snapshot(folder, facts, options).await?;
//! // … the caller commits `info` …
//! machine.kill().await?;
//!
//! let snapshot = Snapshot::open(folder, &options.own, &expected)?;
//! let machine = engine.launch(spec, None, Start::Restore).await?;
//! let control = tokio::net::UnixStream::connect(machine.control_socket()).await;
//! machine.restore(snapshot.restore()).await?;
//! // … the caller commits that the snapshot is consumed …
//! machine.cont().await?;
//! # Ok(())
//! # }
//! ```
//! Nothing here decides when to do what, and nothing is remembered beyond the process: the caller does both.

mod accel;
mod block_device;
pub mod cgroup;
mod console;
mod ended;
mod engine;
mod error;
mod flat;
mod launch;
mod memory;
mod process;
mod qemu;
mod qmp;
pub mod requirements;
mod shape;
mod snapshot;
mod sparse;
mod sys;

pub use accel::{Accel, AccelProbe};
pub use block_device::BlockDevice;
pub use cgroup::remove_cgroup;
pub use console::trim_console;
pub use ended::{Ended, Exit, Shutdown};
pub use engine::{Engine, Machine, MachineSpec, MemoryBase, MemoryUsage, Start};
pub use error::{Error, Result};
pub use flat::FlatCheck;
pub use launch::{LAUNCH_ARGUMENT, Launcher, launcher_main};
pub use process::{ProcessIdentity, boot_id, kill_process};
pub use qemu::{Detection, QemuEngine, recorded_process};
pub use qmp::QmpError;
pub use shape::{Device, EngineVersion, Misfit, Shape};
pub use snapshot::{
    Base, BaseExpected, BaseFacts, BaseInfo, Cipher, Expected, FileIdentity, Refusal, RefusalReason, Restore,
    Rule, Snapshot, SnapshotFacts, SnapshotInfo, SnapshotMemory, SnapshotOptions, remove as remove_kept,
};
