//! From a spec to a process that waits.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, major, memfd_create, minor};

use super::arguments::{self, INITRD, KERNEL, OWN_MEMORY, SHARED_MEMORY};
use super::machine::{Parts, QemuMachine};
use super::{QemuEngine, open_data};
use crate::accel::Accel;
use crate::cgroup::{Cgroup, Limits};
use crate::console::open_log;
use crate::engine::{Engine, MachineSpec, MemoryBase, Start};
use crate::error::{Doing, Error, Result, blocking};
use crate::launch::{MemorySource, Plan, Started};
use crate::process::ProcessIdentity;
use crate::shape::Shape;

/// Names in the run folder.
pub(super) const MONITOR: &str = "monitor.sock";
pub(super) const CONTROL: &str = "control.sock";
pub(super) const CONSOLE: &str = "console.log";
pub(super) const IDENTITY: &str = "process.json";
const LOG: &str = "vmm.log";
const ROOT: &str = "root";
/// The folder with the node of the base's device, until that is open.
const BASE: &str = "base";

/// The least that the VMM's files may grow to, in bytes: logs and device state.
const LEAST_FILE_LIMIT: u64 = 64 << 20;
/// What the VMM needs beside the guest's memory, in MiB: itself, and page cache enough to work.
const OVERHEAD_MIB: u64 = 256;
/// What the translator needs in addition.
const TRANSLATOR_MIB: u64 = 192;
/// Threads beside the guest's processors.
const THREADS: u32 = 96;

/// Starts the VMM; if anything fails, nothing is left.
pub(super) async fn launch(
    engine: &QemuEngine,
    spec: &MachineSpec,
    tap: Option<OwnedFd>,
    start: Start,
) -> Result<QemuMachine> {
    let (for_preparing, specified) = (engine.clone(), spec.clone());
    let prepared = blocking(move || prepare(&for_preparing, &specified, tap, start)).await;
    let machine = match prepared {
        Ok(prepared) => run(engine, spec, prepared).await,
        Err(error) => Err(error),
    };
    if machine.is_err() {
        engine.clear(spec)?;
    }
    machine
}

struct Prepared {
    plan: Plan,
    descriptors: Vec<OwnedFd>,
    log: File,
    data: File,
    cgroup: Cgroup,
    with_tap: bool,
}

fn prepare(engine: &QemuEngine, spec: &MachineSpec, tap: Option<OwnedFd>, start: Start) -> Result<Prepared> {
    check_name(spec)?;
    make_run_dir(spec)?;
    let (data, for_vmm) = data_disk(spec, start)?;
    let rootfs = File::open(&spec.rootfs).doing(|| format!("open {}", spec.rootfs.display()))?;
    let with_tap = tap.is_some();
    // In the order of `Passed`.
    let mut descriptors: Vec<OwnedFd> = vec![
        listen(&spec.run_dir.join(MONITOR))?.into(),
        listen(&spec.run_dir.join(CONTROL))?.into(),
        rootfs.into(),
        for_vmm.into(),
        open_log(&spec.run_dir.join(CONSOLE))?.into(),
    ];
    descriptors.extend(tap);
    let data_bytes = data.metadata().doing(|| format!("examine {}", spec.data.display()))?.len();
    let log = open_log(&spec.run_dir.join(LOG))?;
    // What an earlier VMM said would mislead.
    log.set_len(0).doing(|| format!("empty {LOG}"))?;
    let cgroup = Cgroup::create(&spec.name, limits(spec, engine.accel()))?;
    let detection = engine.detection();
    let plan = Plan {
        name: spec.name.clone(),
        program: detection.binary.clone(),
        arguments: arguments::arguments(spec, engine.accel(), detection.tsc_khz, with_tap, start),
        uid: spec.uid,
        identity: spec.run_dir.join(IDENTITY),
        root: spec.run_dir.join(ROOT),
        visible: visible(engine, spec),
        memory: memory_source(spec)?,
        kvm: engine.accel() == Accel::Kvm,
        file_size_limit: data_bytes.max(LEAST_FILE_LIMIT),
    };
    Ok(Prepared { plan, descriptors, log, data, cgroup, with_tap })
}

/// The data disk, or what stands in for it until a spare is assigned; and another descriptor of it for the VMM.
fn data_disk(spec: &MachineSpec, start: Start) -> Result<(File, File)> {
    let data = match start {
        Start::Cold | Start::Restore => open_data(spec)?,
        Start::Spare { data_bytes } => {
            let file = memfd_create("mvm-stand-in", MemfdFlags::CLOEXEC).map(File::from);
            let file = file.doing(|| "make a stand-in for a disk".into())?;
            file.set_len(data_bytes).doing(|| "size a stand-in for a disk".into())?;
            file
        }
    };
    let for_vmm = data.try_clone().doing(|| "duplicate a descriptor".into())?;
    Ok((data, for_vmm))
}

