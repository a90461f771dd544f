//! What is kept of a machine's memory: snapshots of instances, and bases that instances begin from.
//!
//! A snapshot is a folder with `snapshot.json`, `device` and, unless the machine has an own image beside it, `memory`. A base
//! is one with `base.json`, `device` and a flat memory that VMMs map. The rules of their use:
//!
//! | rule | what is checked |
//! |---|---|
//! | S3 | the data disk is the same file, unchanged, in the same write epoch |
//! | S4 | the shape and the revision are exactly those it was made with |
//! | S7 | its pages lie over the base that they were compared with |
//! | S8 | every part is whole, and is the one that the commit of the sleep named |
//!
//! [`Snapshot::open`] checks everything but the memory's content. A delta is hashed while it is put into the new VMM, and the
//! machine is not resumed unless the hash is right; a flat memory is checked piece by piece by [`FlatCheck`].

mod base;
mod compression;
mod file_identity;
mod folder;
mod pages;
mod refusal;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use mvm_kill_point::{KillPoint, reached};
use mvm_model::SnapshotCompression;
use serde::{Deserialize, Serialize};

pub(crate) use base::write as write_base;
pub use base::{Base, BaseExpected, BaseFacts, BaseInfo};
pub use file_identity::FileIdentity;
pub use folder::remove;
pub(crate) use folder::sync_folder;
pub use refusal::{Refusal, RefusalReason, Rule};

use crate::engine::MemoryBase;
use crate::error::{Doing, Error, Result};
use crate::flat::{Below, Flat, FlatCheck, read_checksums};
use crate::memory::{GuestMemory, PAGE, Run};
use crate::shape::Shape;
use folder::{into_folder, read_part, write_durably};
use refusal::{damaged, unreadable};

/// The format that is written and read.
const VERSION: u32 = 2;
const METADATA: &str = "snapshot.json";
const DEVICE: &str = "device";
const MEMORY: &str = "memory";
/// The own image, in messages.
const OWN: &str = "own image";

/// How a snapshot's content is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// Not at all.
    #[serde(rename = "none")]
    None,
    /// AES-256-GCM; this version does not read it.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// What the caller knows of the machine whose snapshot is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// The instance.
    pub instance: String,
    /// The revision whose files it runs.
    pub revision: String,
    /// Its generation when it was put to sleep.
    pub generation: u64,
    /// The write epoch of its data disk.
    pub disk_epoch: u64,
    /// The host's wall clock, in milliseconds since 1970.
    pub recorded_at_ms: u64,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    bytes: u64,
    blake3: String,
}

impl Part {
    fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, blake3: blake3::hash(content).to_hex().to_string() }
    }
}

/// `snapshot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    version: u32,
    cipher: Cipher,
    key_id: Option<String>,
    facts: SnapshotFacts,
    shape: Shape,
    disk: FileIdentity,
    device: Part,
    memory: MemoryPart,
}

/// Where a snapshot's memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MemoryPart {
    /// Pages over a base, by its id, or over zeros.
    Delta { base: Option<String>, pages: Part },
    /// The instance's own image: which file it is, and the checksums of its pieces.
    Own { image: FileIdentity, checksums: Part },
}

impl MemoryPart {
    fn kind(&self) -> SnapshotMemory {
        match self {
            Self::Delta { base, .. } => SnapshotMemory::Delta { base: base.clone() },
            Self::Own { .. } => SnapshotMemory::Own,
        }
    }
}

/// What a machine's VMM has to map to be woken from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMemory {
    /// The base with this id, or zeros; the pages are copied in.
    Delta {
        /// The base's id.
        base: Option<String>,
    },
    /// The instance's own image, which has all pages in it.
    Own,
}

impl SnapshotMemory {
    /// What every snapshot was over before there were bases.
    fn zeros() -> Self {
        Self::Delta { base: None }
    }
}

impl std::fmt::Display for SnapshotMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delta { base: Some(base) } => write!(f, "base {base}"),
            Self::Delta { base: None } => f.write_str("zeros"),
            Self::Own => f.write_str("an own image"),
        }
    }
}

/// How a snapshot is to be written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotOptions {
    /// How the pages of a delta are compressed.
    pub compression: SnapshotCompression,
    /// The folder of the instance's own image.
    pub own: PathBuf,
    /// With more private bytes than this the machine gets an own image: waking it does not depend on its size then.
    pub own_from: u64,
}

