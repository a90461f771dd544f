//! The root folder a VMM sees: its libraries and data, the kernel, four devices, all read-only.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, chownat, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use super::{MemorySource, Plan};
use crate::error::{Doing, Result};

/// Where programs and libraries are. What is a link on the host (merged /usr) becomes the same link.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache"];
/// Name, major and minor number of the devices that every VMM gets.
const DEVICES: [(&str, u32, u32); 3] = [("null", 1, 3), ("zero", 1, 5), ("urandom", 1, 9)];
const KVM: (&str, u32, u32) = ("kvm", 10, 232);

/// Builds the root folder and makes it this process's. Nothing of the old one stays reachable.
pub(super) fn enter(plan: &Plan) -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "make mounts private".into())?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", &plan.root, "tmpfs", flags, c"size=1m,nr_inodes=256,mode=0755")
        .doing(|| format!("mount a root folder on {}", plan.root.display()))?;
    for path in SYSTEM {
        show_system(&plan.root, Path::new(path))?;
    }
    for (from, to) in &plan.visible {
        bind_read_only(from, &inside(&plan.root, to))?;
    }
    make_devices(plan)?;
    show_memory(plan)?;
    switch_to(&plan.root)?;
    mount_remount("/", flags | MountFlags::RDONLY, c"").doing(|| "make the root folder read-only".into())
}

/// Where a path of the new root is for now.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn show_system(root: &Path, path: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let to = inside(root, path);
    if !found.is_symlink() {
        return bind_read_only(path, &to);
    }
    let target = fs::read_link(path).doing(|| format!("read the link {}", path.display()))?;
    symlink(target, &to).doing(|| format!("make the link {}", to.display()))
}

/// QEMU before 8.2 opens what it copies memory from for writing, though it never does.
fn show_memory(plan: &Plan) -> Result<()> {
    match &plan.memory {
        None => Ok(()),
        Some((MemorySource::Device { number: (major, minor), folder }, to)) => {
            make_folder(folder)?;
            let name = to.file_name().unwrap_or_default();
            make_node(plan, &folder.join(name), FileType::BlockDevice, makedev(*major, *minor))?;
            let to = inside(&plan.root, to.parent().unwrap_or(to));
            bind(folder, &to)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
            mount_remount(&to, flags, c"").doing(|| format!("show {} to the VMM", folder.display()))
        }
        Some((MemorySource::File(from), to)) => {
            let to = inside(&plan.root, to);
            bind(from, &to)?;
            let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount_remount(&to, flags, c"").doing(|| format!("show {} to the VMM", from.display()))
        }
    }
}

fn bind_read_only(from: &Path, to: &Path) -> Result<()> {
    bind(from, to)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(to, flags, c"").doing(|| format!("show {} to the VMM", from.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("show {} to the VMM", from.display());
    if from.is_dir() {
        make_folder(to)?;
    } else {
        to.parent().map_or(Ok(()), make_folder)?;
        File::create(to).doing(doing)?;
    }
    mount_bind(from, to).doing(doing)
}

fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .doing(|| format!("make the folder {}", path.display()))
}

/// Nodes of its own rather than the host's, whose mode and owner udev may change.
fn make_devices(plan: &Plan) -> Result<()> {
    let folder = plan.root.join("dev");
    make_folder(&folder)?;
    for (name, major, minor) in DEVICES.into_iter().chain(plan.kvm.then_some(KVM)) {
        make_node(plan, &folder.join(name), FileType::CharacterDevice, makedev(major, minor))?;
    }
    Ok(())
}

fn make_node(plan: &Plan, node: &Path, kind: FileType, device: u64) -> Result<()> {
    let doing = || format!("make the device {}", node.display());
    mknodat(CWD, node, kind, Mode::RUSR | Mode::WUSR, device).doing(doing)?;
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.uid));
    chownat(CWD, node, Some(uid), Some(gid), AtFlags::empty()).doing(doing)
}

fn switch_to(root: &Path) -> Result<()> {
    let doing = || "enter the root folder".to_owned();
    rustix::process::chdir(root).doing(doing)?;
    // The old root is put on top of the new one, and then taken off.
    rustix::process::pivot_root(".", ".").doing(doing)?;
    unmount(".", UnmountFlags::DETACH).doing(doing)?;
    rustix::process::chdir("/").doing(doing)
}
