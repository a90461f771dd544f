//! Snapshots: a folder with `snapshot.json`, `device` and `memory`, and the rules of its use.
//!
//! | rule | what is checked |
//! |---|---|
//! | S3 | the data disk is the same file, in the same write epoch |
//! | S4 | the shape and the revision are exactly those it was made with |
//! | S8 | every part is whole, and is the one that the commit of the sleep named |
//!
//! [`Snapshot::open`] checks everything but the memory's content; that is hashed while it is put into the new
//! VMM, and the machine is not resumed unless the hash is right.

mod pages;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::memory::GuestMemory;
use crate::shape::{Misfit, Shape};

/// The format that is written and read.
const VERSION: u32 = 1;
const METADATA: &str = "snapshot.json";
const DEVICE: &str = "device";
const MEMORY: &str = "memory";
/// The most that metadata or device state may have; a real device state has some 20 KiB.
const LARGEST_PART: u64 = 64 << 20;

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

/// Which file a data disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// The device the file is on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// Its size.
    pub bytes: u64,
}

impl DiskIdentity {
    /// Of an open file.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { device: found.dev(), inode: found.ino(), bytes: found.len() })
    }
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
    disk: DiskIdentity,
    device: Part,
    memory: Part,
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
}

/// What a snapshot has to be to be resumed.
#[derive(Debug, Clone)]
pub struct Expected {
    /// From the [`SnapshotInfo`] that was committed with the sleep.
    pub digest: String,
    /// The instance that is to wake.
    pub instance: String,
    /// The revision whose files it will run with.
    pub revision: String,
    /// The shape it will have.
    pub shape: Shape,
    /// The data disk's write epoch as it was before this launch raised it.
    pub disk_epoch: u64,
    /// The data disk.
    pub disk: DiskIdentity,
}

/// The rule by which a snapshot is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Memory and disk together.
    S3,
    /// Exact fit.
    S4,
    /// Checked.
    S8,
}

/// Why a snapshot must not be used. The machine is started cold instead.
#[derive(Debug, thiserror::Error)]
#[error("snapshot refused ({:?}): {reason}", self.rule())]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
}

/// What is wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The disk was written, or could have been, since the sleep.
    #[error("its data disk is in write epoch {present}, the snapshot is of epoch {recorded}")]
    OtherEpoch {
        /// At the sleep.
        recorded: u64,
        /// Now.
        present: u64,
    },
    /// The disk is another file.
    #[error("its data disk is not the file it was: {recorded:?} then, {present:?} now")]
    OtherDisk {
        /// At the sleep.
        recorded: DiskIdentity,
        /// Now.
        present: DiskIdentity,
    },
    /// The virtual hardware or its engine changed.
    #[error(transparent)]
    OtherShape(#[from] Misfit),
    /// It runs other files.
    #[error("it was made with revision {recorded}, not {present}")]
    OtherRevision {
        /// At the sleep.
        recorded: String,
        /// Now.
        present: String,
    },
    /// It is another instance's.
    #[error("it belongs to {recorded}, not to {present}")]
    OtherInstance {
        /// At the sleep.
        recorded: String,
        /// Now.
        present: String,
    },
    /// A later or an unknown format.
    #[error("its {part} has a format that this version does not read: {detail}")]
    UnknownFormat {
        /// Which part.
        part: &'static str,
        /// What is unknown about it.
        detail: String,
    },
    /// It is missing or cannot be read.
    #[error("its {part} cannot be read: {source}")]
    Unreadable {
        /// Which part.
        part: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("its {part} is damaged: {detail}")]
    Damaged {
        /// Which part.
        part: &'static str,
        /// What is wrong.
        detail: String,
    },
}

impl Refusal {
    /// The rule that was broken.
    pub fn rule(&self) -> Rule {
        match self.reason {
            RefusalReason::OtherEpoch { .. } | RefusalReason::OtherDisk { .. } => Rule::S3,
            RefusalReason::OtherShape(_) | RefusalReason::OtherRevision { .. } => Rule::S4,
            _ => Rule::S8,
        }
    }
}

impl<T: Into<RefusalReason>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self { reason: reason.into() }
    }
}

fn damaged(part: &'static str, detail: impl Into<String>) -> Refusal {
    RefusalReason::Damaged { part, detail: detail.into() }.into()
}

fn unreadable(part: &'static str) -> impl Fn(io::Error) -> Refusal {
    move |source| RefusalReason::Unreadable { part, source }.into()
}

/// A snapshot that may be resumed as far as everything but its memory's content goes.
#[derive(Debug)]
pub struct Snapshot {
    metadata: Metadata,
    device: Vec<u8>,
    memory: PathBuf,
}

