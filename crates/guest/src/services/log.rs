//! A service's log: two files in memory, the older one thrown away when the newer is full.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Result};
use crate::machine::places;

/// The most that one file holds, in bytes.
const FILE_LIMIT: u64 = 1024 * 1024;

/// A log that is being written.
#[derive(Debug)]
pub struct RotatingLog {
    path: PathBuf,
    limit: u64,
    file: File,
    size: u64,
}

impl RotatingLog {
    /// Begins the log of the service, or whatever else, of this name.
    ///
    /// # Errors
    /// It could not be made.
    pub fn of(name: &str) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(places::LOGS)
            .doing("making the folder of logs")?;
        let path = Path::new(places::LOGS).join(format!("{name}.log"));
        Self::create(&path, FILE_LIMIT).doing(format_args!("making {}", path.display()))
    }

    /// Begins a log.
    ///
    /// # Errors
    /// The file could not be made.
    fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, path: path.to_owned(), limit, size: 0 })
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("log.1")
    }

    /// Appends bytes, all of them or, if they are more than a whole file, their end.
    ///
    /// # Errors
    /// The file system's.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let bytes = &bytes[bytes.len().saturating_sub(room)..];
        let length = bytes.len() as u64;
        if self.size + length > self.limit {
            fs::rename(&self.path, self.older())?;
            self.file = File::create(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(bytes)?;
        self.size += length;
        Ok(())
    }

    /// All that is kept, oldest first.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = fs::read(self.older()).unwrap_or_default();
        bytes.extend(fs::read(&self.path).unwrap_or_default());
        bytes
    }

    /// The last lines, as text.
    pub fn last_lines(&self, count: usize) -> String {
        let bytes = self.contents();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_end_is_kept_and_the_files_stay_small(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.log");
            let mut log = RotatingLog::create(&path, 50).unwrap();
            for piece in &pieces {
                log.append(piece).unwrap();
            }
            let all = pieces.concat();
            let kept = log.contents();
            prop_assert!(all.ends_with(&kept));
            // No file is begun anew before another piece would have been too much for it.
            prop_assert!(kept.len() >= all.len().min(50 - 39));
            for entry in fs::read_dir(folder.path()).unwrap() {
                prop_assert!(entry.unwrap().metadata().unwrap().len() <= 50);
            }
        }
    }

    #[test]
    fn the_last_lines_are_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = RotatingLog::create(&folder.path().join("x.log"), 12).unwrap();
        log.append(b"one\ntwo\n").unwrap();
        log.append(b"three\nfour").unwrap();
        assert_eq!(log.last_lines(3), "two\nthree\nfour");
        assert_eq!(log.last_lines(30), "one\ntwo\nthree\nfour");
    }
}
