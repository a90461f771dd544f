//! The engine QEMU: any machine, with KVM where it works, in emulation where not.

mod arguments;
mod detect;
mod machine;
mod start;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;

pub use detect::Detection;

use crate::accel::{Accel, AccelProbe};
use crate::cgroup::Cgroup;
use crate::engine::{Engine, Machine, MachineSpec, Start};
use crate::error::{Doing, Error, Result, blocking};
use crate::launch::Launcher;
use crate::process::ProcessIdentity;
use crate::shape::{Device, EngineVersion, Shape};

/// Runs machines with the QEMU that was detected.
#[derive(Debug, Clone)]
pub struct QemuEngine {
    detection: Detection,
    accel: Accel,
    launcher: Launcher,
}

impl QemuEngine {
    /// The engine from what was found out about the host.
    pub fn new(detection: Detection, probe: &AccelProbe, launcher: Launcher) -> Self {
        Self { detection, accel: probe.accel, launcher }
    }

    /// What was found out about QEMU.
    pub fn detection(&self) -> &Detection {
        &self.detection
    }

    /// How guests run.
    pub fn accel(&self) -> Accel {
        self.accel
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn shape(&self, spec: &MachineSpec) -> Result<Shape> {
        self.shape_with(spec, size_of(&spec.data)?)
    }

    fn shape_with(&self, spec: &MachineSpec, data_bytes: u64) -> Result<Shape> {
        let disk = |bytes: u64| Device { kind: arguments::DISK.into(), bytes: Some(bytes) };
        let other = |kind: &str| Device { kind: kind.into(), bytes: None };
        Ok(Shape {
            engine: EngineVersion {
                name: "qemu".into(),
                version: self.detection.version.clone(),
                sha256: self.detection.sha256.clone(),
            },
            accelerator: self.accel,
            host_cpu: self.detection.host_cpu.clone(),
            guest_cpu: arguments::guest_cpu(self.accel).into(),
            tsc_khz: self.detection.tsc_khz,
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            devices: vec![
                disk(size_of(&spec.rootfs)?),
                disk(data_bytes),
                other(arguments::NETWORK),
                other(arguments::SERIAL),
            ],
        })
    }

    async fn launch(
        &self,
        spec: &MachineSpec,
        tap: Option<OwnedFd>,
        start: Start,
    ) -> Result<Box<dyn Machine>> {
        Ok(Box::new(start::launch(self, spec, tap, start).await?))
    }

    fn find(&self, spec: &MachineSpec) -> Result<Option<ProcessIdentity>> {
        recorded_process(&spec.run_dir)
    }

    async fn reattach(
        &self,
        spec: &MachineSpec,
        shape: Shape,
        identity: &ProcessIdentity,
    ) -> Result<Box<dyn Machine>> {
        let process = identity.open()?.ok_or(Error::Gone { pid: identity.pid })?;
        let data = open_data(spec)?;
        let cgroup = Cgroup::existing(&spec.name)?;
        // The earlier agent may have died before it had.
        let (joining, pid) = (cgroup.clone(), identity.pid);
        blocking(move || joining.join(pid)).await?;
        // What has none is not attached to: it is nobody's machine.
        let with_tap = true;
        let parts = machine::Parts { identity: identity.clone(), process, data, cgroup, with_tap };
        Ok(Box::new(machine::QemuMachine::attach(parts, spec, shape).await?))
    }

    fn clear(&self, spec: &MachineSpec) -> Result<()> {
        for file in [start::MONITOR, start::CONTROL, start::IDENTITY] {
            // What is not there needs no removal.
            let _ = std::fs::remove_file(spec.run_dir.join(file));
        }
        Cgroup::existing(&spec.name)?.remove();
        Ok(())
    }
}

fn size_of(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).doing(|| format!("examine {}", path.display()))?.len())
}

/// The process of the VMM that was launched last in a run folder, if it still lives: also one that is only about to
/// become a VMM and looks like none yet.
///
/// # Errors
/// If what is recorded cannot be read.
pub fn recorded_process(run_dir: &Path) -> Result<Option<ProcessIdentity>> {
    ProcessIdentity::recorded(&run_dir.join(start::IDENTITY))
}

/// The agent's own descriptor of the data disk: what it flushes is what the VMM wrote.
fn open_data(spec: &MachineSpec) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).open(&spec.data).doing(|| format!("open {}", spec.data.display()))
}