impl Snapshot {
    /// Reads the snapshot in `folder` and checks it against what it should be.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn open(folder: &Path, expected: &Expected) -> Result<Self, Refusal> {
        let text = read_part(folder, METADATA)?;
        if blake3::hash(&text).to_hex().as_str() != expected.digest {
            return Err(damaged(METADATA, "it is not the one that the sleep committed"));
        }
        let metadata = parse(&text)?;
        check(&metadata, expected)?;
        let device = read_part(folder, DEVICE)?;
        if Part::of(&device) != metadata.device {
            return Err(damaged(DEVICE, "wrong checksum"));
        }
        let memory = folder.join(MEMORY);
        let bytes = fs::metadata(&memory).map_err(unreadable(MEMORY))?.len();
        if bytes != metadata.memory.bytes {
            return Err(damaged(MEMORY, format!("{bytes} bytes instead of {}", metadata.memory.bytes)));
        }
        Ok(Self { metadata, device, memory })
    }

    /// What the caller said when it was made.
    pub fn facts(&self) -> &SnapshotFacts {
        &self.metadata.facts
    }

    /// Reads the memory's content and checks it without using it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn verify(&self) -> Result<(), Refusal> {
        let pages = u64::from(self.metadata.shape.mem_mib) * ((1 << 20) / crate::memory::PAGE);
        pages::read(&self.memory, pages, &self.metadata.memory, |_, _| Ok(())).map_err(|error| match error {
            Error::Refused(refusal) => refusal,
            other => damaged(MEMORY, other.to_string()),
        })
    }

    /// The checked device state.
    pub(crate) fn device(&self) -> &[u8] {
        &self.device
    }

    /// Puts the pages into a new VMM's guest memory. After an error that memory is good for nothing.
    pub(crate) fn fill(&self, memory: &GuestMemory) -> Result<()> {
        // The base is empty, so what the VMM put there itself while starting does not belong there.
        let zeros = vec![0; pages::CHUNK];
        for run in memory.private_runs().doing(|| "look at the new VMM's memory".into())? {
            for (first, count) in pages::pieces(run) {
                let bytes = &zeros[..count * crate::memory::PAGE as usize];
                memory.write(first, bytes).doing(|| "clear the new VMM's memory".into())?;
            }
        }
        pages::read(&self.memory, memory.pages(), &self.metadata.memory, |first, bytes| {
            memory.write(first, bytes)
        })
    }
}

fn read_part(folder: &Path, part: &'static str) -> Result<Vec<u8>, Refusal> {
    let mut content = Vec::new();
    let file = File::open(folder.join(part)).map_err(unreadable(part))?;
    file.take(LARGEST_PART).read_to_end(&mut content).map_err(unreadable(part))?;
    Ok(content)
}

/// Looks at the version before it expects anything of the rest.
fn parse(text: &[u8]) -> Result<Metadata, Refusal> {
    #[derive(Deserialize)]
    struct Format {
        version: u32,
        cipher: String,
    }
    let invalid = |error: serde_json::Error| damaged(METADATA, error.to_string());
    let format: Format = serde_json::from_slice(text).map_err(invalid)?;
    check_format(METADATA, format.version, &format.cipher)?;
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
    if metadata.disk != expected.disk {
        return Err(RefusalReason::OtherDisk { recorded: metadata.disk, present: expected.disk }.into());
    }
    if facts.revision != expected.revision {
        let (recorded, present) = (facts.revision.clone(), expected.revision.clone());
        return Err(RefusalReason::OtherRevision { recorded, present }.into());
    }
    Ok(metadata.shape.fits(&expected.shape)?)
}

/// Writes a snapshot of paused memory to `folder`, which appears whole or not at all.
pub(crate) fn write(
    folder: &Path,
    memory: &GuestMemory,
    device: &[u8],
    about: (SnapshotFacts, Shape, DiskIdentity),
) -> Result<SnapshotInfo> {
    if folder.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(source).doing(|| format!("write a snapshot over {}; remove it first", folder.display()));
    }
    let partial = partial_of(folder);
    remove_folder(&partial)?;
    let written = write_parts(&partial, memory, device, about).and_then(|info| {
        fs::rename(&partial, folder).doing(|| format!("name the snapshot {}", folder.display()))?;
        sync_folder(folder.parent().unwrap_or(Path::new("/")))?;
        Ok(info)
    });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = remove_folder(&partial);
    }
    written
}

/// Where a snapshot is until it is whole.
fn partial_of(folder: &Path) -> PathBuf {
    let mut partial = folder.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}

/// Removes a snapshot, or what is left of one, also of one that never became whole; that there is none is fine.
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

fn write_parts(
    folder: &Path,
    memory: &GuestMemory,
    device: &[u8],
    (facts, shape, disk): (SnapshotFacts, Shape, DiskIdentity),
) -> Result<SnapshotInfo> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .doing(|| format!("make the folder {}", folder.display()))?;
    let (memory, memory_bytes) = pages::write(&folder.join(MEMORY), memory)?;
    write_durably(&folder.join(DEVICE), device)?;
    let device = Part::of(device);
    let metadata =
        Metadata { version: VERSION, cipher: Cipher::None, key_id: None, facts, shape, disk, device, memory };
    let text = serde_json::to_vec_pretty(&metadata).map_err(|error| Error::Answer(error.to_string()))?;
    write_durably(&folder.join(METADATA), &text)?;
    sync_folder(folder)?;
    let bytes = text.len() as u64 + metadata.device.bytes + metadata.memory.bytes;
    Ok(SnapshotInfo { digest: blake3::hash(&text).to_hex().to_string(), bytes, memory_bytes })
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).doing(|| format!("create {}", path.display()))
}

fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    file.write_all(content).and_then(|()| file.sync_all()).doing(|| format!("write {}", path.display()))
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).doing(|| format!("sync {}", folder.display()))
}
