//! Bases: memory and device state of a machine that was stopped before it became anyone, for others to begin from.

use std::path::{Path, PathBuf};

use mvm_kill_point::KillPoint;
use serde::{Deserialize, Serialize};

use super::folder::{into_folder, read_part, write_durably};
use super::refusal::{damaged, unreadable};
use super::{Cipher, DEVICE, Part, Refusal, RefusalReason, Restore, VERSION, parse};
use crate::error::{Doing, Error, Result};
use crate::flat::{CHECKSUMS, Flat, FlatCheck, MEMORY};
use crate::memory::GuestMemory;
use crate::shape::Shape;

const METADATA: &str = "base.json";
/// Read only, and by root only: no VMM may change what others map.
const MODE: u32 = 0o400;

/// What a base is of. It serves machines of this pool only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFacts {
    /// The tenant.
    pub tenant: String,
    /// Its pool.
    pub pool: String,
    /// The revision whose files it runs.
    pub revision: String,
    /// The host's wall clock when it was made, in milliseconds since 1970.
    pub recorded_at_ms: u64,
}

/// `base.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    version: u32,
    cipher: Cipher,
    key_id: Option<String>,
    facts: BaseFacts,
    shape: Shape,
    device: Part,
    checksums: Part,
}

/// What the caller keeps of a base that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseInfo {
    /// BLAKE3 of `base.json`, in hex; it holds the checksums of the other parts.
    pub id: String,
    /// The virtual hardware that it fits.
    pub shape: Shape,
    /// Bytes of guest memory that have content.
    pub memory_bytes: u64,
}

/// What a base has to be to be cloned.
#[derive(Debug, Clone)]
pub struct BaseExpected {
    /// Its id.
    pub id: String,
    /// The tenant that it must be of.
    pub tenant: String,
    /// The pool that it must be of.
    pub pool: String,
    /// The revision whose files the clone will run with.
    pub revision: String,
    /// The shape that the clone will have.
    pub shape: Shape,
}

/// A base that may be cloned as far as everything but its memory's content goes.
#[derive(Debug)]
pub struct Base {
    folder: PathBuf,
    device: Vec<u8>,
}

impl Base {
    /// Reads the base in `folder` and checks it against what it should be.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn open(folder: &Path, expected: &BaseExpected) -> Result<Self, Refusal> {
        let base = Self::read(folder, &expected.id)?;
        let (metadata, device) = base;
        let facts = &metadata.facts;
        let (own, wanted) = ((&facts.tenant, &facts.pool), (&expected.tenant, &expected.pool));
        if own != wanted {
            let (recorded, present) = (format!("{}/{}", own.0, own.1), format!("{}/{}", wanted.0, wanted.1));
            return Err(RefusalReason::OtherInstance { recorded, present }.into());
        }
        if facts.revision != expected.revision {
            let (recorded, present) = (facts.revision.clone(), expected.revision.clone());
            return Err(RefusalReason::OtherRevision { recorded, present }.into());
        }
        metadata.shape.fits(&expected.shape)?;
        Ok(Self { folder: folder.to_owned(), device })
    }

    fn read(folder: &Path, id: &str) -> Result<(Metadata, Vec<u8>), Refusal> {
        let text = read_part(folder, METADATA)?;
        if blake3::hash(&text).to_hex().as_str() != id {
            return Err(damaged(METADATA, "it is not the one that was made"));
        }
        let metadata: Metadata = parse(METADATA, &text)?;
        let device = read_part(folder, DEVICE)?;
        if Part::of(&device) != metadata.device {
            return Err(damaged(DEVICE, "wrong checksum"));
        }
        if Part::of(&read_part(folder, CHECKSUMS)?) != metadata.checksums {
            return Err(damaged(CHECKSUMS, "wrong checksum"));
        }
        Ok((metadata, device))
    }

    /// Reads a base's whole content and checks it without using it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn verify(folder: &Path, id: &str) -> Result<()> {
        Self::read(folder, id)?;
        FlatCheck::of(folder).and_then(|memory| memory.run()).map_err(|error| match error {
            // What a disk cannot give back any more is as good as damaged.
            Error::Io { source, .. } if !is_shortage(&source) => unreadable(MEMORY)(source).into(),
            other => other,
        })
    }

    /// The file that VMMs map, to be given to a block device.
    pub fn memory(&self) -> PathBuf {
        self.folder.join(MEMORY)
    }

    /// For a VMM that maps it.
    pub fn restore(self) -> Restore {
        Restore { device: self.device, pages: None }
    }
}

/// Whether the host lacks something just now, which says nothing of the file.
fn is_shortage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| lacking.iter().any(|errno| errno.raw_os_error() == code))
}

/// Makes a base of a paused machine that began with empty memory, in a folder of its own below `bases`, named by its id. Until that
/// is known it is called by its VMM's pid: others may be made beside it.
pub(crate) fn write(
    bases: &Path,
    pid: u32,
    memory: &GuestMemory,
    device: &[u8],
    (facts, shape): (BaseFacts, Shape),
) -> Result<BaseInfo> {
    let new = bases.join(format!("new-{pid}"));
    super::remove(&new)?;
    let info = into_folder(&new, |folder| {
        let runs = memory.private_runs().doing(|| "find the guest's pages".into())?;
        let mut flat = Flat::create(folder, memory.pages())?;
        flat.update(memory, &runs, KillPoint::BasePartlyWritten)?;
        let checksums = flat.finish(MODE)?;
        write_durably(&folder.join(DEVICE), device)?;
        let metadata = Metadata {
            version: VERSION,
            cipher: Cipher::None,
            key_id: None,
            facts,
            shape,
            device: Part::of(device),
            checksums: Part::of(checksums.bytes()),
        };
        let text = serde_json::to_vec_pretty(&metadata).map_err(|e| Error::Answer(e.to_string()))?;
        write_durably(&folder.join(METADATA), &text)?;
        let id = blake3::hash(&text).to_hex().to_string();
        Ok(BaseInfo { id, shape: metadata.shape, memory_bytes: checksums.content_bytes() })
    })?;
    let folder = bases.join(&info.id);
    std::fs::rename(&new, &folder).doing(|| format!("name the base {}", folder.display()))?;
    super::folder::sync_folder(bases)?;
    Ok(info)
}
