//! Data disks: made, read, replaced.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mvm_image::disk;
use mvm_model::InstanceId;
use rustix::fs::SeekFrom;
use tempfile::NamedTempFile;

use crate::host::Inner;
use crate::{Host, HostError};

/// A data disk that is no instance's yet. Dropped, it is gone.
#[derive(Debug)]
pub struct NewDisk(NamedTempFile);

impl NewDisk {
    /// What is to be written to, while it is no instance's.
    pub fn file(&self) -> &File {
        self.0.as_file()
    }
}

impl Host {
    /// An instance's data disk for reading; nothing where it has only the empty device.
    ///
    /// # Errors
    /// Where it is not there.
    pub async fn open_disk(&self, instance: InstanceId) -> Result<Option<File>, HostError> {
        self.blocking(move |inner| {
            let path = inner.paths.disk_of(instance);
            let file = File::open(&path).map_err(HostError::at(&path))?;
            let bytes = file.metadata().map_err(HostError::at(&path))?.len();
            Ok((bytes > disk::data_disk_bytes(0)).then_some(file))
        })
        .await
    }

    /// A copy of a data disk that nothing writes to now; it shares its blocks and takes no time. Nothing where the file
    /// system cannot do that. It has no name: it goes with the file.
    ///
    /// # Errors
    /// Where it cannot be made for another reason.
    pub async fn clone_disk(&self, disk: &File) -> Result<Option<File>, HostError> {
        let folder = self.paths().restores();
        let disk = disk.try_clone().map_err(HostError::at(&folder))?;
        self.blocking(move |_| {
            let copy = tempfile::tempfile_in(&folder).map_err(HostError::at(&folder))?;
            match rustix::fs::ioctl_ficlone(&copy, &disk) {
                Ok(()) => Ok(Some(copy)),
                // Whatever keeps it from it: the disk itself can be read as well.
                Err(error) => {
                    tracing::debug!(%error, "this file system does not share blocks");
                    Ok(None)
                }
            }
        })
        .await
    }

    /// An empty file to be written, that can become an instance's data disk.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub async fn new_disk(&self) -> Result<NewDisk, HostError> {
        self.blocking(|inner| {
            let folder = inner.paths.restores();
            let file = NamedTempFile::new_in(&folder).map_err(HostError::at(&folder))?;
            let private = file.as_file().set_permissions(Permissions::from_mode(0o600));
            private.map_err(HostError::at(file.path()))?;
            Ok(NewDisk(file))
        })
        .await
    }

    /// Keeps a copy of an instance's data disk, to which nothing writes now, as the one that [`Host::replace_disk`] gives to it,
    /// durably. It shares its blocks where the file system can.
    ///
    /// # Errors
    /// Where it cannot be made: there is too little room, most likely.
    pub async fn keep_copy(&self, instance: InstanceId) -> Result<(), HostError> {
        let copy = self.new_disk().await?;
        let copy = self.blocking(move |inner| {
            let path = inner.paths.disk_of(instance);
            let disk = File::open(&path).map_err(HostError::at(&path))?;
            copy_whole(&disk, copy.file()).map_err(HostError::at(copy.0.path()))?;
            Ok(copy)
        });
        self.keep_disk(copy.await?, instance).await
    }

    /// Removes the disk that was kept for an instance, if there is one.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub async fn forget_kept_disk(&self, instance: InstanceId) -> Result<(), HostError> {
        self.blocking(move |inner| {
            let path = inner.paths.restore_of(instance);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(HostError::at(&path)(error)),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Makes it the disk that [`Host::replace_disk`] gives to an instance, durably.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub async fn keep_disk(&self, disk: NewDisk, instance: InstanceId) -> Result<(), HostError> {
        self.blocking(move |inner| {
            let path = inner.paths.restore_of(instance);
            disk.0.as_file().sync_all().map_err(HostError::at(disk.0.path()))?;
            disk.0.persist(&path).map_err(|error| HostError::at(&path)(error.error))?;
            sync(&inner.paths.restores())
        })
        .await
    }
}

impl Inner {
    pub(crate) fn make_disk(&self, instance: InstanceId, mib: u64) -> Result<(), HostError> {
        let folder = self.paths.data_of(instance);
        std::fs::create_dir_all(&folder).map_err(HostError::at(&folder))?;
        Ok(disk::create_data_disk(&self.paths.disk_of(instance), mib)?)
    }

    /// At any moment there is the old disk or the new one.
    pub(crate) fn replace_disk(&self, instance: InstanceId) -> Result<(), HostError> {
        let (folder, new) = (self.paths.data_of(instance), self.paths.restore_of(instance));
        std::fs::create_dir_all(&folder).map_err(HostError::at(&folder))?;
        match std::fs::rename(&new, self.paths.disk_of(instance)) {
            // Done already.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => renamed.map_err(HostError::at(&new))?,
        }
        sync(&folder)?;
        sync(&self.paths.instances())?;
        sync(&self.paths.restores())
    }
}

/// Copies what is in a file that is to be as long and as sparse.
fn copy_whole(from: &File, to: &File) -> std::io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    loop {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            found => found?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        rustix::fs::seek(from, SeekFrom::Start(begin))?;
        rustix::fs::seek(to, SeekFrom::Start(begin))?;
        std::io::copy(&mut from.take(end - begin), &mut &*to)?;
        at = end;
    }
}

fn sync(folder: &Path) -> Result<(), HostError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(HostError::at(folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_same_content_and_the_same_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        for (at, text) in [(0, &b"begin"[..]), (20 << 20, b"middle"), ((64 << 20) - 3, b"end")] {
            from.write_all_at(text, at).unwrap();
        }
        copy_whole(&from, &to).unwrap();
        let content = |file: &File| {
            let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(content(&from) == content(&to));
        assert!(to.metadata().unwrap().blocks() <= 2 * from.metadata().unwrap().blocks());
    }
}
