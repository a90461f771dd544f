//! Files as read-only block devices: how many VMMs map one base that none of them can write.
//!
//! QEMU before 8.2 opens the file behind a guest's memory for writing. A file that its uid may open so could be changed by
//! an escaped VMM, for every machine that maps it. A read-only loop device can be opened so too, but neither written nor, on
//! Linux 6.6 and newer, mapped shared and writable. (The VMM's seccomp filter refuses the ioctls that would change what is
//! behind it, and in emulation shared mappings as well.)

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};
use crate::sys;

/// How often another program may take the free device first.
const ATTEMPTS: u32 = 64;
const CONTROL: &str = "/dev/loop-control";

/// A read-only device with a file behind it. It goes when nobody, no VMM either, has it open any more.
#[derive(Debug)]
pub struct BlockDevice {
    node: PathBuf,
    open: File,
}

impl BlockDevice {
    /// The device of this file: one that some VMM still has open, so that what they share is in memory once, or a new one.
    ///
    /// # Errors
    /// Without loop devices, or if the file cannot be read.
    pub fn attach(file: &Path) -> Result<Self> {
        let doing = || format!("make a block device of {}", file.display());
        let file = file.canonicalize().doing(doing)?;
        match Self::find(&file).doing(doing)? {
            Some(found) => Ok(found),
            None => Self::make(&file).doing(doing),
        }
    }

    fn find(file: &Path) -> io::Result<Option<Self>> {
        let wanted = fs::metadata(file)?;
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if Path::new(backing.trim_end()) != file {
                continue;
            }
            let node = Path::new("/dev").join(entry.file_name());
            // It may go in this moment, and another file come behind it.
            let Ok(open) = File::open(&node) else { continue };
            let found = sys::loop_status(open.as_fd());
            if found.is_ok_and(|found| found.read_only && found.inode == wanted.ino()) {
                return Ok(Some(Self { node, open }));
            }
        }
        Ok(None)
    }

    fn make(file: &Path) -> io::Result<Self> {
        let control = File::options().read(true).write(true).open(CONTROL)?;
        let backing = File::open(file)?;
        let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
        for _ in 0..ATTEMPTS {
            let node = PathBuf::from(format!("/dev/loop{}", sys::free_loop(control.as_fd())?));
            let open = File::open(&node)?;
            match sys::configure_loop(open.as_fd(), backing.as_fd()) {
                Ok(()) => return Ok(Self { node, open }),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Its node on the host.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Whether this kernel refuses to map it shared and writable, so that VMMs need no further filter.
    ///
    /// # Errors
    /// If it cannot be tried.
    pub fn is_protected(&self) -> Result<bool> {
        let tried = File::options().read(true).write(true).open(&self.node);
        match tried {
            // A kernel that does not even open it so protects it all the more.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
            Err(error) => Err(error).doing(|| format!("open {}", self.node.display())),
            Ok(device) => Ok(!sys::maps_writable(device.as_fd())),
        }
    }
}

impl AsFd for BlockDevice {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.open.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn one_file_has_one_device_that_cannot_be_written() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        let device = BlockDevice::attach(file.path()).unwrap();
        assert_eq!(BlockDevice::attach(file.path()).unwrap().node(), device.node());
        let writable = File::options().read(true).write(true).open(device.node()).unwrap();
        assert_eq!(writable.write_at(&[1; 4096], 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let mut read = [0; 4096];
        writable.read_exact_at(&mut read, 8192).unwrap();
        assert_eq!(read, [7; 4096]);
    }
}
