//! Which file a machine's disk or image is.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Which file something is, and since when it is as it is. Not by its device: the number of that may be another after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its inode.
    pub inode: u64,
    /// Its size.
    pub bytes: u64,
    /// When it was made, in nanoseconds since 1970, where the file system knows. Inodes are used again.
    #[serde(default)]
    pub born_ns: Option<i64>,
    /// When it was written last, likewise. Nothing writes to the files of a machine that sleeps.
    #[serde(default)]
    pub written_ns: Option<i64>,
}

impl FileIdentity {
    /// Of an open file.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            inode: found.ino(),
            bytes: found.len(),
            born_ns: found.created().ok().and_then(nanoseconds),
            written_ns: found.modified().ok().and_then(nanoseconds),
        })
    }

    /// Whether it is the same file, unchanged, as far as both are known.
    pub(super) fn is(&self, other: &Self) -> bool {
        let same =
            |one: Option<i64>, other: Option<i64>| one.zip(other).is_none_or(|(one, other)| one == other);
        (self.inode, self.bytes) == (other.inode, other.bytes)
            && same(self.born_ns, other.born_ns)
            && same(self.written_ns, other.written_ns)
    }
}

fn nanoseconds(time: SystemTime) -> Option<i64> {
    i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_written_in_place_is_not_the_same() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let before = FileIdentity::of(&file).unwrap();
        assert!(before.is(&FileIdentity::of(&file).unwrap()));
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!before.is(&FileIdentity::of(&file).unwrap()));
    }

    #[test]
    fn what_an_earlier_version_wrote_is_compared_by_what_it_has() {
        let file = tempfile::tempfile().unwrap();
        let present = FileIdentity::of(&file).unwrap();
        let earlier = format!(r#"{{"device":2049,"inode":{},"bytes":0}}"#, present.inode);
        let earlier: FileIdentity = serde_json::from_str(&earlier).unwrap();
        assert!(earlier.is(&present));
        assert!(!earlier.is(&FileIdentity { bytes: 1, ..present }));
    }
}
