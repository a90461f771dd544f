//! Parts of images on disk: by what they are made of (a key) and by what they are (their digest).
//! Images and processes share them.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::Digest;
use crate::error::{At, Result, malformed};
use crate::flock::FileLock;
use crate::work::Workshop;

/// A file that is known by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) size: u64,
}

/// `parts/<digest>`, and `index/<key>` which says the digest of what a key stands for.
#[derive(Debug)]
pub(crate) struct PartCache {
    parts: PathBuf,
    index: PathBuf,
    work: Workshop,
}

impl PartCache {
    pub(crate) fn open(folder: &Path, work: Workshop) -> Result<Self> {
        let [parts, index] = ["parts", "index"].map(|name| folder.join(name));
        for folder in [&parts, &index] {
            fs::create_dir_all(folder).at(folder)?;
        }
        Ok(Self { parts, index, work })
    }

    /// Where a part is.
    pub(crate) fn path(&self, part: &Part) -> PathBuf {
        self.parts.join(part.digest.to_string())
    }

    /// Waits until no other process makes what this key stands for.
    pub(crate) fn lock(&self, key: &Digest) -> Result<FileLock> {
        FileLock::exclusive(&self.index.join(format!("{key}.lock")))
    }

    /// What a key stands for, if it was made.
    pub(crate) fn find(&self, key: &Digest) -> Option<Part> {
        let text = fs::read(self.index.join(key.to_string())).ok()?;
        let part: Part = serde_json::from_slice(&text).ok()?;
        let is_whole = fs::metadata(self.path(&part)).is_ok_and(|found| found.len() == part.size);
        is_whole.then_some(part)
    }

    /// Reads what a key stands for, and forgets it where it is not what was made any more: it is made anew then, in its place.
    pub(crate) fn forget_damaged(&self, key: &Digest) -> Result<()> {
        let _lock = self.lock(key)?;
        let Some(part) = self.find(key) else { return Ok(()) };
        if Digest::of_file(&self.path(&part)).is_ok_and(|(found, _)| found == part.digest) {
            return Ok(());
        }
        let entry = self.index.join(key.to_string());
        fs::remove_file(&entry).at(&entry)
    }

    /// Keeps bytes as what `key` stands for.
    pub(crate) fn keep_bytes(&self, key: &Digest, content: &[u8]) -> Result<Part> {
        let work = self.work.begin()?;
        let path = work.join("part");
        fs::write(&path, content).at(&path)?;
        self.keep_file(key, &path)
    }

    /// Moves a file here as what `key` stands for.
    pub(crate) fn keep_file(&self, key: &Digest, path: &Path) -> Result<Part> {
        let (digest, size) = Digest::of_file(path).at(path)?;
        let part = Part { digest, size };
        let file = File::open(path).at(path)?;
        file.set_permissions(Permissions::from_mode(0o444)).at(path)?;
        file.sync_all().at(path)?;
        fs::rename(path, self.path(&part)).at(path)?;
        write_json(&self.index.join(key.to_string()), &part)?;
        Ok(part)
    }
}

/// Writes a small file as a whole or not at all.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| malformed(&path.display().to_string(), e.to_string()))?;
    let mut file = NamedTempFile::new_in(folder).at(folder)?;
    file.write_all(&bytes).at(path)?;
    file.as_file().sync_all().at(path)?;
    file.persist(path).map_err(|e| e.error).at(path)?;
    sync_folder(folder)
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).at(folder)
}
