//! The data disk. It is not opened before the machine knows whose it is.

use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::Duration;

use mvm_model::service::ServiceUser;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags};

use super::places::{DATA, DATA_DEVICE};
use crate::error::{Doing as _, Result};
use crate::services::account::Account;

/// Mounts the data disk, where that was not done, and makes the service users' home folders.
///
/// # Errors
/// The disk cannot be mounted.
pub(super) fn mount(users: &[ServiceUser]) -> Result<()> {
    if !is_mounted()? {
        let device = File::open(DATA_DEVICE).doing(format_args!("opening {DATA_DEVICE}"))?;
        // In a clone, what is buffered may be another machine's disk.
        crate::sys::flush_block_device(&device).doing(format_args!("flushing {DATA_DEVICE}"))?;
        fs::create_dir_all(DATA).doing(format_args!("making {DATA}"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        rustix::mount::mount(DATA_DEVICE, DATA, "ext4", flags, c"").doing(format_args!("mounting {DATA}"))?;
        fill(device).doing(format_args!("growing {DATA}"))?;
    }
    make_homes(users)
}

/// Makes the service users' home folders, where the disk is mounted.
pub(super) fn make_homes(users: &[ServiceUser]) -> Result<()> {
    users.iter().try_for_each(make_home)
}

/// Grows the file system to the whole disk: the host only lengthens its file, as it never reads what a machine wrote.
fn fill(mut device: File) -> std::io::Result<()> {
    let mounted = File::open(DATA)?;
    let block = rustix::fs::fstatvfs(&mounted)?.f_bsize;
    crate::sys::resize_ext4(&mounted, device.seek(SeekFrom::End(0))? / block)
}

/// Looked up and not remembered: a mount that failed halfway must not count.
fn is_mounted() -> Result<bool> {
    match statx(CWD, DATA, AtFlags::empty(), StatxFlags::TYPE) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error).doing(format_args!("looking at {DATA}")),
    }
}

fn make_home(user: &ServiceUser) -> Result<()> {
    let home = Account { name: user.name.clone(), uid: user.uid }.data_home();
    let home = Path::new(&home);
    let making = || format!("making {}", home.display());
    if !home.exists() {
        fs::create_dir_all(home).doing(making())?;
        fs::set_permissions(home, Permissions::from_mode(0o700)).doing(making())?;
    }
    chown(home, Some(user.uid), Some(user.uid)).doing(making())
}

/// Brings everything that was written to the disk, and the disk's own buffers to where they last.
///
/// # Errors
/// The disk's.
pub(super) fn flush() -> Result<()> {
    if !is_mounted()? {
        return Ok(());
    }
    let root = File::open(DATA).doing(format_args!("opening {DATA}"))?;
    rustix::fs::syncfs(&root).doing(format_args!("writing out {DATA}"))?;
    let device = File::open(DATA_DEVICE).doing(format_args!("opening {DATA_DEVICE}"))?;
    device.sync_all().doing(format_args!("flushing {DATA_DEVICE}"))
}

/// Unmounts it; processes that were killed may take a moment to let go of it.
///
/// # Errors
/// It is still in use.
pub(super) async fn unmount() -> Result<()> {
    if !is_mounted()? {
        return Ok(());
    }
    for _ in 0..50 {
        match rustix::mount::unmount(DATA, UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) => tokio::time::sleep(Duration::from_millis(10)).await,
            done => return done.doing(format_args!("unmounting {DATA}")),
        }
    }
    // What still uses it keeps it; the sync before the power goes writes it out all the same.
    rustix::mount::unmount(DATA, UnmountFlags::DETACH).doing(format_args!("unmounting {DATA}"))
}
