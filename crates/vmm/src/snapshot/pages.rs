//! The file `memory` of a delta: the pages of a guest that are not what lies below them, which is a base or zeros.
//!
//! ```text
//! "mvm-mem\n"   length: u32   header: JSON { version, cipher, key_id, page_bytes, compression }
//! blocks        length: u32, then that many bytes: up to 256 pages in rising order, compressed as the header says
//! table         of runs of neighbouring pages: first: u64, count: u64, its highest bit set where they are zeros over
//!               something: such pages are in no block
//! trailer       runs: u64, pages in blocks: u64
//! ```
//! Numbers are little-endian. The table comes last, as only reading a page tells whether it is the same as below.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::SnapshotCompression;
use serde::{Deserialize, Serialize};

use super::compression::{compress, decompress};
use super::folder::create;
use super::refusal::{damaged, unreadable};
use super::{Cipher, MEMORY, Part, VERSION, check_format};
use crate::error::{Doing, Error, Result};
use crate::flat::{Below, is_zero};
use crate::memory::{GuestMemory, PAGE, Run, extend};
use crate::snapshot::Refusal;

const MAGIC: &[u8; 8] = b"mvm-mem\n";
const PAGE_BYTES: usize = PAGE as usize;
/// Bytes of a run in the table, and of the trailer.
const PAIR: u64 = 16;
/// Marks a run of zeros in the table.
const ZEROS: u64 = 1 << 63;
/// Pages are read and written in portions of at most so many bytes.
pub(super) const CHUNK: usize = 1 << 20;
/// So many portions may have been read and not be summed up yet.
const AHEAD: usize = 4;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    cipher: Cipher,
    key_id: Option<String>,
    page_bytes: u64,
    compression: SnapshotCompression,
}

/// Cuts a run into portions: first page and count.
pub(super) fn pieces(run: Run) -> impl Iterator<Item = (u64, usize)> {
    let most = CHUNK / PAGE_BYTES;
    (0..run.count).step_by(most).map(move |at| {
        let left = usize::try_from(run.count - at).unwrap_or(most);
        (run.first + at, left.min(most))
    })
}

/// Writes what these pages have over what lies below to a new file, durably. Returns the part and how many bytes of memory are
/// in it.
pub(super) fn write(
    path: &Path,
    memory: &GuestMemory,
    runs: &[Run],
    below: &Below,
    compression: SnapshotCompression,
) -> Result<(Part, u64)> {
    let mut output = Output {
        file: create(path)?,
        hasher: blake3::Hasher::new(),
        bytes: 0,
        compression,
        block: Vec::with_capacity(CHUNK),
    };
    write_all(&mut output, memory, runs, below)
        .doing(|| format!("write the guest's pages to {}", path.display()))
}

fn write_all(
    output: &mut Output,
    memory: &GuestMemory,
    runs: &[Run],
    below: &Below,
) -> io::Result<(Part, u64)> {
    output.put(&header(output.compression)?)?;
    let (mut kept, mut zeros) = (Vec::new(), Vec::new());
    let (mut buffer, mut under) = (vec![0; CHUNK], vec![0; CHUNK]);
    for (first, count) in runs.iter().copied().flat_map(pieces) {
        let (portion, under) = (&mut buffer[..count * PAGE_BYTES], &mut under[..count * PAGE_BYTES]);
        memory.read(first, portion)?;
        below.read(first, under)?;
        let pages = portion.chunks_exact(PAGE_BYTES).zip(under.chunks_exact(PAGE_BYTES)).zip(first..);
        for ((page, _), index) in pages.filter(|((page, under), _)| page != under) {
            if is_zero(page) {
                extend(&mut zeros, index);
            } else {
                extend(&mut kept, index);
                output.page(page)?;
            }
        }
        reached(KillPoint::SleepPagesBegun);
    }
    output.end_block()?;
    let pages: u64 = kept.iter().map(|run| run.count).sum();
    let table = kept.iter().map(|run| pair(run.first, run.count));
    let table: Vec<u8> =
        table.chain(zeros.iter().map(|run| pair(run.first, run.count | ZEROS))).flatten().collect();
    output.put(&table)?;
    output.put(&pair((kept.len() + zeros.len()) as u64, pages))?;
    output.file.sync_all()?;
    let blake3 = output.hasher.finalize().to_hex().to_string();
    Ok((Part { bytes: output.bytes, blake3 }, pages * PAGE))
}

