//! Blocks that files really take: disks and images are sparse, their sizes say nothing.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mvm_model::InstanceId;

use super::UsageError;

/// Bytes of a block as stat counts them, whatever the file system's are.
const BLOCK: u64 = 512;
/// An instance's data disk in its folder.
const DATA_DISK: &str = "data.img";

/// What an instance takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct InstanceDisk {
    /// Its data disk.
    pub(super) data: u64,
    /// Everything else in its folder: what it slept with.
    pub(super) snapshot: u64,
}

/// What is in a data folder.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Contents {
    pub(super) images: u64,
    pub(super) bases: u64,
    pub(super) instances: BTreeMap<InstanceId, InstanceDisk>,
    pub(super) other: u64,
}

/// Counts files, each once: one with several names takes its blocks once.
#[derive(Default)]
struct Count {
    seen: HashSet<(u64, u64)>,
}

/// What one instance's folder takes; nothing where there is none.
pub(super) fn instance(data_dir: &Path, id: InstanceId) -> Result<InstanceDisk, UsageError> {
    Count::default().instance(&data_dir.join("instances").join(id.to_string()))
}

/// What everything under a data folder takes.
pub(super) fn contents(data_dir: &Path) -> Result<Contents, UsageError> {
    let mut count = Count::default();
    let mut contents = Contents::default();
    each(data_dir, |path, metadata| {
        match path.file_name().and_then(|name| name.to_str()) {
            Some("images") => contents.images += count.tree(path, metadata)?,
            Some("bases") => contents.bases += count.tree(path, metadata)?,
            Some("instances") if metadata.is_dir() => {
                contents.other += count.own(metadata);
                each(path, |path, metadata| {
                    let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
                    match id {
                        Some(id) => drop(contents.instances.insert(id, count.instance(path)?)),
                        None => contents.other += count.tree(path, metadata)?,
                    }
                    Ok(())
                })?;
            }
            _ => contents.other += count.tree(path, metadata)?,
        }
        Ok(())
    })?;
    Ok(contents)
}

impl Count {
    fn instance(&mut self, folder: &Path) -> Result<InstanceDisk, UsageError> {
        let mut disk = InstanceDisk::default();
        each(folder, |path, metadata| {
            let part = if path.ends_with(DATA_DISK) { &mut disk.data } else { &mut disk.snapshot };
            *part += self.tree(path, metadata)?;
            Ok(())
        })?;
        Ok(disk)
    }

    /// A file, or a folder with all that is in it.
    fn tree(&mut self, path: &Path, metadata: &Metadata) -> Result<u64, UsageError> {
        let mut bytes = self.own(metadata);
        if metadata.is_dir() {
            each(path, |path, metadata| {
                bytes += self.tree(path, metadata)?;
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    fn own(&mut self, metadata: &Metadata) -> u64 {
        let again =
            metadata.nlink() > 1 && !metadata.is_dir() && !self.seen.insert((metadata.dev(), metadata.ino()));
        if again { 0 } else { metadata.blocks() * BLOCK }
    }
}

/// Looks at everything in a folder; what goes meanwhile, the folder too, takes nothing.
fn each(
    folder: &Path,
    mut look: impl FnMut(&Path, &Metadata) -> Result<(), UsageError>,
) -> Result<(), UsageError> {
    let wrong = |path: &Path, error: io::Error| UsageError::new(path.display(), error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| wrong(folder, error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| wrong(folder, error))?.path();
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => look(&path, &other.map_err(|error| wrong(&path, error))?)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, kib: usize) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![7; kib << 10]).unwrap();
        // Some file systems give blocks only when they must.
        fs::File::open(&path).unwrap().sync_all().unwrap();
    }

    fn between(bytes: u64, kib: u64) -> bool {
        (kib << 10..=(kib + 32) << 10).contains(&bytes)
    }

    #[test]
    fn everything_is_counted_once_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        write(data, "mvm.db", 64);
        write(data, "images/a/rootfs", 128);
        write(data, "images/b/kernel", 128);
        fs::hard_link(data.join("images/a/rootfs"), data.join("images/b/rootfs")).unwrap();
        write(data, "bases/x/memory", 256);
        write(data, "instances/i-0000002a/data.img", 64);
        write(data, "instances/i-0000002a/snapshot/memory", 128);
        write(data, "instances/leftover/data.img", 64);
        let found = contents(data).unwrap();
        assert!(between(found.images, 256) && between(found.bases, 256), "{found:?}");
        assert!(between(found.other, 128), "the store and what is no instance: {found:?}");
        let id = InstanceId::new(0x2a);
        let disk = found.instances[&id];
        assert!(between(disk.data, 64) && between(disk.snapshot, 128), "{disk:?}");
        assert_eq!(instance(data, id).unwrap(), disk);
        assert_eq!(instance(data, InstanceId::new(1)).unwrap(), InstanceDisk::default());
    }

    #[test]
    fn a_sparse_file_takes_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "instances/i-00000001/data.img", 4);
        let path = folder.path().join("instances/i-00000001/data.img");
        fs::File::options().write(true).open(path).unwrap().set_len(1 << 30).unwrap();
        assert!(between(instance(folder.path(), InstanceId::new(1)).unwrap().data, 4));
    }
}
