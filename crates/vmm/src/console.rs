//! The file that a machine's serial console is written to.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Doing, Result};

/// Opens a file that a VMM appends to. Appending makes [`trim_console`] possible while it writes.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .doing(|| format!("open {}", path.display()))
}

/// Shortens a console file that has outgrown `most` bytes to its last half of that, beginning with a whole
/// line. Returns whether it did. What the machine prints in that very moment may be lost.
///
/// # Errors
/// If the file cannot be read or written.
pub fn trim_console(path: &Path, most: u64) -> Result<bool> {
    let doing = || format!("trim {}", path.display());
    let mut file = OpenOptions::new().read(true).append(true).open(path).doing(doing)?;
    let length = file.metadata().doing(doing)?.len();
    if length <= most {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(length - most / 2)).doing(doing)?;
    let mut tail = Vec::new();
    // Bounded, as the machine may write faster than this reads.
    (&mut file).take(most / 2).read_to_end(&mut tail).doing(doing)?;
    let start = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.set_len(0).doing(doing)?;
    file.write_all(&tail[start..]).doing(doing)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_stay_and_the_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut machine = open_log(&path).unwrap();
        for line in 0..100 {
            writeln!(machine, "line {line:02}").unwrap();
        }
        assert!(!trim_console(&path, 800).unwrap());
        assert!(trim_console(&path, 100).unwrap());
        writeln!(machine, "on").unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, "line 94\nline 95\nline 96\nline 97\nline 98\nline 99\non\n");
    }
}
