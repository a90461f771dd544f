//! File locks between processes, freed by the kernel however a process ends.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{At, Result};

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits until no other process holds it.
    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path).at(path)?;
        flock(&file, FlockOperation::LockExclusive).at(path)?;
        Ok(Self { _file: file })
    }

    /// None where another process, or another one here, holds it.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = File::options().create(true).append(true).open(path).at(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            locked => locked.at(path).map(|()| Some(Self { _file: file })),
        }
    }
}