struct Output {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    compression: SnapshotCompression,
    /// Pages for the next block.
    block: Vec<u8>,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn page(&mut self, page: &[u8]) -> io::Result<()> {
        self.block.extend_from_slice(page);
        if self.block.len() >= CHUNK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        let stored = compress(self.compression, &block)?;
        let length = u32::try_from(stored.len()).map_err(io::Error::other)?;
        self.put(&length.to_le_bytes())?;
        self.put(&stored)?;
        drop(stored);
        self.block = block;
        self.block.clear();
        Ok(())
    }
}

fn header(compression: SnapshotCompression) -> io::Result<Vec<u8>> {
    let header =
        Header { version: VERSION, cipher: Cipher::None, key_id: None, page_bytes: PAGE, compression };
    let json = serde_json::to_vec(&header)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    Ok([MAGIC.as_slice(), &length.to_le_bytes(), &json].concat())
}

fn pair(one: u64, other: u64) -> [u8; PAIR as usize] {
    (u128::from(one) | u128::from(other) << 64).to_le_bytes()
}

fn unpair(bytes: [u8; PAIR as usize]) -> (u64, u64) {
    let both = u128::from_le_bytes(bytes);
    (both as u64, (both >> 64) as u64)
}

/// Gives all pages to `take`, some pieces of neighbouring ones at once, and checks the whole file meanwhile.
///
/// What was taken must not be used unless this succeeds.
pub(super) fn read(
    path: &Path,
    pages: u64,
    expected: &Part,
    mut take: impl FnMut(&[(u64, &[u8])]) -> io::Result<()>,
) -> Result<()> {
    let mut input = Input::open(path)?;
    let layout = Layout::read(&input.file, pages, expected.bytes)?;
    input.skip(layout.header_bytes)?;
    let mut runs = layout.kept.iter().copied();
    let mut run = runs.next();
    let mut left = layout.kept.iter().map(|run| run.count).sum::<u64>() * PAGE;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let stored = input.block(layout.blocks_end)?;
        let block = decompress(layout.compression, &stored, length)
            .map_err(|error| damaged(MEMORY, error.to_string()))?;
        left -= length as u64;
        take(&cut(&block, &mut run, &mut runs)).doing(|| "put pages into the new VMM".into())?;
    }
    if input.at != layout.blocks_end {
        return Err(damaged(MEMORY, "the blocks do not end where they should").into());
    }
    let zeros = vec![0; CHUNK];
    for (first, count) in layout.zeros.iter().copied().flat_map(pieces) {
        take(&[(first, &zeros[..count * PAGE_BYTES])]).doing(|| "put zeros into the new VMM".into())?;
    }
    input.skip(expected.bytes - layout.blocks_end)?;
    if input.checksum()?.to_hex().as_str() != expected.blake3 {
        return Err(damaged(MEMORY, "wrong checksum").into());
    }
    Ok(())
}

/// Cuts a block into the pieces that the next runs say.
fn cut<'a>(
    mut block: &'a [u8],
    run: &mut Option<Run>,
    runs: &mut impl Iterator<Item = Run>,
) -> Vec<(u64, &'a [u8])> {
    let mut pieces = Vec::new();
    while let (Some(now), false) = (run.as_mut(), block.is_empty()) {
        let here = (block.len() / PAGE_BYTES).min(usize::try_from(now.count).unwrap_or(usize::MAX));
        let (piece, rest) = block.split_at(here * PAGE_BYTES);
        pieces.push((now.first, piece));
        block = rest;
        (now.first, now.count) = (now.first + here as u64, now.count - here as u64);
        if now.count == 0 {
            *run = runs.next();
        }
    }
    pieces
}

/// A file that is read from front to end. What was read is summed up on a thread of its own, so that one core checks it
/// while the other puts it where it belongs.
struct Input {
    file: File,
    at: u64,
    read: SyncSender<Arc<Vec<u8>>>,
    sum: JoinHandle<blake3::Hash>,
}

