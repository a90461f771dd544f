//! A guest's whole memory as one sparse file, that VMMs map, with a checksum for each piece of it.
//!
//! A base is one, and so is the own image of a machine whose private pages would take too long to be copied at each wake.
//! A folder holds `memory`, as long as the guest's memory, and `checksums`: 16 bytes of BLAKE3 for each 64 KiB in order,
//! zeros for a piece that is all zeros (and a hole in the file).

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mvm_kill_point::{KillPoint, reached};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::error::{Doing, Error, Result};
use crate::memory::{GuestMemory, PAGE, Run};
use crate::sparse;

pub(crate) const MEMORY: &str = "memory";
pub(crate) const CHECKSUMS: &str = "checksums";

/// Bytes that one checksum is of.
const PIECE: usize = 64 << 10;
const PIECE_PAGES: u64 = PIECE as u64 / PAGE;
const SUM: usize = 16;
/// Bytes that are worked on at once.
const PORTION: usize = 1 << 20;
const PORTION_PAGES: u64 = PORTION as u64 / PAGE;

type Sum = [u8; SUM];
const ZERO: Sum = [0; SUM];

/// The checksums of a flat memory, by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checksums(Vec<Sum>);

impl Checksums {
    /// Of a memory of so many pages that is all zeros.
    fn empty(pages: u64) -> Self {
        Self(vec![ZERO; usize::try_from(pages.div_ceil(PIECE_PAGES)).unwrap_or(usize::MAX)])
    }

    /// Of a flat memory as it is.
    fn of(file: &File) -> io::Result<Self> {
        let pieces = file.metadata()?.len().div_ceil(PIECE as u64);
        let mut buffer = vec![0; PIECE];
        let sums = (0..pieces).map(|index| {
            let offset = index * PIECE as u64;
            if is_hole(file, offset)? {
                return Ok(ZERO);
            }
            let read = read_at_most(file, &mut buffer, offset)?;
            Ok(sum_of(&buffer[..read]))
        });
        sums.collect::<io::Result<_>>().map(Self)
    }

    /// From the content of a file.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (sums, rest) = bytes.as_chunks::<SUM>();
        rest.is_empty().then(|| Self(sums.to_vec()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }

    /// Bytes of memory that are in pieces with content.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.0.iter().filter(|sum| **sum != ZERO).count() as u64 * PIECE as u64
    }

    fn is_zero(&self, piece: u64) -> bool {
        usize::try_from(piece).ok().and_then(|piece| self.0.get(piece)).is_none_or(|sum| *sum == ZERO)
    }
}

