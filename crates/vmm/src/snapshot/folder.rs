//! Folders that appear whole or not at all, and the files in them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::refusal::{Refusal, unreadable};
use crate::error::{Doing, Result};

/// The most that metadata or device state may have; a real device state has some 20 KiB.
const LARGEST_PART: u64 = 64 << 20;

/// Has a folder filled under another name, and names it when it is whole and durable.
pub(super) fn into_folder<T>(folder: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if folder.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(source).doing(|| format!("write over {}; remove it first", folder.display()));
    }
    let partial = partial_of(folder);
    remove_folder(&partial)?;
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(&partial).doing(|| format!("make the folder {}", partial.display()))?;
    let filled = fill(&partial).and_then(|value| {
        sync_folder(&partial)?;
        fs::rename(&partial, folder).doing(|| format!("name the folder {}", folder.display()))?;
        sync_folder(folder.parent().unwrap_or(Path::new("/")))?;
        Ok(value)
    });
    if filled.is_err() {
        // The first error is the one to tell.
        let _ = remove_folder(&partial);
    }
    filled
}

/// Where a folder is until it is whole.
fn partial_of(folder: &Path) -> PathBuf {
    let mut partial = folder.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}

/// Removes a snapshot, a base or an own image, or what is left of one, also of one that never became whole; that there is none
/// is fine.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(folder: &Path) -> Result<()> {
    remove_folder(folder)?;
    remove_folder(&partial_of(folder))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", folder.display())),
    }
}

pub(super) fn read_part(folder: &Path, part: &'static str) -> Result<Vec<u8>, Refusal> {
    let mut content = Vec::new();
    let file = File::open(folder.join(part)).map_err(unreadable(part))?;
    file.take(LARGEST_PART).read_to_end(&mut content).map_err(unreadable(part))?;
    Ok(content)
}

pub(super) fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).doing(|| format!("create {}", path.display()))
}

pub(super) fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    file.write_all(content).and_then(|()| file.sync_all()).doing(|| format!("write {}", path.display()))
}

pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).doing(|| format!("sync {}", folder.display()))
}