impl Input {
    fn open(path: &Path) -> Result<Self, Refusal> {
        let file = File::open(path).map_err(unreadable(MEMORY))?;
        let (read, pieces) = mpsc::sync_channel::<Arc<Vec<u8>>>(AHEAD);
        let sum = std::thread::spawn(move || {
            let mut hasher = blake3::Hasher::new();
            for piece in pieces {
                hasher.update(&piece);
            }
            hasher.finalize()
        });
        Ok(Self { file, at: 0, read, sum })
    }

    fn read(&mut self, bytes: usize) -> Result<Arc<Vec<u8>>, Refusal> {
        let mut piece = vec![0; bytes];
        self.file.read_exact(&mut piece).map_err(unreadable(MEMORY))?;
        self.at += bytes as u64;
        let piece = Arc::new(piece);
        self.read.send(Arc::clone(&piece)).map_err(|_| broke_off())?;
        Ok(piece)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), Refusal> {
        while bytes > 0 {
            let now = CHUNK.min(usize::try_from(bytes).unwrap_or(CHUNK));
            self.read(now)?;
            bytes -= now as u64;
        }
        Ok(())
    }

    /// The next block, as it is stored.
    fn block(&mut self, end: u64) -> Result<Arc<Vec<u8>>, Refusal> {
        let mut length = [0; 4];
        length.copy_from_slice(&self.read(4)?);
        let length = u32::from_le_bytes(length);
        if u64::from(length) > end.saturating_sub(self.at) {
            return Err(damaged(MEMORY, "a block reaches over the end of the blocks"));
        }
        self.read(length as usize)
    }

    /// Of all that was read.
    fn checksum(self) -> Result<blake3::Hash, Refusal> {
        drop(self.read);
        self.sum.join().map_err(|_| broke_off())
    }
}

fn broke_off() -> Refusal {
    damaged(MEMORY, "its check broke off")
}

/// What a memory file has where.
struct Layout {
    header_bytes: u64,
    compression: SnapshotCompression,
    blocks_end: u64,
    kept: Vec<Run>,
    zeros: Vec<Run>,
}

impl Layout {
    /// Reads header, trailer and table and makes sure that they fit one another and a guest of so many pages.
    fn read(file: &File, guest_pages: u64, bytes: u64) -> Result<Self> {
        let (header_bytes, compression) = read_header(file)?;
        let shape = || Error::from(damaged(MEMORY, "header, table and size do not fit"));
        let trailer_at = bytes.checked_sub(PAIR).ok_or_else(shape)?;
        let (run_count, page_count) = unpair(exact(file, trailer_at)?);
        // Two neighbouring runs of a kind would be one, so there are fewer runs than pages.
        if page_count > guest_pages || run_count > guest_pages {
            return Err(shape());
        }
        let blocks_end = trailer_at.checked_sub(run_count * PAIR).ok_or_else(shape)?;
        if blocks_end < header_bytes {
            return Err(shape());
        }
        let mut table = vec![0; usize::try_from(run_count * PAIR).map_err(|_| shape())?];
        file.read_exact_at(&mut table, blocks_end).map_err(unreadable(MEMORY))?;
        let (entries, _) = table.as_chunks::<{ PAIR as usize }>();
        let entries = entries.iter().map(|entry| unpair(*entry));
        let (zeros, kept): (Vec<_>, Vec<_>) = entries.partition(|(_, count)| count & ZEROS != 0);
        let kept: Vec<Run> = kept.into_iter().map(run).collect();
        let zeros: Vec<Run> = zeros.into_iter().map(|(first, count)| run((first, count & !ZEROS))).collect();
        let ordered = are_ordered(&kept, guest_pages) && are_ordered(&zeros, guest_pages);
        if !ordered || kept.iter().map(|run| run.count).sum::<u64>() != page_count {
            return Err(shape());
        }
        Ok(Self { header_bytes, compression, blocks_end, kept, zeros })
    }
}

fn run((first, count): (u64, u64)) -> Run {
    Run { first, count }
}

/// Whether the runs rise without touching one another, within the guest. Then their sum cannot overflow.
fn are_ordered(runs: &[Run], guest_pages: u64) -> bool {
    let mut free_from = 0;
    runs.iter().all(|run| {
        let end = run.end().filter(|end| run.count > 0 && run.first >= free_from && *end <= guest_pages);
        free_from = end.unwrap_or(free_from);
        end.is_some()
    })
}