/// What the guest's memory is a copy of, and where the VMM sees it.
fn memory_source(spec: &MachineSpec) -> Result<Option<(MemorySource, PathBuf)>> {
    match &spec.memory {
        MemoryBase::Empty => Ok(None),
        MemoryBase::Shared { node, .. } => {
            let device = fs::metadata(node).doing(|| format!("examine {}", node.display()))?.rdev();
            let number = (major(device), minor(device));
            let folder = spec.run_dir.join(BASE);
            // An earlier machine's, whose agent died before it took it away.
            remove_if_there(&folder)?;
            Ok(Some((MemorySource::Device { number, folder }, SHARED_MEMORY.into())))
        }
        MemoryBase::Own { folder } => {
            let file = folder.join(crate::flat::MEMORY);
            chown(&file, Some(spec.uid), Some(spec.uid)).doing(|| format!("hand over {}", file.display()))?;
            Ok(Some((MemorySource::File(file), OWN_MEMORY.into())))
        }
    }
}

fn remove_if_there(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", folder.display())),
    }
}

/// It becomes a part of paths and of QEMU's options.
fn check_name(spec: &MachineSpec) -> Result<()> {
    let name = &spec.name;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !name.is_empty() && name.len() <= 100 && name.bytes().all(plain) {
        return Ok(());
    }
    let reason = "a machine's name has 1 to 100 letters, digits and hyphens".to_owned();
    Err(Error::Launch { name: name.clone(), reason })
}

fn make_run_dir(spec: &MachineSpec) -> Result<()> {
    let root = spec.run_dir.join(ROOT);
    let doing = || format!("make the folder {}", root.display());
    DirBuilder::new().recursive(true).mode(0o700).create(&root).doing(doing)?;
    fs::set_permissions(&spec.run_dir, Permissions::from_mode(0o700)).doing(doing)
}

/// A socket that outlives the agent's connections: the VMM listens on it.
fn listen(path: &Path) -> Result<UnixListener> {
    // An earlier machine's.
    let _ = fs::remove_file(path);
    UnixListener::bind(path).doing(|| format!("listen on {}", path.display()))
}

fn visible(engine: &QemuEngine, spec: &MachineSpec) -> Vec<(std::path::PathBuf, std::path::PathBuf)> {
    let binary = &engine.detection().binary;
    let mut visible = vec![(spec.kernel.clone(), KERNEL.into()), (spec.initrd.clone(), INITRD.into())];
    if !binary.starts_with("/usr") {
        visible.push((binary.clone(), binary.clone()));
    }
    visible
}

fn limits(spec: &MachineSpec, accel: Accel) -> Limits {
    let translator = if accel == Accel::Tcg { TRANSLATOR_MIB } else { 0 };
    Limits {
        memory_bytes: (u64::from(spec.mem_mib) + OVERHEAD_MIB + translator) << 20,
        threads: THREADS + spec.vcpus,
        processors: spec.vcpus,
    }
}

async fn run(engine: &QemuEngine, spec: &MachineSpec, prepared: Prepared) -> Result<QemuMachine> {
    let Prepared { plan, descriptors, log, data, cgroup, with_tap } = prepared;
    let data_bytes = data.metadata().doing(|| "examine the data disk".into())?.len();
    let shape = engine.shape_with(spec, data_bytes)?;
    let started = engine.launcher.start(plan, descriptors, log, cgroup.clone()).await;
    let started = started.map_err(|error| launch_error(spec, error))?;
    let parts = |identity, process| Parts { identity, process, data, cgroup, with_tap };
    match take_up(&started, spec, shape, parts).await {
        Ok(machine) => Ok(machine),
        Err(error) => {
            started.end().await;
            Err(launch_error(spec, error))
        }
    }
}

async fn take_up(
    started: &Started,
    spec: &MachineSpec,
    shape: Shape,
    parts: impl FnOnce(ProcessIdentity, OwnedFd) -> Parts,
) -> Result<QemuMachine> {
    let identity = ProcessIdentity::of(started.pid)?;
    let process = started.process.try_clone().doing(|| "duplicate a descriptor".into())?;
    let machine = QemuMachine::attach(parts(identity, process), spec, shape).await?;
    // A VMM that answers has opened its memory.
    remove_if_there(&spec.run_dir.join(BASE))?;
    machine.set_link_down().await?;
    Ok(machine)
}

/// With the last that the VMM said, as its monitor cannot tell why it did not come up.
fn launch_error(spec: &MachineSpec, error: Error) -> Error {
    if matches!(error, Error::Launch { .. }) {
        return error;
    }
    let log = fs::read_to_string(spec.run_dir.join(LOG)).unwrap_or_default();
    let said = log.trim_end().lines().next_back().unwrap_or("it said nothing");
    Error::Launch { name: spec.name.clone(), reason: format!("{error} ({said})") }
}
