//! Mounts, and the way from the RAM disk to the root file system.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use crate::console::say;
use crate::error::{Doing as _, Failure, Result};
use crate::machine::places;

const ROOT_DEVICE: &str = "/dev/vda";
const ROOT_DEVICE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that a machine may write over its root, of its memory.
const OVERLAY_SIZE: &CStr = c"mode=0755,size=25%";

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

fn mount_at(kind: &str, target: &str, flags: MountFlags, options: &CStr) -> Result<()> {
    fs::create_dir_all(target).doing(format_args!("making {target}"))?;
    mount(kind, target, kind, flags, options).doing(format_args!("mounting {target}"))
}

/// /proc, /sys and /dev, still in the RAM disk.
pub(super) fn mount_kernel_file_systems() -> Result<()> {
    let safe = SAFE | MountFlags::NOEXEC;
    mount_at("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755")?;
    mount_at("proc", "/proc", safe, c"")?;
    mount_at("sysfs", "/sys", safe, c"")
}

/// The image's read-only root below, memory above, and this process inside.
pub(super) fn switch_root() -> Result<()> {
    wait_for_root_device()?;
    for folder in ["/ro", "/rw", "/new"] {
        fs::create_dir_all(folder).doing(format_args!("making {folder}"))?;
    }
    mount(ROOT_DEVICE, "/ro", "erofs", MountFlags::RDONLY | MountFlags::NODEV, c"")
        .doing(format_args!("mounting {ROOT_DEVICE}"))?;
    mount("tmpfs", "/rw", "tmpfs", MountFlags::NODEV, OVERLAY_SIZE).doing("mounting the overlay's memory")?;
    for folder in ["/rw/upper", "/rw/work"] {
        fs::create_dir(folder).doing(format_args!("making {folder}"))?;
    }
    let layers = c"lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work";
    mount("overlay", "/new", "overlay", MountFlags::NODEV, layers).doing("mounting the overlay")?;
    for folder in ["dev", "proc", "sys"] {
        let target = Path::new("/new").join(folder);
        fs::create_dir_all(&target).doing(format_args!("making {}", target.display()))?;
        mount_move(Path::new("/").join(folder), &target)
            .doing(format_args!("moving to {}", target.display()))?;
    }
    std::env::set_current_dir("/new").doing("entering the root")?;
    mount_move(".", "/").doing("moving the root")?;
    rustix::process::chroot(".").doing("changing the root")?;
    std::env::set_current_dir("/").doing("entering the root")
}

fn wait_for_root_device() -> Result<()> {
    let deadline = Instant::now() + ROOT_DEVICE_TIMEOUT;
    while !Path::new(ROOT_DEVICE).exists() {
        if Instant::now() > deadline {
            return Err(Failure::new(
                format_args!("waiting for {ROOT_DEVICE}"),
                "the machine has no disk; is virtio_blk among its modules?",
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Everything below the root that lives in memory.
pub(super) fn mount_memory_file_systems() -> Result<()> {
    let safe = SAFE | MountFlags::NOEXEC;
    mount_at(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0620,ptmxmode=0666,gid=0",
    )?;
    mount_at("tmpfs", "/dev/shm", safe, c"mode=1777,size=25%")?;
    mount_at("tmpfs", "/run", SAFE, c"mode=0755,size=25%")?;
    mount_at("tmpfs", "/tmp", SAFE, c"mode=1777,size=25%")?;
    mount_at("tmpfs", places::DRIVES, safe, c"mode=0755,size=16m,nr_inodes=8192")?;
    link_devices();
    Ok(())
}

/// The names of a process's own streams, which programs expect in /dev.
fn link_devices() {
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        if let Err(error) = symlink(target, link) {
            say(format_args!("linking {link}: {error}"));
        }
    }
}

/// Makes this program available to services.
pub(super) fn publish_own_program() {
    let published =
        fs::File::create(places::PROGRAM).and_then(|_| Ok(mount_bind("/proc/self/exe", places::PROGRAM)?));
    if let Err(error) = published {
        say(format_args!("binding {}: {error}", places::PROGRAM));
    }
}
