//! A guest's memory from outside.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::Result;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Entries of a page map that are read at once.
const ENTRIES: usize = 64 << 10;
/// Ranges that one system call takes.
const RANGES: usize = 1024;

/// A process's mapping of a guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct GuestMemory {
    pid: u32,
    start: u64,
    pages: u64,
}

/// Neighbouring pages: first and end.
pub type Pages = Range<u64>;

impl GuestMemory {
    /// So many bytes at `start`.
    pub fn new(pid: u32, start: u64, bytes: u64) -> Self {
        Self { pid, start, pages: bytes / PAGE as u64 }
    }

    /// Pages that the process has written: present or swapped out, and not of a file.
    pub fn private(&self) -> Result<Vec<Pages>> {
        let map = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut found: Vec<Pages> = Vec::new();
        let mut buffer = vec![0; ENTRIES * 8];
        for first in (0..self.pages).step_by(ENTRIES) {
            let count = usize::try_from(self.pages - first)?.min(ENTRIES);
            let entries = &mut buffer[..count * 8];
            map.read_exact_at(entries, (self.start / PAGE as u64 + first) * 8)?;
            for (entry, page) in entries.as_chunks::<8>().0.iter().zip(first..) {
                let entry = u64::from_ne_bytes(*entry);
                if entry >> 62 != 0 && entry & (1 << 61) == 0 {
                    append(&mut found, page);
                }
            }
        }
        Ok(found)
    }

    /// Reads pages into a buffer of their size.
    pub fn read(&self, pages: &[Pages], buffer: &mut [u8]) -> Result<()> {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = self.remote(pages);
        // SAFETY: `local` is `buffer`, borrowed mutably for the call; the kernel checks the other process's ranges.
        let moved = unsafe {
            libc::process_vm_readv(self.pid()?, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
        };
        all(moved, buffer.len())
    }

    /// Writes pages from a buffer of their size.
    pub fn write(&self, pages: &[Pages], bytes: &[u8]) -> Result<()> {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remote = self.remote(pages);
        // SAFETY: the kernel only reads `local`, which is `bytes`, and checks the other process's ranges.
        let moved = unsafe {
            libc::process_vm_writev(self.pid()?, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
        };
        all(moved, bytes.len())
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.pid)?)
    }

    fn remote(&self, pages: &[Pages]) -> Vec<libc::iovec> {
        let at = |pages: &Pages| libc::iovec {
            iov_base: (self.start + pages.start * PAGE as u64) as *mut libc::c_void,
            iov_len: (pages.end - pages.start) as usize * PAGE,
        };
        pages.iter().map(at).collect()
    }
}

fn all(moved: isize, wanted: usize) -> Result<()> {
    match usize::try_from(moved) {
        Err(_) => Err(io::Error::last_os_error().into()),
        Ok(moved) if moved == wanted => Ok(()),
        Ok(moved) => Err(format!("only {moved} of {wanted} bytes of memory were moved").into()),
    }
}

/// Adds a page behind the others.
pub fn append(pages: &mut Vec<Pages>, page: u64) {
    match pages.last_mut() {
        Some(last) if last.end == page => last.end += 1,
        _ => pages.push(page..page + 1),
    }
}

/// Cuts ranges into groups that one system call takes: at most so many pages and [`RANGES`] ranges.
pub fn groups(pages: &[Pages], most: u64) -> Vec<Vec<Pages>> {
    let mut groups: Vec<Vec<Pages>> = Vec::new();
    let mut room = 0;
    for range in pages {
        let mut first = range.start;
        while first < range.end {
            if room == 0 || groups.last().is_none_or(|group| group.len() == RANGES) {
                groups.push(Vec::new());
                room = most;
            }
            let count = room.min(range.end - first);
            if let Some(group) = groups.last_mut() {
                group.push(first..first + count);
            }
            (first, room) = (first + count, room - count);
        }
    }
    groups
}

/// How many pages these are.
pub fn count(pages: &[Pages]) -> u64 {
    pages.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_page_once_and_no_more_than_they_may() {
        let pages = [0..3, 10..11, 20..29];
        let groups: Vec<Vec<u64>> =
            groups(&pages, 4).into_iter().map(|g| g.into_iter().flatten().collect()).collect();
        assert_eq!(groups.concat(), pages.into_iter().flatten().collect::<Vec<_>>());
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 1]);
    }
}