/// What the caller commits with the sleep, and what later says which snapshot it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// BLAKE3 of `snapshot.json`, in hex; it holds the checksums of the other parts.
    pub digest: String,
    /// Bytes on disk, all parts.
    pub bytes: u64,
    /// Bytes of guest memory that are in it.
    pub memory_bytes: u64,
    /// What a VMM has to map to wake from it.
    #[serde(default = "SnapshotMemory::zeros")]
    pub memory: SnapshotMemory,
}

/// What a snapshot has to be to be resumed.
#[derive(Debug, Clone)]
pub struct Expected {
    /// From the [`SnapshotInfo`] that was committed with the sleep.
    pub digest: String,
    /// What the VMM will map.
    pub memory: SnapshotMemory,
    /// The instance that is to wake.
    pub instance: String,
    /// The revision whose files it will run with.
    pub revision: String,
    /// The shape it will have.
    pub shape: Shape,
    /// The data disk's write epoch as it was before this launch raised it.
    pub disk_epoch: u64,
    /// The data disk.
    pub disk: FileIdentity,
}

/// A snapshot that may be resumed as far as everything but its memory's content goes.
#[derive(Debug)]
pub struct Snapshot {
    metadata: Metadata,
    device: Vec<u8>,
    memory: PathBuf,
}

/// What a waiting VMM is to be given: checked device state, and pages that are checked while they are copied.
#[derive(Debug)]
pub struct Restore {
    device: Vec<u8>,
    pages: Option<(PathBuf, Part)>,
}

impl Snapshot {
    /// Reads the snapshot in `folder`, whose own image if it has one is in `own`, and checks it against what it should be.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn open(folder: &Path, own: &Path, expected: &Expected) -> Result<Self, Refusal> {
        let metadata = read_metadata(folder, &expected.digest)?;
        check(&metadata, expected)?;
        Self::with(metadata, folder, own)
    }

    /// Reads the snapshot in `folder` only to [`verify`](Self::verify) it.
    ///
    /// # Errors
    /// If a part is damaged.
    pub fn at_rest(folder: &Path, own: &Path, digest: &str) -> Result<Self, Refusal> {
        Self::with(read_metadata(folder, digest)?, folder, own)
    }

    fn with(metadata: Metadata, folder: &Path, own: &Path) -> Result<Self, Refusal> {
        let device = read_part(folder, DEVICE)?;
        if Part::of(&device) != metadata.device {
            return Err(damaged(DEVICE, "wrong checksum"));
        }
        let memory = match &metadata.memory {
            MemoryPart::Delta { pages, .. } => {
                let memory = folder.join(MEMORY);
                let bytes = fs::metadata(&memory).map_err(unreadable(MEMORY))?.len();
                if bytes != pages.bytes {
                    return Err(damaged(MEMORY, format!("{bytes} bytes instead of {}", pages.bytes)));
                }
                memory
            }
            MemoryPart::Own { image, checksums } => {
                check_own(own, *image, checksums)?;
                own.to_owned()
            }
        };
        Ok(Self { metadata, device, memory })
    }

    /// What the caller said when it was made.
    pub fn facts(&self) -> &SnapshotFacts {
        &self.metadata.facts
    }

    /// For a VMM that maps what the snapshot says.
    pub fn restore(self) -> Restore {
        let pages = match self.metadata.memory {
            MemoryPart::Delta { pages, .. } => Some((self.memory, pages)),
            MemoryPart::Own { .. } => None,
        };
        Restore { device: self.device, pages }
    }

    /// Reads the memory's content and checks it without using it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn verify(&self) -> Result<(), Refusal> {
        let guest_pages = u64::from(self.metadata.shape.mem_mib) * ((1 << 20) / PAGE);
        let checked = match &self.metadata.memory {
            MemoryPart::Delta { pages, .. } => pages::read(&self.memory, guest_pages, pages, |_| Ok(())),
            MemoryPart::Own { .. } => FlatCheck::of(&self.memory).and_then(|check| check.run()),
        };
        checked.map_err(|error| match error {
            Error::Refused(refusal) => refusal,
            other => damaged(MEMORY, other.to_string()),
        })
    }
}

impl Restore {
    /// The checked device state.
    pub(crate) fn device(&self) -> &[u8] {
        &self.device
    }

