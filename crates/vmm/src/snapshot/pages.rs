//! The file `memory`: the pages of a guest that are not the base's and not zero.
//!
//! ```text
//! "mvm-mem\n"   length: u32   header: JSON { version, cipher, key_id, page_bytes }
//! pages         4096 bytes each, in rising order
//! table         of runs of neighbouring pages: first: u64, count: u64
//! trailer       runs: u64, pages: u64
//! ```
//! Numbers are little-endian. The table comes last, as only reading a page tells whether it is zero.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Cipher, MEMORY, Part, VERSION, check_format, create, damaged, unreadable};
use crate::error::{Doing, Error, Result};
use crate::memory::{GuestMemory, PAGE, Run, extend};
use crate::snapshot::Refusal;

const MAGIC: &[u8; 8] = b"mvm-mem\n";
const PAGE_BYTES: usize = PAGE as usize;
/// Bytes of a run in the table, and of the trailer.
const PAIR: u64 = 16;
/// Pages are read and written in portions of at most so many bytes.
pub(super) const CHUNK: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    cipher: Cipher,
    key_id: Option<String>,
    page_bytes: u64,
}

/// Cuts a run into portions: first page and count.
pub(super) fn pieces(run: Run) -> impl Iterator<Item = (u64, usize)> {
    let most = CHUNK / PAGE_BYTES;
    (0..run.count).step_by(most).map(move |at| {
        let left = usize::try_from(run.count - at).unwrap_or(most);
        (run.first + at, left.min(most))
    })
}

/// Writes the private pages to a new file, durably. Returns the part and how many bytes of memory are in it.
pub(super) fn write(path: &Path, memory: &GuestMemory) -> Result<(Part, u64)> {
    let mut output = Output { file: create(path)?, hasher: blake3::Hasher::new(), bytes: 0 };
    let runs = memory.private_runs().doing(|| "find the guest's pages".into())?;
    write_all(&mut output, memory, &runs).doing(|| format!("write the guest's pages to {}", path.display()))
}

fn write_all(output: &mut Output, memory: &GuestMemory, runs: &[Run]) -> io::Result<(Part, u64)> {
    output.put(&header()?)?;
    let (mut kept, mut buffer, mut full) = (Vec::new(), vec![0; CHUNK], Vec::with_capacity(2 * CHUNK));
    for (first, count) in runs.iter().copied().flat_map(pieces) {
        let portion = &mut buffer[..count * PAGE_BYTES];
        memory.read(first, portion)?;
        for (page, index) in portion.chunks_exact(PAGE_BYTES).zip(first..) {
            if page != [0; PAGE_BYTES] {
                full.extend_from_slice(page);
                extend(&mut kept, index);
            }
        }
        if full.len() >= CHUNK {
            output.put(&full)?;
            full.clear();
        }
    }
    output.put(&full)?;
    let pages: u64 = kept.iter().map(|run| run.count).sum();
    let table: Vec<u8> = kept.iter().flat_map(|run| pair(run.first, run.count)).collect();
    output.put(&table)?;
    output.put(&pair(kept.len() as u64, pages))?;
    output.file.sync_all()?;
    let blake3 = output.hasher.finalize().to_hex().to_string();
    Ok((Part { bytes: output.bytes, blake3 }, pages * PAGE))
}

