//! A tree as a tar stream.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::{Error, Result};

/// What tar counts in.
const BLOCK: u64 = 512;
/// The name that what is copied has in its stream where it has none of its own.
const UNNAMED: &str = "content";
/// What is left out because it is not there any more.
const GONE: &str = "file that went away";

/// Something that is to be copied.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    /// None where only what is in a folder is copied.
    name: Option<OsString>,
    is_folder: bool,
}

/// What was not copied, because it is no file, folder or symbolic link, or went away while its folder was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub kind: &'static str,
}

/// The last part of a path, unless that means the folder itself: `x/.`, `/`.
fn own_name(path: &Path) -> Option<&OsStr> {
    let ends_with_dot = path.as_os_str().as_encoded_bytes().ends_with(b"/.");
    if ends_with_dot || path == Path::new(".") { None } else { path.file_name() }
}

impl Source {
    /// Something that is to be copied. A symbolic link is copied as one, unless a slash follows its name.
    ///
    /// # Errors
    /// It is not there, or it is none of the things that are copied.
    pub fn find(path: &Path) -> Result<Self> {
        let found = if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            path.metadata()
        } else {
            path.symlink_metadata()
        };
        let found = found.map_err(Error::at(path))?;
        if let Some(kind) = special(&found) {
            return Err(Error::Unsupported { name: path.display().to_string(), kind });
        }
        let name = own_name(path).map(OsStr::to_owned);
        Ok(Self { path: path.to_owned(), name, is_folder: found.is_dir() })
    }

    /// Its name; none where only what is in it is copied.
    pub fn name_of(path: &Path) -> Option<&OsStr> {
        own_name(path)
    }

    /// Its name; none where only what is in it is copied.
    pub fn name(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// How long its stream will be, about.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn measure(&self) -> Result<u64> {
        let mut total = 2 * BLOCK;
        self.walk(|_, _, found| {
            let Some(found) = found else { return Ok(()) };
            let content = if found.is_file() { found.len().next_multiple_of(BLOCK) } else { 0 };
            total += BLOCK + content;
            Ok(())
        })?;
        Ok(total)
    }

    /// Writes its stream.
    ///
    /// # Errors
    /// Something cannot be read, or the stream does not take it. What was written then is no whole archive.
    pub fn pack(&self, to: impl Write) -> Result<Vec<LeftOut>> {
        let mut archive = Builder::new(to);
        let mut left_out = Vec::new();
        let top = PathBuf::from(self.name.as_deref().unwrap_or(OsStr::new(UNNAMED)));
        self.walk(|path, below, found| {
            let name = if below == Path::new("") { top.clone() } else { top.join(below) };
            match (found, found.map_or(Some(GONE), special)) {
                (Some(found), None) => add(&mut archive, path, &name, found),
                (_, kind) => {
                    left_out.extend(kind.map(|kind| LeftOut { path: path.to_owned(), kind }));
                    Ok(())
                }
            }
        })?;
        let mut to = archive.into_inner().map_err(Error::BrokenOff)?;
        to.flush().map_err(Error::BrokenOff)?;
        Ok(left_out)
    }

    /// Visits it and everything below it, folders before what is in them: path, path below it, and what it is; nothing of what
    /// went away since its folder was read.
    fn walk(&self, mut visit: impl FnMut(&Path, &Path, Option<&Metadata>) -> Result<()>) -> Result<()> {
        let mut left = vec![PathBuf::new()];
        while let Some(below) = left.pop() {
            let is_top = below == Path::new("");
            let path = if is_top { self.path.clone() } else { self.path.join(&below) };
            let found = if is_top && self.is_folder { path.metadata() } else { path.symlink_metadata() };
            let visited = found.map_err(Error::at(&path)).and_then(|found| {
                visit(&path, &below, Some(&found))?;
                if found.is_dir() { names_in(&path) } else { Ok(Vec::new()) }
            });
            match visited {
                Ok(names) => left.extend(names.into_iter().map(|name| below.join(name))),
                Err(error) if !is_top && error.is_absence() => visit(&path, &below, None)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What is in a folder, the last name first.
fn names_in(folder: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut names: Vec<_> = entries.map_err(Error::at(folder))?.iter().map(fs::DirEntry::file_name).collect();
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

fn special(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    let kinds = [
        (kind.is_socket(), "socket"),
        (kind.is_fifo(), "named pipe"),
        (kind.is_char_device(), "character device"),
        (kind.is_block_device(), "block device"),
    ];
    kinds.into_iter().find_map(|(is, name)| is.then_some(name))
}

fn add<W: Write>(archive: &mut Builder<W>, path: &Path, name: &Path, found: &Metadata) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(found.mode() & 0o7777);
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    // Whose it is there is decided there.
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if found.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return archive.append_data(&mut header, name, io::empty()).map_err(Error::BrokenOff);
    }
    if found.is_symlink() {
        let to = fs::read_link(path).map_err(Error::at(path))?;
        header.set_entry_type(EntryType::Symlink);
        return archive.append_link(&mut header, name, to).map_err(Error::BrokenOff);
    }
    let (file, size) = open(path)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    let mut content = Content { file: file.take(size), left: size, failed: None };
    let added = archive.append_data(&mut header, name, &mut content);
    match content.failed {
        Some(failed) => Err(Error::at(path)(failed)),
        None if content.left > 0 && added.is_ok() => Err(Error::Shortened { path: path.to_owned() }),
        None => added.map_err(Error::BrokenOff),
    }
}

/// Opens a file: that one, not what a link has been put in its place for, nor a pipe that would be waited for.
fn open(path: &Path) -> Result<(File, u64)> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    let file = file.map_err(Error::at(path))?;
    let found = file.metadata().map_err(Error::at(path))?;
    if !found.is_file() {
        return Err(Error::at(path)(io::Error::other("it changed while it was copied")));
    }
    Ok((file, found.len()))
}

/// A file's content up to the length that was announced; tells what was wrong with it from what was wrong with the
/// stream.
struct Content {
    file: io::Take<File>,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