fn sum_of(piece: &[u8]) -> Sum {
    if is_zero(piece) {
        return ZERO;
    }
    let mut sum = ZERO;
    blake3::Hasher::new().update(piece).finalize_xof().fill(&mut sum);
    sum
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// What a machine's private pages lie over.
#[derive(Debug)]
pub(crate) enum Below {
    /// Zeros.
    Zero,
    /// The content of a flat memory.
    Flat {
        /// The file or its block device.
        content: File,
        /// Tell which pieces need not be read.
        checksums: Checksums,
    },
}

impl Below {
    /// Reads pages from `first` on, as many as the buffer holds.
    pub(crate) fn read(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Self::Flat { content, checksums } = self else {
            buffer.fill(0);
            return Ok(());
        };
        let end = first + (buffer.len() as u64).div_ceil(PAGE);
        if (first / PIECE_PAGES..end.div_ceil(PIECE_PAGES)).all(|piece| checksums.is_zero(piece)) {
            buffer.fill(0);
            return Ok(());
        }
        content.read_exact_at(buffer, first * PAGE)
    }
}

/// A flat memory that can be changed: nobody has it mapped, or whoever has does not look at the pages that change.
#[derive(Debug)]
pub(crate) struct Flat {
    folder: PathBuf,
    file: File,
    checksums: Checksums,
}

impl Flat {
    /// A new one in a folder that is there, all zeros.
    pub(crate) fn create(folder: &Path, pages: u64) -> Result<Self> {
        let path = folder.join(MEMORY);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.doing(|| format!("create {}", path.display()))?;
        file.set_len(pages * PAGE).doing(|| format!("size {}", path.display()))?;
        Ok(Self { folder: folder.to_owned(), file, checksums: Checksums::empty(pages) })
    }

    /// A copy of another one, in a folder that is there; shared on disk where the file system can.
    pub(crate) fn copy_of(below: &Path, folder: &Path, pages: u64) -> Result<Self> {
        let mut copy = Self::create(folder, pages)?;
        let from = File::open(below.join(MEMORY)).doing(|| format!("open {}", below.display()))?;
        sparse::copy(&from, &copy.file).doing(|| format!("copy {}", below.display()))?;
        copy.checksums = read_checksums(below)?;
        Ok(copy)
    }

    /// One that is there, to be changed in place. Until that is finished it has no checksums: a change that was given up
    /// leaves nothing that could be taken for whole, or for damaged.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MEMORY);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.doing(|| format!("open {}", path.display()))?;
        let known = folder.join(CHECKSUMS);
        let checksums = if known.exists() {
            let checksums = read_checksums(folder)?;
            fs::remove_file(&known).doing(|| format!("remove {}", known.display()))?;
            // Before anything is written: no crash may leave old checksums beside new content.
            crate::snapshot::sync_folder(folder)?;
            checksums
        } else {
            // What an earlier attempt did not write is as it was checked then.
            Checksums::of(&file).doing(|| format!("read {}", path.display()))?
        };
        reached(KillPoint::OwnOpened);
        Ok(Self { folder: folder.to_owned(), file, checksums })
    }

    /// Takes in the pages of these runs as they are in the guest. What it took of the disk it gives back where that fails. The
    /// point is what tests call the moments in the middle of it.
    pub(crate) fn update(&mut self, memory: &GuestMemory, runs: &[Run], point: KillPoint) -> Result<()> {
        let before = self.checksums.clone();
        self.take_in(memory, runs, point).inspect_err(|_| self.empty_again(&before))
    }

    /// Makes holes again of pieces that were all zeros: a VMM that maps them has pages of its own where they are not now.
    fn empty_again(&self, before: &Checksums) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for (index, _) in (0u64..).zip(&before.0).filter(|(_, sum)| **sum == ZERO) {
            // The first error is the one to tell.
            let _ = fallocate(&self.file, flags, index * PIECE as u64, PIECE as u64);
        }
    }

    fn take_in(&mut self, memory: &GuestMemory, runs: &[Run], point: KillPoint) -> Result<()> {
        let doing = || format!("write the guest's pages to {}", self.folder.join(MEMORY).display());
        let mut buffer = vec![0; PORTION];
        let mut runs = runs.iter().copied().peekable();
        while let Some(run) = runs.peek() {
            let first = run.first / PORTION_PAGES * PORTION_PAGES;
            let end = (first + PORTION_PAGES).min(memory.pages());
            let portion = &mut buffer[..usize::try_from((end - first) * PAGE).unwrap_or(PORTION)];
            update_portion(&self.file, &mut self.checksums, memory, first, portion, &mut runs)
                .doing(doing)?;
            reached(point);
        }
        Ok(())
    }

    /// Makes it durable as it is now: the folder has to be made so by the caller.
    pub(crate) fn finish(self, mode: u32) -> Result<Checksums> {
        let doing = || format!("write {}", self.folder.display());
        self.file.sync_all().doing(doing)?;
        self.file.set_permissions(Permissions::from_mode(mode)).doing(doing)?;
        let path = self.folder.join(CHECKSUMS);
        let partial = path.with_extension("partial");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .doing(doing)?;
        file.write_all(self.checksums.bytes()).and_then(|()| file.sync_all()).doing(doing)?;
        fs::rename(&partial, &path).doing(doing)?;
        Ok(self.checksums)
    }
}

