//! Reading one back.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use tar::{Archive, Entries, Entry};

use crate::digest::Digesting;
use crate::{CHECKSUM, DISK, Error, METADATA, MOST_METADATA, Metadata, Result, VERSION};

/// How much of a disk is written at once.
const PIECE: usize = 256 * 1024;
/// What holes are found by.
static ZEROS: [u8; PIECE] = [0; PIECE];

/// Reads a backup through, and writes its disk to an empty file. What it says of itself is shown to `admit` before, which
/// may refuse it; that is certain only with the result, as is what was written. The checksum comes with it.
///
/// # Errors
/// Where it is not whole, or was refused; the file is of no use then.
pub fn unpack<R: Read>(
    from: R,
    disk: &File,
    admit: impl FnOnce(&Metadata) -> std::result::Result<(), String>,
) -> Result<(Metadata, String)> {
    let compressed = zstd::Decoder::new(from).map_err(damaged)?.single_frame();
    let (digesting, passed) = Digesting::new(compressed);
    let mut archive = Archive::new(digesting);
    let mut entries = archive.entries().map_err(damaged)?;
    let first = next(&mut entries, METADATA).map_err(|_| Error::Foreign)?;
    let metadata = metadata(first)?;
    admit(&metadata).map_err(Error::Refused)?;
    let entry = next(&mut entries, DISK)?;
    if entry.size() != metadata.disk_bytes {
        return Err(Error::Damaged("its disk has another size than it says".to_owned()));
    }
    disk.set_len(metadata.disk_bytes)?;
    copy(entry, disk)?;
    let entry = next(&mut entries, CHECKSUM)?;
    let (digest, before) = passed.digest();
    let is_here = entry.raw_header_position() == before;
    let checksum = digest.to_hex().to_string();
    if !is_here || text(entry)?.trim_end() != checksum {
        return Err(Error::Damaged("it does not have the checksum that it says".to_owned()));
    }
    if entries.next().is_some() {
        return Err(more());
    }
    ends(archive.into_inner().into_inner())?;
    Ok((metadata, checksum))
}

fn metadata<R: Read>(entry: Entry<'_, R>) -> Result<Metadata> {
    #[derive(Deserialize)]
    struct Format {
        version: u64,
        cipher: String,
    }
    let text = text(entry)?;
    // The rest may be anything in another version.
    let Format { version, cipher } = serde_json::from_str(&text).map_err(|_| Error::Foreign)?;
    if version != u64::from(VERSION) || cipher != "none" {
        return Err(Error::Unknown { version, cipher });
    }
    serde_json::from_str(&text).map_err(damaged)
}

/// The entry that must follow.
fn next<'a, R: Read>(entries: &mut Entries<'a, R>, name: &str) -> Result<Entry<'a, R>> {
    let missing = || Error::Damaged(format!("{name} is not where it should be"));
    let entry = entries.next().ok_or_else(missing)?.map_err(damaged)?;
    let is_it = entry.path().is_ok_and(|path| path == Path::new(name));
    if is_it { Ok(entry) } else { Err(missing()) }
}

fn text<R: Read>(entry: Entry<'_, R>) -> Result<String> {
    let mut text = String::new();
    entry.take(MOST_METADATA).read_to_string(&mut text).map_err(damaged)?;
    Ok(text)
}

/// Holes stay holes.
fn copy(mut from: impl Read, disk: &File) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let count = fill(&mut from, &mut piece).map_err(damaged)?;
        if count == 0 {
            return Ok(());
        }
        if piece[..count] != ZEROS[..count] {
            disk.write_all_at(&piece[..count], at)?;
        }
        at += count as u64;
    }
}

/// Reads until the buffer is full or nothing more comes.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Nothing follows but the archive's padding, and the frame around it is whole.
fn ends<R: Read>(mut compressed: zstd::Decoder<'static, BufReader<R>>) -> Result<()> {
    let mut rest = Vec::new();
    compressed.by_ref().take(MOST_METADATA).read_to_end(&mut rest).map_err(damaged)?;
    let is_padding = rest.iter().all(|byte| *byte == 0) && (rest.len() as u64) < MOST_METADATA;
    if is_padding && compressed.finish().fill_buf().map_err(damaged)?.is_empty() {
        Ok(())
    } else {
        Err(more())
    }
}

fn more() -> Error {
    Error::Damaged("there is more in it than there should be".to_owned())
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::Damaged(error.to_string())
}