    /// Puts the pages into a new VMM's guest memory. After an error that memory is good for nothing.
    pub(crate) fn fill(&self, memory: &GuestMemory, base: &MemoryBase) -> Result<()> {
        // What the VMM put there itself while it started does not belong there.
        let started = memory.private_runs().doing(|| "look at the new VMM's memory".into())?;
        if !started.is_empty() {
            let below = below(base)?;
            put_back(memory, &below, &started).doing(|| "clear the new VMM's memory".into())?;
        }
        let Some((path, part)) = &self.pages else { return Ok(()) };
        pages::read(path, memory.pages(), part, |pieces| memory.write(pieces))
    }
}

fn put_back(memory: &GuestMemory, below: &Below, runs: &[Run]) -> io::Result<()> {
    let mut buffer = vec![0; pages::CHUNK];
    for (first, count) in runs.iter().copied().flat_map(pages::pieces) {
        let bytes = &mut buffer[..count * PAGE as usize];
        below.read(first, bytes)?;
        memory.write(&[(first, bytes)])?;
    }
    Ok(())
}

/// What a machine's private pages lie over.
fn below(base: &MemoryBase) -> Result<Below> {
    let flat = |content: &Path, folder: &Path| {
        let content = File::open(content).doing(|| format!("open {}", content.display()))?;
        Ok(Below::Flat { content, checksums: read_checksums(folder)? })
    };
    match base {
        MemoryBase::Empty => Ok(Below::Zero),
        MemoryBase::Shared { folder, node, .. } => flat(node, folder),
        MemoryBase::Own { folder } => flat(&folder.join(crate::flat::MEMORY), folder),
    }
}

fn read_metadata(folder: &Path, digest: &str) -> Result<Metadata, Refusal> {
    let text = read_part(folder, METADATA)?;
    if blake3::hash(&text).to_hex().as_str() != digest {
        return Err(damaged(METADATA, "it is not the one that the sleep committed"));
    }
    parse(METADATA, &text)
}

/// Looks at the version before it expects anything of the rest.
fn parse<T: serde::de::DeserializeOwned>(part: &'static str, text: &[u8]) -> Result<T, Refusal> {
    #[derive(Deserialize)]
    struct Format {
        version: u32,
        cipher: String,
    }
    let invalid = |error: serde_json::Error| damaged(part, error.to_string());
    let format: Format = serde_json::from_slice(text).map_err(invalid)?;
    check_format(part, format.version, &format.cipher)?;
    serde_json::from_slice(text).map_err(invalid)
}

fn check_format(part: &'static str, version: u32, cipher: &str) -> Result<(), Refusal> {
    let detail = match (version, cipher) {
        (VERSION, "none") => return Ok(()),
        (VERSION, cipher) => format!("cipher {cipher}"),
        (version, _) => format!("version {version}"),
    };
    Err(RefusalReason::UnknownFormat { part, detail }.into())
}

fn check(metadata: &Metadata, expected: &Expected) -> Result<(), Refusal> {
    let facts = &metadata.facts;
    if facts.instance != expected.instance {
        let (recorded, present) = (facts.instance.clone(), expected.instance.clone());
        return Err(RefusalReason::OtherInstance { recorded, present }.into());
    }
    if facts.disk_epoch != expected.disk_epoch {
        let (recorded, present) = (facts.disk_epoch, expected.disk_epoch);
        return Err(RefusalReason::OtherEpoch { recorded, present }.into());
    }
    if !metadata.disk.is(&expected.disk) {
        return Err(RefusalReason::OtherDisk { recorded: metadata.disk, present: expected.disk }.into());
    }
    if facts.revision != expected.revision {
        let (recorded, present) = (facts.revision.clone(), expected.revision.clone());
        return Err(RefusalReason::OtherRevision { recorded, present }.into());
    }
    let memory = metadata.memory.kind();
    if memory != expected.memory {
        let (recorded, present) = (memory.to_string(), expected.memory.to_string());
        return Err(RefusalReason::OtherMemory { recorded, present }.into());
    }
    Ok(metadata.shape.fits(&expected.shape)?)
}

/// An own image is checked by size, identity and the record of the sleep; its content is, piece by piece, once it is mapped.
fn check_own(own: &Path, recorded: FileIdentity, checksums: &Part) -> Result<(), Refusal> {
    let image = File::open(own.join(crate::flat::MEMORY)).and_then(|file| FileIdentity::of(&file));
    let present = image.map_err(unreadable(OWN))?;
    if !recorded.is(&present) {
        return Err(damaged(OWN, format!("it is not the file it was: {recorded:?} then, {present:?} now")));
    }
    let found = fs::read(own.join(crate::flat::CHECKSUMS)).map_err(unreadable(OWN))?;
    if Part::of(&found) == *checksums { Ok(()) } else { Err(damaged(OWN, "wrong checksums")) }
}