/// Lays the runs that begin in this portion over what the file has there, and writes the pieces that became different.
fn update_portion(
    file: &File,
    checksums: &mut Checksums,
    memory: &GuestMemory,
    first: u64,
    portion: &mut [u8],
    runs: &mut std::iter::Peekable<impl Iterator<Item = Run>>,
) -> io::Result<()> {
    let end = first + portion.len() as u64 / PAGE;
    let sums = usize::try_from(first / PIECE_PAGES).unwrap_or(usize::MAX);
    let sums = checksums.0.get_mut(sums..).unwrap_or_default();
    if sums.iter().take(portion.len().div_ceil(PIECE)).all(|sum| *sum == ZERO) {
        portion.fill(0);
    } else {
        file.read_exact_at(portion, first * PAGE)?;
    }
    let mut touched = [false; PORTION / PIECE];
    while let Some(run) = runs.peek_mut().filter(|run| run.first < end) {
        let count = run.count.min(end - run.first);
        let at = (run.first - first) * PAGE;
        let (from, to) = (usize_of(at), usize_of(at + count * PAGE));
        memory.read(run.first, &mut portion[from..to])?;
        touched[from / PIECE..to.div_ceil(PIECE)].fill(true);
        (run.first, run.count) = (run.first + count, run.count - count);
        if run.count == 0 {
            runs.next();
        }
    }
    let pieces = portion.chunks(PIECE).zip(sums).zip(touched).zip(first / PIECE_PAGES..);
    for (((content, sum), _), index) in pieces.filter(|((_, touched), _)| *touched) {
        let new = sum_of(content);
        // Always written: what an earlier attempt left there may not be what the old sum says.
        if new == ZERO {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, flags, index * PIECE as u64, content.len() as u64)?;
        } else {
            file.write_all_at(content, index * PIECE as u64)?;
        }
        *sum = new;
    }
    Ok(())
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The checksums in a folder.
pub(crate) fn read_checksums(folder: &Path) -> Result<Checksums> {
    let path = folder.join(CHECKSUMS);
    let bytes = fs::read(&path).doing(|| format!("read {}", path.display()))?;
    Checksums::parse(&bytes).ok_or_else(|| Error::Answer(format!("{} is not whole", path.display())))
}

/// A check of a flat memory's whole content, which takes a while: it can be told to end early.
#[derive(Debug)]
pub struct FlatCheck {
    file: File,
    checksums: Checksums,
    stop: Arc<AtomicBool>,
}

impl FlatCheck {
    /// Of the flat memory in a folder, as its checksums are now.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn of(folder: &Path) -> Result<Self> {
        let path = folder.join(MEMORY);
        let file = File::open(&path).doing(|| format!("open {}", path.display()))?;
        Ok(Self { file, checksums: read_checksums(folder)?, stop: Arc::default() })
    }

    /// The same, but nothing for one that was being changed when its writer gave up: it is nobody's memory yet.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn unless_changing(folder: &Path) -> Result<Option<Self>> {
        folder.join(CHECKSUMS).exists().then(|| Self::of(folder)).transpose()
    }

    /// Ends it early, without a finding, once it is set.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Reads everything. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] if a piece is not what was written.
    pub fn run(&self) -> Result<()> {
        let found = self.first_bad().doing(|| "check a guest's memory".into())?;
        match found {
            None => Ok(()),
            Some(at) => Err(crate::snapshot::Refusal::damaged_memory(at).into()),
        }
    }

    /// The offset of the first piece that is not what its checksum says.
    fn first_bad(&self) -> io::Result<Option<u64>> {
        let mut buffer = vec![0; PIECE];
        for (sum, index) in self.checksums.0.iter().zip(0u64..) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            // Pieces of zeros are holes: reading them would only take time, unless something was written there.
            let offset = index * PIECE as u64;
            if *sum == ZERO && is_hole(&self.file, offset)? {
                continue;
            }
            let read = read_at_most(&self.file, &mut buffer, offset)?;
            if sum_of(&buffer[..read]) != *sum {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }
}

fn is_hole(file: &File, offset: u64) -> io::Result<bool> {
    match seek(file, SeekFrom::Data(offset)) {
        Err(rustix::io::Errno::NXIO) => Ok(true),
        Ok(data) => Ok(data >= offset + PIECE as u64),
        Err(error) => Err(error.into()),
    }
}

fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::tests::{GUEST_PAGES, guest};

    const POINT: KillPoint = KillPoint::OwnPartlyWritten;

    fn content(folder: &Path) -> BTreeMap<u64, u8> {
        let bytes = fs::read(folder.join(MEMORY)).unwrap();
        assert_eq!(bytes.len() as u64, GUEST_PAGES * PAGE);
        let pages = bytes.chunks(PAGE as usize).zip(0..);
        pages.filter(|(page, _)| !is_zero(page)).map(|(page, index)| (index, page[0])).collect()
    }

    fn runs_of(pages: &BTreeMap<u64, u8>) -> Vec<Run> {
        let mut runs = Vec::new();
        pages.keys().for_each(|page| crate::memory::extend(&mut runs, *page));
        runs
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn what_is_taken_in_lies_over_what_was_there(
            below in prop::collection::btree_map(0..GUEST_PAGES, 0u8..4, 0..300),
            above in prop::collection::btree_map(0..GUEST_PAGES, 0u8..4, 0..300),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut flat = Flat::create(folder.path(), GUEST_PAGES).unwrap();
            flat.update(&guest(&below).memory, &runs_of(&below), POINT).unwrap();
            let sums = flat.finish(0o400).unwrap();
            prop_assert_eq!(&read_checksums(folder.path()).unwrap(), &sums);

            let second = tempfile::tempdir().unwrap();
            let mut flat = Flat::copy_of(folder.path(), second.path(), GUEST_PAGES).unwrap();
            flat.update(&guest(&above).memory, &runs_of(&above), POINT).unwrap();
            let sums = flat.finish(0o600).unwrap();
            let mut expected = below;
            expected.extend(above);
            expected.retain(|_, value| *value != 0);
            prop_assert_eq!(content(second.path()), expected);
            prop_assert_eq!(&read_checksums(second.path()).unwrap(), &sums);
            prop_assert_eq!(FlatCheck::of(second.path()).unwrap().first_bad().unwrap(), None);
        }

        #[test]
        fn any_flipped_bit_is_found(page in 0..GUEST_PAGES, at in 0..PAGE, bit in 0..8) {
            let folder = tempfile::tempdir().unwrap();
            let mut flat = Flat::create(folder.path(), GUEST_PAGES).unwrap();
            let pages = (64..200).map(|page| (page, 3)).collect();
            flat.update(&guest(&pages).memory, &runs_of(&pages), POINT).unwrap();
            flat.finish(0o600).unwrap();
            let file = File::options().read(true).write(true).open(folder.path().join(MEMORY)).unwrap();
            let (offset, mut byte) = (page * PAGE + at, [0]);
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ (1u8 << bit)], offset).unwrap();
            let found = FlatCheck::of(folder.path()).unwrap().first_bad().unwrap();
            prop_assert_eq!(found, Some(offset / PIECE as u64 * PIECE as u64));
        }
    }

    #[test]
    fn a_change_that_was_given_up_is_neither_whole_nor_damaged_and_can_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second): (BTreeMap<u64, u8>, _) =
            ((0..100).map(|p| (p, 1)).collect(), (50..150).map(|p| (p, 2)));
        let mut flat = Flat::create(folder.path(), GUEST_PAGES).unwrap();
        flat.update(&guest(&first).memory, &runs_of(&first), POINT).unwrap();
        flat.finish(0o600).unwrap();
        assert!(FlatCheck::unless_changing(folder.path()).unwrap().is_some());

        let second: BTreeMap<u64, u8> = second.collect();
        Flat::open(folder.path()).unwrap().update(&guest(&second).memory, &runs_of(&second), POINT).unwrap();
        assert!(FlatCheck::unless_changing(folder.path()).unwrap().is_none());
        assert!(FlatCheck::of(folder.path()).is_err(), "nothing wakes from it");

        let third: BTreeMap<u64, u8> = (140..160).map(|page| (page, 3)).collect();
        let mut flat = Flat::open(folder.path()).unwrap();
        flat.update(&guest(&third).memory, &runs_of(&third), POINT).unwrap();
        flat.finish(0o600).unwrap();
        let expected: BTreeMap<u64, u8> = first.into_iter().chain(second).chain(third).collect();
        assert_eq!(content(folder.path()), expected);
        assert_eq!(FlatCheck::of(folder.path()).unwrap().first_bad().unwrap(), None);
    }
}