fn exact<const N: usize>(file: &File, at: u64) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).map_err(unreadable(MEMORY))?;
    Ok(bytes)
}

/// Checks the header and returns how long it is, and how blocks are compressed.
fn read_header(file: &File) -> Result<(u64, SnapshotCompression), Refusal> {
    if exact::<8>(file, 0)? != *MAGIC {
        return Err(damaged(MEMORY, "it does not begin as it should"));
    }
    let length = u32::from_le_bytes(exact(file, 8)?);
    let mut json = vec![0; length.min(4096) as usize];
    file.read_exact_at(&mut json, 12).map_err(unreadable(MEMORY))?;
    let header: Header = serde_json::from_slice(&json).map_err(|error| damaged(MEMORY, error.to_string()))?;
    let cipher = if header.cipher == Cipher::None { "none" } else { "unknown" };
    check_format(MEMORY, header.version, cipher)?;
    if header.page_bytes != PAGE {
        return Err(damaged(MEMORY, format!("pages of {} bytes", header.page_bytes)));
    }
    Ok((12 + u64::from(length), header.compression))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flat::Flat;
    use crate::memory::tests::{GUEST_PAGES, guest};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn read_back(path: &Path, part: &Part) -> Result<BTreeMap<u64, u8>> {
        let mut found = BTreeMap::new();
        read(path, GUEST_PAGES, part, |pieces| {
            for (first, bytes) in pieces {
                found.extend((*first..).zip(bytes.chunks_exact(PAGE_BYTES).map(|page| page[0])));
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn runs_of(pages: &BTreeMap<u64, u8>) -> Vec<Run> {
        let mut runs = Vec::new();
        pages.keys().for_each(|page| extend(&mut runs, *page));
        runs
    }

    fn any_compression() -> impl Strategy<Value = SnapshotCompression> {
        prop::sample::select(SnapshotCompression::ALL.as_slice())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn only_what_differs_from_below_is_written_and_read(
            base in prop::collection::btree_map(0..GUEST_PAGES, 0u8..3, 0..600),
            pages in prop::collection::btree_map(0..GUEST_PAGES, 0u8..3, 0..600),
            compression in any_compression(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut flat = Flat::create(folder.path(), GUEST_PAGES).unwrap();
            flat.update(&guest(&base).memory, &runs_of(&base), KillPoint::BasePartlyWritten).unwrap();
            let checksums = flat.finish(0o400).unwrap();
            let content = File::open(folder.path().join("memory")).unwrap();
            let below = Below::Flat { content, checksums };
            let path = folder.path().join("delta");
            let (part, bytes) =
                write(&path, &guest(&pages).memory, &runs_of(&pages), &below, compression).unwrap();
            let mut different = pages;
            different.retain(|page, value| base.get(page).copied().unwrap_or(0) != *value);
            let content = different.values().filter(|value| **value != 0).count();
            prop_assert_eq!(bytes, content as u64 * PAGE);
            prop_assert_eq!(read_back(&path, &part).unwrap(), different);
        }

        #[test]
        fn any_flipped_byte_is_found(
            at in any::<prop::sample::Index>(), bit in 0..8, compression in any_compression(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("memory");
            let pages = (100..140).chain(1000..1003).map(|page| (page, 1)).collect();
            let (part, _) =
                write(&path, &guest(&pages).memory, &runs_of(&pages), &Below::Zero, compression).unwrap();
            let mut content = std::fs::read(&path).unwrap();
            let index = at.index(content.len());
            content[index] ^= 1u8 << bit;
            std::fs::write(&path, content).unwrap();
            let refused = matches!(read_back(&path, &part), Err(Error::Refused(_)));
            prop_assert!(refused);
        }
    }

    #[test]
    fn overlapping_and_overlong_runs_are_no_table() {
        let ordered =
            |pairs: &[(u64, u64)]| are_ordered(&pairs.iter().copied().map(run).collect::<Vec<_>>(), 10);
        assert!(ordered(&[(0, 2), (5, 5)]));
        for bad in [&[(0, 3), (2, 1)][..], &[(5, 6)], &[(3, 0)], &[(1, u64::MAX)], &[(4, 1), (0, 1)]] {
            assert!(!ordered(bad), "{bad:?}");
        }
    }
}
