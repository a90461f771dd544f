//! A guest's memory, seen from outside: which pages are private to the VMM, and what is in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{Doing, Error, Result};
use crate::sys;

/// Bytes of a page. (x86-64 has no other base size.)
pub(crate) const PAGE: u64 = 4096;
/// Bytes of an entry of /proc/pid/pagemap.
const ENTRY: usize = 8;
/// Entries read at once.
const ENTRIES: usize = 64 << 10;

/// A process's mapping of a guest's whole memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestMemory {
    pid: u32,
    start: u64,
    pages: u64,
}

/// Neighbouring pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of the first page.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
}

impl Run {
    /// Index of the page after the last; nothing if that is no number.
    pub(crate) fn end(self) -> Option<u64> {
        self.first.checked_add(self.count)
    }
}

/// Appends a page to runs that are in order.
pub(crate) fn extend(runs: &mut Vec<Run>, page: u64) {
    match runs.last_mut() {
        Some(run) if run.first + run.count == page => run.count += 1,
        _ => runs.push(Run { first: page, count: 1 }),
    }
}

impl GuestMemory {
    /// The mapping of `bytes` at `start`, after making sure that it is private and writable, and of a file or of none as it
    /// should be.
    pub(crate) fn new(pid: u32, start: u64, bytes: u64, of_file: bool) -> Result<Self> {
        let maps =
            fs::read_to_string(format!("/proc/{pid}/maps")).doing(|| "read the VMM's mappings".into())?;
        let wrong = |reason: &str| Error::Answer(format!("guest memory at {start:#x}: {reason}"));
        let mapping = maps.lines().filter_map(Mapping::parse).find(|m| m.from <= start && start < m.to);
        let mapping = mapping.ok_or_else(|| wrong("nothing is mapped there"))?;
        if mapping.to - start < bytes {
            return Err(wrong("the mapping is too small"));
        }
        if !mapping.private || mapping.of_file != of_file {
            return Err(wrong("the mapping is not private memory"));
        }
        if !start.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) {
            return Err(wrong("not whole pages"));
        }
        Ok(Self { pid, start, pages: bytes / PAGE })
    }

    /// How many pages the guest has.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages that were written since the VMM started: neither absent nor the base's.
    pub(crate) fn private_runs(&self) -> io::Result<Vec<Run>> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut runs = Vec::new();
        let mut buffer = vec![0; ENTRIES * ENTRY];
        let mut page = 0;
        while page < self.pages {
            let left = usize::try_from(self.pages - page).unwrap_or(ENTRIES).min(ENTRIES);
            let chunk = &mut buffer[..left * ENTRY];
            pagemap.read_exact_at(chunk, (self.start / PAGE + page) * ENTRY as u64)?;
            for (entry, index) in chunk.as_chunks::<ENTRY>().0.iter().zip(page..) {
                if is_private(u64::from_ne_bytes(*entry)) {
                    extend(&mut runs, index);
                }
            }
            page += left as u64;
        }
        Ok(runs)
    }

    /// Reads neighbouring pages, as many as `buffer` holds.
    pub(crate) fn read(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        let address = self.address(first, buffer.len())?;
        sys::read_process(self.process()?, address, buffer)
    }

    /// Writes pieces of neighbouring pages, each by its first page.
    pub(crate) fn write(&self, pieces: &[(u64, &[u8])]) -> io::Result<()> {
        let placed = pieces.iter().map(|(first, bytes)| Ok((self.address(*first, bytes.len())?, *bytes)));
        sys::write_process(self.process()?, &placed.collect::<io::Result<Vec<_>>>()?)
    }

    fn process(&self) -> io::Result<i32> {
        i32::try_from(self.pid).map_err(io::Error::other)
    }

    /// The address of a page in the VMM; nothing outside the guest's memory has one.
    fn address(&self, first: u64, bytes: usize) -> io::Result<u64> {
        let end = Run { first, count: (bytes as u64).div_ceil(PAGE) }.end();
        if end.is_none_or(|end| end > self.pages) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "outside the guest's memory"));
        }
        Ok(self.start + first * PAGE)
    }
}

/// Present (bit 63) or swapped out (bit 62), and not of a file or shared (bit 61).
fn is_private(entry: u64) -> bool {
    entry >> 62 != 0 && entry & (1 << 61) == 0
}

/// A line of /proc/pid/maps.
struct Mapping {
    from: u64,
    to: u64,
    private: bool,
    of_file: bool,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let inode = fields.nth(2)?;
        Some(Self {
            from: u64::from_str_radix(from, 16).ok()?,
            to: u64::from_str_radix(to, 16).ok()?,
            private: permissions == "rw-p",
            of_file: inode != "0",
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    pub(crate) const GUEST_PAGES: u64 = 4096;

    /// Some of this process's own memory, standing for a guest's: reading and writing it is the same.
    pub(crate) struct Guest {
        _block: Vec<u8>,
        pub(crate) memory: GuestMemory,
    }

    /// A guest whose pages have these bytes, and zeros where none is named.
    pub(crate) fn guest(pages: &BTreeMap<u64, u8>) -> Guest {
        let mut block = vec![0u8; (GUEST_PAGES * PAGE) as usize * 3];
        // Touching it all makes the mapping private at all pages, the zero ones too.
        block.fill(0);
        let start = (block.as_ptr() as u64).next_multiple_of(PAGE);
        let memory = GuestMemory::new(std::process::id(), start, GUEST_PAGES * PAGE, false).unwrap();
        for (page, value) in pages {
            memory.write(&[(*page, &[*value; PAGE as usize])]).unwrap();
        }
        Guest { _block: block, memory }
    }

    #[test]
    fn only_written_pages_are_private() {
        assert!(!is_private(0));
        assert!(is_private(1 << 63), "present, anonymous");
        assert!(is_private(1 << 62 | 5), "swapped out");
        assert!(!is_private(1 << 63 | 1 << 61), "present, of a file");
    }

    #[test]
    fn neighbours_join() {
        let mut runs = Vec::new();
        for page in [0, 1, 2, 7, 9, 10] {
            extend(&mut runs, page);
        }
        let expected = [(0, 3), (7, 1), (9, 2)].map(|(first, count)| Run { first, count });
        assert_eq!(runs, expected);
    }

    #[test]
    fn own_memory_is_found_read_and_written() {
        // Big enough for a mapping of its own.
        let block = vec![0u8; 64 << 20];
        let start = (block.as_ptr() as u64).next_multiple_of(PAGE);
        let memory = GuestMemory::new(std::process::id(), start, 32 << 20, false).unwrap();
        assert_eq!(memory.private_runs().unwrap(), []);
        memory.write(&[(5, &[7; 4096])]).unwrap();
        let mut page = [0; 4096];
        memory.read(5, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
        let written: u64 = memory.private_runs().unwrap().iter().map(|run| run.count).sum();
        assert!(written >= 1, "huge pages may make it more");
        assert!(memory.write(&[((32 << 20) / PAGE, &[0; 4096])]).is_err());
        assert!(memory.read(u64::MAX, &mut page).is_err());
        drop(block);
    }

    #[test]
    fn a_mapping_that_is_too_small_is_no_memory() {
        assert!(GuestMemory::new(std::process::id(), 4096, 4096, false).is_err());
    }
}