/// What a snapshot is made of.
pub(crate) struct Paused<'a> {
    pub(crate) memory: &'a GuestMemory,
    pub(crate) base: &'a MemoryBase,
    pub(crate) device: &'a [u8],
    pub(crate) shape: Shape,
    pub(crate) disk: FileIdentity,
}

/// Writes a snapshot of a paused machine to `folder`, which appears whole or not at all.
pub(crate) fn write(
    folder: &Path,
    paused: Paused<'_>,
    facts: SnapshotFacts,
    options: &SnapshotOptions,
) -> Result<SnapshotInfo> {
    into_folder(folder, |partial| write_parts(partial, paused, facts, options))
}

fn write_parts(
    folder: &Path,
    paused: Paused<'_>,
    facts: SnapshotFacts,
    options: &SnapshotOptions,
) -> Result<SnapshotInfo> {
    let Paused { memory, base, device, shape, disk } = paused;
    let runs = memory.private_runs().doing(|| "find the guest's pages".into())?;
    let private = runs.iter().map(|run| run.count).sum::<u64>() * PAGE;
    let (memory, bytes, memory_bytes) = match base {
        MemoryBase::Own { folder } => update_own(folder, memory, &runs)?,
        _ if private > options.own_from => make_own(&options.own, memory, base, &runs)?,
        _ => {
            let path = folder.join(MEMORY);
            let (pages, memory_bytes) =
                pages::write(&path, memory, &runs, &below(base)?, options.compression)?;
            let bytes = pages.bytes;
            (MemoryPart::Delta { base: base.id(), pages }, bytes, memory_bytes)
        }
    };
    reached(KillPoint::SleepPagesWritten);
    write_durably(&folder.join(DEVICE), device)?;
    reached(KillPoint::SleepDeviceWritten);
    let device = Part::of(device);
    let metadata =
        Metadata { version: VERSION, cipher: Cipher::None, key_id: None, facts, shape, disk, device, memory };
    let text = serde_json::to_vec_pretty(&metadata).map_err(|error| Error::Answer(error.to_string()))?;
    write_durably(&folder.join(METADATA), &text)?;
    reached(KillPoint::SleepManifestWritten);
    let bytes = text.len() as u64 + metadata.device.bytes + bytes;
    let digest = blake3::hash(&text).to_hex().to_string();
    Ok(SnapshotInfo { digest, bytes, memory_bytes, memory: metadata.memory.kind() })
}

type OwnWritten = (MemoryPart, u64, u64);

/// The own image of a machine that had none: a copy of what its pages lie over, and those over it.
fn make_own(own: &Path, memory: &GuestMemory, base: &MemoryBase, runs: &[Run]) -> Result<OwnWritten> {
    // One of an earlier life of the machine.
    remove(own)?;
    into_folder(own, |partial| {
        let mut flat = match base {
            MemoryBase::Shared { folder, .. } => Flat::copy_of(folder, partial, memory.pages())?,
            _ => Flat::create(partial, memory.pages())?,
        };
        flat.update(memory, runs, KillPoint::SleepPagesBegun)?;
        finish_own(flat, partial)
    })
}

/// The VMM does not look at the pages that change: it has its own of them. What an earlier attempt left is written over.
fn update_own(own: &Path, memory: &GuestMemory, runs: &[Run]) -> Result<OwnWritten> {
    let mut flat = Flat::open(own)?;
    flat.update(memory, runs, KillPoint::OwnPartlyWritten)?;
    reached(KillPoint::OwnContentWritten);
    finish_own(flat, own)
}

fn finish_own(flat: Flat, folder: &Path) -> Result<OwnWritten> {
    let checksums = flat.finish(0o600)?;
    sync_folder(folder)?;
    let file = File::open(folder.join(crate::flat::MEMORY)).doing(|| format!("open {}", folder.display()))?;
    let image = FileIdentity::of(&file).doing(|| format!("examine {}", folder.display()))?;
    let content = checksums.content_bytes();
    Ok((MemoryPart::Own { image, checksums: Part::of(checksums.bytes()) }, content, content))
}
