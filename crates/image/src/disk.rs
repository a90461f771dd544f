//! Data disks: sparse ext4 files, which only grow.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::cache::sync_folder;
use crate::error::{At, Error, Result};
use crate::tool;

const MIB: u64 = 1 << 20;

/// The size of the empty device of a machine without a data disk, MiB.
pub const EMPTY_DISK_MIB: u64 = 1;

/// How many bytes the disk has that [`create_data_disk`] makes.
pub fn data_disk_bytes(mib: u64) -> u64 {
    mib.max(EMPTY_DISK_MIB) * MIB
}

/// Makes a data disk of `mib` MiB at `path`; with 0, the empty device of 1 MiB. Takes 6 to 10 ms. What
/// was at `path` is replaced; the file is there as a whole or not at all.
///
/// # Errors
/// Where `mke2fs` (package e2fsprogs) or the file system fails.
pub fn create_data_disk(path: &Path, mib: u64) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = NamedTempFile::new_in(folder).at(folder)?;
    file.as_file().set_len(data_disk_bytes(mib)).at(path)?;
    file.as_file().set_permissions(Permissions::from_mode(0o600)).at(path)?;
    if mib > 0 {
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
        // No blocks are kept back: the disk is one machine's data and nothing else.
        let arguments = ["-q", "-F", "-t", "ext4", "-m", "0", "-L", "data", "-E", options];
        tool::run("mke2fs", "e2fsprogs", arguments.map(Path::new).into_iter().chain([file.path()]))?;
    }
    file.as_file().sync_all().at(path)?;
    file.persist(path).map_err(|e| e.error).at(path)?;
    sync_folder(folder)
}

/// Makes the disk `mib` MiB large; does nothing where it is. The guest grows the file system in it when it
/// opens the disk: the host never reads what a machine wrote. An empty device becomes a data disk. Only
/// while no machine uses it.
///
/// # Errors
/// [`Error::DiskShrinks`] where it is larger already, or would become an empty device.
pub fn grow(path: &Path, mib: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path).at(path)?;
    let has = file.metadata().at(path)?.len();
    let asked = mib * MIB;
    // By its length alone: what a machine wrote to its disk is never looked at, and never replaced.
    if has == EMPTY_DISK_MIB * MIB {
        return if mib == 0 { Ok(()) } else { create_data_disk(path, mib) };
    }
    if asked < has {
        return Err(Error::DiskShrinks { file: path.to_owned(), has: has / MIB, asked: mib });
    }
    file.set_len(asked).at(path)?;
    file.sync_all().at(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    fn is_clean_ext4(path: &Path) -> bool {
        Command::new("e2fsck").arg("-fn").arg(path).output().unwrap().status.success()
    }

    #[test]
    fn a_data_disk_is_sparse_and_clean_and_only_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        create_data_disk(&path, 512).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (512 * MIB, 0o600));
        assert!(metadata.blocks() * 512 < 32 * MIB, "takes {} blocks", metadata.blocks());
        assert!(is_clean_ext4(&path));

        grow(&path, 600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 600 * MIB);
        assert!(is_clean_ext4(&path));
        grow(&path, 600).unwrap();
        for less in [0, 599] {
            assert!(matches!(grow(&path, less), Err(Error::DiskShrinks { has: 600, .. })));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "temporary files are left");
    }

    #[test]
    fn without_a_data_disk_there_is_an_empty_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        create_data_disk(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; MIB as usize]);
        grow(&path, 0).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
        grow(&path, 16).unwrap();
        assert!(is_clean_ext4(&path));
    }
}
