//! Folders for work in progress, on the file system of what comes out. What a process that was killed
//! left behind is removed when the next one begins.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{At, Result};
use crate::flock::FileLock;

/// Held by whoever makes or removes work folders, for that moment.
const GATE: &str = "gate.lock";
/// In each work folder, held by its owner.
const OWNER: &str = "owner.lock";

/// The folder that has the work folders; processes may share it.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    folder: PathBuf,
}

/// An empty folder, removed when dropped.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    folder: TempDir,
    _owner: FileLock,
}

impl Workshop {
    /// Opens it, and removes what nobody owns any more.
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).at(&folder)?;
        let shop = Self { folder };
        let _gate = shop.gate()?;
        for entry in fs::read_dir(&shop.folder).at(&shop.folder)? {
            let path = entry.at(&shop.folder)?.path();
            if path.is_dir() && FileLock::try_exclusive(&path.join(OWNER))?.is_some() {
                fs::remove_dir_all(&path).at(&path)?;
            }
        }
        Ok(shop)
    }

    /// A new folder to work in.
    pub(crate) fn begin(&self) -> Result<WorkFolder> {
        let _gate = self.gate()?;
        let folder = TempDir::new_in(&self.folder).at(&self.folder)?;
        let owner = FileLock::exclusive(&folder.path().join(OWNER))?;
        Ok(WorkFolder { folder, _owner: owner })
    }

    fn gate(&self) -> Result<FileLock> {
        FileLock::exclusive(&self.folder.join(GATE))
    }
}

impl WorkFolder {
    /// A path in it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_owns_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let shop = Workshop::open(folder.path().to_owned()).unwrap();
        let mine = shop.begin().unwrap();
        fs::write(mine.join("part"), b"1").unwrap();
        let abandoned = folder.path().join("abandoned");
        fs::create_dir_all(abandoned.join("tree")).unwrap();

        Workshop::open(folder.path().to_owned()).unwrap();
        assert!(mine.join("part").exists() && !abandoned.exists());
        let path = mine.join("part");
        drop(mine);
        assert!(!path.exists());
    }
}
