//! A tar stream as a tree.
//!
//! Every folder on the way is opened from the one above it, and never through a symbolic link, so that neither what the
//! stream says nor what happens in the target meanwhile can lead out of it. A file or a link gets its name when it is
//! whole: what has a name was copied, and what was there before is not half replaced.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions as Mode};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode as Bits, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::target::{Place, Target};
use crate::{Error, Result};

/// The most of a stream that lies between the contents of two files, in bytes: headers with long names.
const MOST_BETWEEN: u64 = 256 * 1024;

/// Which permissions a stream may give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permissions {
    /// All, set-user-id too.
    All,
    /// Reading, writing, executing. For streams from somebody who could so make programs of this user's.
    Plain,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files.
    pub files: u64,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes in files.
    pub bytes: u64,
}

/// Unpacks a whole stream. Files belong to whoever runs this.
///
/// # Errors
/// The stream is refused or broken, or something cannot be written. What was whole before stays.
pub fn unpack(target: &Target, from: impl Read, permissions: Permissions) -> Result<Counts> {
    let mut unpacking = Unpacking {
        target,
        mask: if permissions == Permissions::All { 0o7777 } else { 0o777 },
        counts: Counts::default(),
        folders: Vec::new(),
        last: None,
    };
    let allowed = Rc::new(Cell::new(MOST_BETWEEN));
    let mut archive = Archive::new(Watched { from, ended: false, allowed: Rc::clone(&allowed) });
    for entry in archive.entries().map_err(Error::Archive)? {
        let mut entry = entry.map_err(Error::Archive)?;
        allowed.set(entry.size());
        unpacking.take(&mut entry)?;
        allowed.set(MOST_BETWEEN);
    }
    let mut rest = archive.into_inner();
    if rest.ended {
        // An archive's end is more than no more bytes.
        return Err(Error::Truncated);
    }
    io::copy(&mut rest.from, &mut io::sink()).map_err(Error::Archive)?;
    unpacking.finish_folders()?;
    Ok(unpacking.counts)
}

/// Sees whether a stream was read to its end, and lets no more of it be read at once than makes sense: whoever reads an
/// archive keeps the names in it, however long it says they are.
struct Watched<R> {
    from: R,
    ended: bool,
    allowed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.allowed.get()).unwrap_or(usize::MAX).min(buffer.len());
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a name or a header in it is longer than any should be"));
        }
        let count = self.from.read(&mut buffer[..allowed])?;
        self.allowed.set(self.allowed.get() - count as u64);
        self.ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

struct Unpacking<'a> {
    target: &'a Target,
    mask: u32,
    counts: Counts,
    /// Those that were made, and what they become when all is in them.
    folders: Vec<(PathBuf, u32, u64)>,
    /// The folder that was written in last.
    last: Option<(PathBuf, OwnedFd)>,
}

