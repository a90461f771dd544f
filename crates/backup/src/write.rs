//! Writing one.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use tar::{Builder, Header};

use crate::digest::Digested;
use crate::{CHECKSUM, Cipher, DISK, Facts, METADATA, Metadata, Result, VERSION};

/// Writes the backup of a disk that nothing writes to meanwhile; gives its checksum. How many bytes of how many are
/// through, before they are compressed, is told now and then.
///
/// # Errors
/// The disk's own, and those of where it goes to.
pub fn write<W: Write>(
    facts: Facts,
    disk: &mut File,
    to: W,
    mut progress: impl FnMut(u64, u64),
) -> Result<String> {
    let found = disk.metadata()?;
    let (disk_bytes, taken) = (found.len(), found.blocks() * 512);
    let metadata = Metadata { version: VERSION, cipher: Cipher::None, key_id: None, facts, disk_bytes };
    let text = serde_json::to_vec_pretty(&metadata).map_err(io::Error::from)?;
    let mut compressed = zstd::Encoder::new(to, zstd::DEFAULT_COMPRESSION_LEVEL)?;
    compressed.include_checksum(true)?;
    let mut archive = Builder::new(Digested::new(compressed, |done: u64| progress(done.min(taken), taken)));
    let taken_at = metadata.facts.taken_at_ms / 1000;
    append(&mut archive, METADATA, &text, taken_at)?;
    archive.append_file(DISK, disk)?;
    let checksum = archive.get_ref().digest();
    append(&mut archive, CHECKSUM, format!("{checksum}\n").as_bytes(), taken_at)?;
    archive.into_inner()?.inner.finish()?.flush()?;
    Ok(checksum)
}

fn append<W: Write>(archive: &mut Builder<W>, name: &str, content: &[u8], at: u64) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(at);
    archive.append_data(&mut header, name, content)
}
