//! Data disks: made, read, replaced.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mvm_image::disk;
use mvm_model::InstanceId;
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

fn sync(folder: &Path) -> Result<(), HostError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(HostError::at(folder))
}