impl Unpacking<'_> {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let path = self.place(&name)?;
        let header = entry.header();
        let mode = header.mode().map_err(Error::Archive)? & self.mask;
        let changed = header.mtime().map_err(Error::Archive)?;
        let kind = match kind {
            EntryType::Directory => return self.folder(&path, mode, changed),
            EntryType::Regular | EntryType::Continuous => return self.file(&path, mode, changed, entry),
            EntryType::Symlink => return self.link(&path, entry),
            EntryType::Link => "hard link; `tar --hard-dereference` makes an archive without them",
            EntryType::Fifo => "named pipe",
            EntryType::Char | EntryType::Block => "device",
            _ => "thing that is not known",
        };
        Err(Error::Unsupported { name: String::from_utf8_lossy(&name).into_owned(), kind })
    }

    /// Where something with this name belongs, below the target.
    fn place(&self, name: &[u8]) -> Result<PathBuf> {
        let escapes = || Error::Escapes { name: String::from_utf8_lossy(name).into_owned() };
        if name.first() == Some(&b'/') || name.contains(&0) {
            return Err(escapes());
        }
        let mut parts = Vec::new();
        for part in name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err(escapes());
            }
            parts.push(OsStr::from_bytes(part));
        }
        match &self.target.place {
            Place::Archive => Ok(parts.iter().collect()),
            _ if parts.is_empty() => Err(escapes()),
            Place::As(name) => Ok([name.as_os_str()].iter().chain(&parts[1..]).collect()),
            Place::Contents => Ok(parts[1..].iter().collect()),
        }
    }

    fn shown(&self, path: &Path) -> PathBuf {
        self.target.path.join(path)
    }

    /// The folder that something is to be written in, and its name there.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(&OwnedFd, &'p OsStr)> {
        let Some(name) = path.file_name() else {
            return Err(Error::InTheWay { path: self.shown(path) });
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.last.as_ref().is_none_or(|(last, _)| last != parent) {
            self.last = Some((parent.to_owned(), self.open_folder(parent)?));
        }
        match &self.last {
            Some((_, folder)) => Ok((folder, name)),
            None => Err(Error::InTheWay { path: self.shown(path) }),
        }
    }

    /// Opens a folder below the target step by step; one that is missing is made.
    fn open_folder(&self, path: &Path) -> Result<OwnedFd> {
        let wrong = |error: Errno| match error {
            Errno::LOOP | Errno::NOTDIR => Error::InTheWay { path: self.shown(path) },
            other => Error::at(&self.shown(path))(other.into()),
        };
        let mut folder = OwnedFd::from(self.target.folder.try_clone().map_err(Error::at(&self.target.path))?);
        for part in path.components() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = |folder: &OwnedFd| rustix::fs::openat(folder, part.as_os_str(), flags, Bits::empty());
            folder = match open(&folder) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, part.as_os_str(), Bits::from_raw_mode(0o755))
                        .map_err(wrong)?;
                    open(&folder).map_err(wrong)?
                }
                opened => opened.map_err(wrong)?,
            };
        }
        Ok(folder)
    }

    /// Makes a folder; one that is there stays as it is.
    fn folder(&mut self, path: &Path, mode: u32, changed: u64) -> Result<()> {
        self.counts.folders += 1;
        if path == Path::new("") {
            return Ok(());
        }
        let shown = self.shown(path);
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(parent, name, Bits::from_raw_mode(0o700)) {
            Ok(()) => {
                self.folders.push((path.to_owned(), mode, changed));
                Ok(())
            }
            // Whether it is a folder, and no link to one.
            Err(Errno::EXIST) => self.open_folder(path).map(drop),
            Err(error) => Err(Error::at(&shown)(error.into())),
        }
    }

    fn file<R: Read>(
        &mut self,
        path: &Path,
        mode: u32,
        changed: u64,
        entry: &mut Entry<'_, R>,
    ) -> Result<()> {
        let shown = self.shown(path);
        let size = entry.size();
        let (parent, name) = self.parent(path)?;
        replace(parent, name, &shown, |unfinished| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, unfinished, flags, Bits::from_raw_mode(0o600));
            let mut file = File::from(file.map_err(|error| Error::at(&shown)(error.into()))?);
            copy(entry, &mut file, size, &shown)?;
            file.set_permissions(Mode::from_mode(mode)).map_err(Error::at(&shown))?;
            file.set_modified(time(changed)).map_err(Error::at(&shown))
        })?;
        self.counts.files += 1;
        self.counts.bytes += size;
        Ok(())
    }

    fn link<R: Read>(&mut self, path: &Path, entry: &Entry<'_, R>) -> Result<()> {
        let shown = self.shown(path);
        let leads_to = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let (parent, name) = self.parent(path)?;
        replace(parent, name, &shown, |unfinished| {
            rustix::fs::symlinkat(OsStr::from_bytes(&leads_to), parent, unfinished)
                .map_err(|error| Error::at(&shown)(error.into()))
        })?;
        self.counts.links += 1;
        Ok(())
    }

    /// Permissions and times of the folders that were made, the inner ones first.
    fn finish_folders(&mut self) -> Result<()> {
        for (path, mode, changed) in std::mem::take(&mut self.folders).iter().rev() {
            let folder = File::from(self.open_folder(path)?);
            let shown = self.shown(path);
            folder.set_permissions(Mode::from_mode(*mode)).map_err(Error::at(&shown))?;
            let seconds = Timespec { tv_sec: i64::try_from(*changed).unwrap_or(0), tv_nsec: 0 };
            let times = Timestamps { last_access: seconds, last_modification: seconds };
            rustix::fs::futimens(&folder, &times).map_err(|error| Error::at(&shown)(error.into()))?;
        }
        Ok(())
    }
}

/// Makes something under a name that nothing has, and gives it the name it is for when it is whole.
fn replace(
    parent: &OwnedFd,
    name: &OsStr,
    shown: &Path,
    make: impl FnOnce(&OsStr) -> Result<()>,
) -> Result<()> {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    if found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory) {
        return Err(Error::at(shown)(io::ErrorKind::IsADirectory.into()));
    }
    let unfinished = unfinished_name();
    let made = make(&unfinished).and_then(|()| {
        rustix::fs::renameat(parent, &unfinished, parent, name)
            .map_err(|error| Error::at(shown)(error.into()))
    });
    if made.is_err() {
        // It may not even have been made.
        let _ = rustix::fs::unlinkat(parent, &unfinished, AtFlags::empty());
    }
    made
}

fn unfinished_name() -> OsString {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    format!(".mvm-cp-{}-{number}-{nanos:x}", std::process::id()).into()
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

/// Copies a file's content, and knows which side failed.
fn copy(from: &mut impl Read, to: &mut File, size: u64, shown: &Path) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = size;
    while left > 0 {
        let count = from.read(&mut buffer).map_err(Error::BrokenOff)?;
        if count == 0 {
            return Err(Error::Truncated);
        }
        io::Write::write_all(to, &buffer[..count]).map_err(Error::at(shown))?;
        left -= count as u64;
    }
    Ok(())
}
