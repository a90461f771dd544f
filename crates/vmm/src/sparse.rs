//! Copies of sparse files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes that are read and written at once where the kernel does not copy.
const PORTION: u64 = 1 << 20;

/// Copies what has content, and leaves holes, into a file that is as long and all hole. The blocks are shared where the file
/// system can.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            found => found?,
        };
        at = seek(from, SeekFrom::Hole(start))?;
        let copied = match copy_in_kernel(from, to, start, at) {
            // From one file system to another; and what some answer that cannot do it at all.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => start,
            copied => copied?,
        };
        copy_by_hand(from, to, copied, at)?;
    }
}

/// Tells up to where it came: some kernels copy nothing of some files, and call that a success.
fn copy_in_kernel(from: &File, to: &File, start: u64, end: u64) -> Result<u64, Errno> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let length = usize::try_from(end - read).unwrap_or(usize::MAX);
        if copy_file_range(from, Some(&mut read), to, Some(&mut written), length)? == 0 {
            break;
        }
    }
    Ok(read)
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(PORTION.min(end - start)).unwrap_or_default()];
    let mut at = start;
    while at < end {
        let portion = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let portion = &mut buffer[..portion];
        from.read_exact_at(portion, at)?;
        to.write_all_at(portion, at)?;
        at += portion.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;

    /// A file system of its own, for as long as this lasts.
    struct FileSystem(tempfile::TempDir);

    impl FileSystem {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            Self(folder)
        }

        fn file(&self, bytes: u64) -> File {
            let file = tempfile::tempfile_in(self.0.path()).unwrap();
            file.set_len(bytes).unwrap();
            file
        }
    }

    impl Drop for FileSystem {
        fn drop(&mut self) {
            unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
        }
    }

    fn is_copied(from: &FileSystem, to: &FileSystem) {
        const BYTES: u64 = 64 << 20;
        let (from, to) = (from.file(BYTES), to.file(BYTES));
        // More than a portion, the first and the last byte, and a page alone in a hole.
        let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
        for (content, at) in [(&large[..], 0), (b"middle", 20 << 20), (b"end", BYTES - 3)] {
            from.write_all_at(content, at).unwrap();
        }
        copy(&from, &to).unwrap();
        let content = |file: &File| {
            let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(content(&from) == content(&to));
        assert_eq!(to.metadata().unwrap().len(), BYTES);
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from), "{} blocks of {}", blocks(&to), blocks(&from));
    }

    #[test]
    fn content_and_holes_are_copied_within_a_file_system_and_from_one_to_another() {
        let (one, other) = (FileSystem::new(), FileSystem::new());
        is_copied(&one, &one);
        let refused = copy_file_range(one.file(1), None, other.file(1), None, 1);
        assert_eq!(refused, Err(Errno::XDEV), "or this tests nothing");
        is_copied(&one, &other);
    }
}