struct Output {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

fn header() -> io::Result<Vec<u8>> {
    let header = Header { version: VERSION, cipher: Cipher::None, key_id: None, page_bytes: PAGE };
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

/// Gives every portion of neighbouring pages to `take`, and checks the whole file meanwhile.
///
/// What was taken must not be used unless this succeeds.
pub(super) fn read(
    path: &Path,
    pages: u64,
    expected: &Part,
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<()> {
    let mut input = Input::open(path)?;
    let layout = Layout::read(&input.file, pages, expected.bytes)?;
    input.skip(layout.header_bytes)?;
    let mut buffer = vec![0; CHUNK];
    let mut portion = Vec::with_capacity(CHUNK / PAGE_BYTES);
    for (first, count) in layout.runs.iter().copied().flat_map(pieces) {
        let held: usize = portion.iter().map(|(_, count)| count).sum();
        if (held + count) * PAGE_BYTES > CHUNK {
            input.portion(&portion, &mut buffer, &mut take)?;
            portion.clear();
        }
        portion.push((first, count));
    }
    input.portion(&portion, &mut buffer, &mut take)?;
    input.skip(layout.tail_bytes)?;
    let found = input.hasher.finalize().to_hex();
    if found.as_str() != expected.blake3 {
        return Err(damaged(MEMORY, "wrong checksum").into());
    }
    Ok(())
}

struct Input {
    file: File,
    hasher: blake3::Hasher,
}

impl Input {
    fn open(path: &Path) -> Result<Self, Refusal> {
        let file = File::open(path).map_err(unreadable(MEMORY))?;
        Ok(Self { file, hasher: blake3::Hasher::new() })
    }

    fn hashed(&mut self, buffer: &mut [u8]) -> Result<(), Refusal> {
        self.file.read_exact(buffer).map_err(unreadable(MEMORY))?;
        self.hasher.update(buffer);
        Ok(())
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), Refusal> {
        let mut buffer = vec![0; CHUNK.min(usize::try_from(bytes).unwrap_or(CHUNK))];
        while bytes > 0 {
            let now = buffer.len().min(usize::try_from(bytes).unwrap_or(CHUNK));
            self.hashed(&mut buffer[..now])?;
            bytes -= now as u64;
        }
        Ok(())
    }

    /// Reads the pages of some pieces at once and gives them out piece by piece.
    fn portion(
        &mut self,
        pieces: &[(u64, usize)],
        buffer: &mut [u8],
        take: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<()> {
        let bytes: usize = pieces.iter().map(|(_, count)| count * PAGE_BYTES).sum();
        self.hashed(&mut buffer[..bytes])?;
        let mut rest = &buffer[..bytes];
        for (first, count) in pieces {
            let (piece, after) = rest.split_at(count * PAGE_BYTES);
            take(*first, piece).doing(|| "put pages into the new VMM".into())?;
            rest = after;
        }
        Ok(())
    }
}

/// What a memory file has where.
struct Layout {
    header_bytes: u64,
    runs: Vec<Run>,
    tail_bytes: u64,
}

impl Layout {
    /// Reads header, trailer and table and makes sure that they fit one another and a guest of so many pages.
    fn read(file: &File, guest_pages: u64, bytes: u64) -> Result<Self> {
        let header_bytes = read_header(file)?;
        let shape = || Error::from(damaged(MEMORY, "header, table and size do not fit"));
        let trailer_at = bytes.checked_sub(PAIR).ok_or_else(shape)?;
        let (run_count, page_count) = unpair(exact(file, trailer_at)?);
        if page_count > guest_pages || run_count > page_count {
            return Err(shape());
        }
        let table_at = header_bytes + page_count * PAGE;
        if table_at + run_count * PAIR != trailer_at {
            return Err(shape());
        }
        let mut table = vec![0; usize::try_from(run_count * PAIR).map_err(|_| shape())?];
        file.read_exact_at(&mut table, table_at).map_err(unreadable(MEMORY))?;
        let (entries, _) = table.as_chunks::<{ PAIR as usize }>();
        let runs: Vec<Run> = entries.iter().map(|entry| run(unpair(*entry))).collect();
        let tail_bytes = run_count * PAIR + PAIR;
        if !are_ordered(&runs, guest_pages) || runs.iter().map(|run| run.count).sum::<u64>() != page_count {
            return Err(shape());
        }
        Ok(Self { header_bytes, runs, tail_bytes })
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

/// Checks the header and returns how long it is.
fn read_header(file: &File) -> Result<u64, Refusal> {
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
    Ok(12 + u64::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const GUEST_PAGES: u64 = 4096;

    /// Some of this process's own memory, standing for a guest's: reading and writing it is the same.
    struct Guest {
        _block: Vec<u8>,
        memory: GuestMemory,
    }

    fn guest(pages: &BTreeMap<u64, u8>) -> Guest {
        let mut block = vec![0u8; (GUEST_PAGES * PAGE) as usize * 3];
        // Touching it all makes the mapping private at all pages, the zero ones too.
        block.fill(0);
        let start = (block.as_ptr() as u64).next_multiple_of(PAGE);
        let memory = GuestMemory::new(std::process::id(), start, GUEST_PAGES * PAGE).unwrap();
        for (page, value) in pages {
            memory.write(*page, &[*value; PAGE_BYTES]).unwrap();
        }
        Guest { _block: block, memory }
    }

    fn read_back(path: &Path, part: &Part) -> Result<BTreeMap<u64, u8>> {
        let mut found = BTreeMap::new();
        read(path, GUEST_PAGES, part, |first, bytes| {
            found.extend((first..).zip(bytes.chunks_exact(PAGE_BYTES).map(|page| page[0])));
            Ok(())
        })?;
        Ok(found)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn what_is_written_is_read_and_zero_pages_are_not(
            pages in prop::collection::btree_map(0..GUEST_PAGES, any::<u8>(), 0..600),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("memory");
            let (part, bytes) = write(&path, &guest(&pages).memory).unwrap();
            let full: BTreeMap<_, _> = pages.into_iter().filter(|(_, value)| *value != 0).collect();
            prop_assert_eq!(bytes, full.len() as u64 * PAGE);
            prop_assert_eq!(read_back(&path, &part).unwrap(), full);
        }

        #[test]
        fn any_flipped_byte_is_found(at in any::<prop::sample::Index>(), bit in 0..8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("memory");
            let pages = (100..140).chain(1000..1003).map(|page| (page, 1)).collect();
            let (part, _) = write(&path, &guest(&pages).memory).unwrap();
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
