//! Starts, snapshots and ends virtual machines.
//!
//! [`Engine`] and [`Machine`] are the interface; [`QemuEngine`] is the engine. A sleep and a wake go so:
//!
//! ```no_run
//! # use mvm_vmm::*;
//! # async fn sleep_and_wake(
//! #     engine: &dyn Engine, machine: Box<dyn Machine>, spec: &MachineSpec, facts: SnapshotFacts, expected: Expected,
//! # ) -> Result<()> {
//! # let folder = std::path::Path::new("/var/lib/mvm/sleep");
//! machine.pause().await?;
//! let info = machine.snapshot(folder, facts).await?;
//! // … the caller commits `info` …
//! machine.kill().await?;
//!
//! let snapshot = Snapshot::open(folder, &expected)?;
//! let machine = engine.launch(spec, None, Start::Restore).await?;
//! let control = tokio::net::UnixStream::connect(machine.control_socket()).await;
//! machine.restore(snapshot).await?;
//! // … the caller commits that the snapshot is consumed …
//! machine.cont().await?;
//! # Ok(())
//! # }
//! ```
//! Nothing here decides when to do what, and nothing is remembered beyond the process: the caller does both.

mod accel;
pub mod cgroup;
mod console;
mod ended;
mod engine;
mod error;
mod launch;
mod memory;
mod process;
mod qemu;
mod qmp;
mod shape;
mod snapshot;
mod sys;

pub use accel::{Accel, AccelProbe};
pub use console::trim_console;
pub use ended::{Ended, Exit, Shutdown};
pub use engine::{Engine, Machine, MachineSpec, MemoryBase, MemoryUsage, Start};
pub use error::{Error, Result};
pub use launch::{LAUNCH_ARGUMENT, Launcher, launcher_main};
pub use process::{ProcessIdentity, boot_id, kill_process};
pub use qemu::{Detection, QemuEngine, recorded_process};
pub use qmp::QmpError;
pub use shape::{Device, EngineVersion, Misfit, Shape};
pub use snapshot::{
    Cipher, DiskIdentity, Expected, Refusal, RefusalReason, Rule, Snapshot, SnapshotFacts, SnapshotInfo,
    remove as remove_snapshot,
};
