//! A service's log: two files in memory, the older one thrown away when the newer is full.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mvm_protocol::control::LogPosition;
use tokio::sync::watch;

use crate::error::{Doing as _, Result};
use crate::machine::places;

/// The most that one file holds, in bytes.
const FILE_LIMIT: u64 = 1024 * 1024;

/// The most marks of times that are kept of a log.
const MOST_MARKS: usize = 2048;
/// How far they are apart at least, in milliseconds.
const BETWEEN_MARKS: u64 = 1000;

/// A log that is being written.
#[derive(Debug)]
pub struct RotatingLog {
    path: PathBuf,
    limit: u64,
    file: File,
    size: u64,
    /// Bytes in the older file.
    older: u64,
    /// Bytes that were ever written to it.
    end: u64,
    /// When it was begun, in milliseconds since 1970.
    id: u64,
    marks: Marks,
    grown: watch::Sender<()>,
}

/// When what was written: a time in milliseconds since 1970, and how many bytes there were before.
#[derive(Debug)]
struct Marks {
    marks: VecDeque<(u64, u64)>,
    /// What was written so long after a mark's time may belong to it.
    span: u64,
}

impl Marks {
    /// Notes that something is written at this time to this place.
    fn note(&mut self, now: u64, at: u64, kept_from: u64) {
        while self.marks.get(1).is_some_and(|(_, next)| *next <= kept_from) {
            self.marks.pop_front();
        }
        // A clock that was set back does not make anything older than what is before it.
        let latest = self.marks.back().map(|(time, _)| *time);
        if latest.is_some_and(|latest| now < latest + self.span) {
            return;
        }
        self.marks.push_back((now, at));
        while self.marks.len() > MOST_MARKS {
            // One goes where all that may belong to it then belongs to the one before.
            let (before, mut kept) = (self.span, None);
            self.span *= 2;
            self.marks.retain(|(time, _)| {
                let stays = kept.is_none_or(|kept| *time > kept + before);
                if stays {
                    kept = Some(*time);
                }
                stays
            });
        }
    }

    /// Where what was written since this time begins, or a little before.
    fn since(&self, time: u64) -> Option<u64> {
        self.marks.iter().find(|(marked, _)| marked + self.span > time).map(|(_, at)| *at)
    }
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    u64::try_from(now).unwrap_or(u64::MAX)
}

impl RotatingLog {
    /// Begins the log of the service, or whatever else, of this name, and tells when it grows.
    ///
    /// # Errors
    /// It could not be made.
    pub fn of(name: &str, grown: watch::Sender<()>) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(places::LOGS)
            .doing("making the folder of logs")?;
        let path = Path::new(places::LOGS).join(format!("{name}.log"));
        Self::create(&path, FILE_LIMIT, grown).doing(format_args!("making {}", path.display()))
    }

    /// Begins a log.
    ///
    /// # Errors
    /// The file could not be made.
    fn create(path: &Path, limit: u64, grown: watch::Sender<()>) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            path: path.to_owned(),
            limit,
            size: 0,
            older: 0,
            end: 0,
            id: unix_millis(),
            marks: Marks { marks: VecDeque::new(), span: BETWEEN_MARKS },
            grown,
        })
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
            self.older = self.size;
            self.file = File::create(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(bytes)?;
        self.marks.note(unix_millis(), self.end, self.begin());
        self.size += length;
        self.end += length;
        self.grown.send_replace(());
        Ok(())
    }

    /// How many bytes were written before those that are kept.
    fn begin(&self) -> u64 {
        self.end - self.size - self.older
    }

    /// How many bytes were ever written to it.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Where something in it is.
    pub fn position(&self, at: u64) -> LogPosition {
        LogPosition { log: self.id, at }
    }

    /// Where to go on after what was read up to a position: there, unless that was in another log.
    pub fn after(&self, position: LogPosition) -> u64 {
        if position.log == self.id { position.at.min(self.end) } else { 0 }
    }

    /// Where the lines begin that were written since a time, and of these the last ones.
    pub fn start(&self, since_ms: Option<u64>, tail: Option<u64>) -> u64 {
        let begin = self.begin();
        let mut start = match since_ms {
            Some(time) => self.marks.since(time).unwrap_or(self.end).max(begin),
            None => begin,
        };
        if since_ms.is_none() && tail.is_none() {
            return start;
        }
        let bytes = self.contents();
        let place = |at: u64| usize::try_from(at - begin).unwrap_or(bytes.len()).min(bytes.len());
        let line = |before: &[u8]| before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        start = begin + line(&bytes[..place(start)]) as u64;
        let Some(tail) = tail else { return start };
        let mut lines = bytes.len();
        for _ in 0..tail {
            // The end of the last line is not the beginning of another.
            let before = lines.saturating_sub(1);
            lines = line(&bytes[..before]);
            if lines == 0 {
                break;
            }
        }
        start.max(begin + lines as u64)
    }

    /// Some of what is kept from this place on, and where that begins, which is later where it is not kept any more.
    pub fn piece(&self, from: u64, most: usize) -> (u64, Vec<u8>) {
        let from = from.clamp(self.begin(), self.end);
        let offset = from - self.begin();
        let (path, offset, left) = match offset.checked_sub(self.older) {
            Some(offset) => (self.path.clone(), offset, self.size - offset),
            None => (self.older(), offset, self.older - offset),
        };
        let length = left.min(most as u64);
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.take(length).read_to_end(&mut bytes)
        });
        // Files in memory; one that somebody removed holds nothing any more.
        read.map_or((self.end, Vec::new()), |_| (from, bytes))
    }

    /// All that is kept, oldest first.
    fn contents(&self) -> Vec<u8> {
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
            let mut log = RotatingLog::create(&path, 50, watch::Sender::new(())).unwrap();
            for piece in &pieces {
                log.append(piece).unwrap();
            }
            let all = pieces.concat();
            let kept = log.contents();
            prop_assert!(all.ends_with(&kept));
            // No file is begun anew before another piece would have been too much for it.
            prop_assert!(kept.len() >= all.len().min(50 - 39));
            prop_assert_eq!(log.begin() + kept.len() as u64, all.len() as u64);
            let (mut at, mut read) = (0, Vec::new());
            loop {
                let (from, piece) = log.piece(at, 7);
                if piece.is_empty() { break }
                at = from + piece.len() as u64;
                read.extend(piece);
            }
            prop_assert_eq!(read, kept);
            for entry in fs::read_dir(folder.path()).unwrap() {
                prop_assert!(entry.unwrap().metadata().unwrap().len() <= 50);
            }
        }
    }

    fn log_in(folder: &Path, limit: u64) -> RotatingLog {
        RotatingLog::create(&folder.join("x.log"), limit, watch::Sender::new(())).unwrap()
    }

    #[test]
    fn lines_are_found_by_number_and_by_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log_in(folder.path(), 100);
        log.append(b"one\ntwo\n").unwrap();
        log.append(b"three\nfo").unwrap();
        let text = |from| String::from_utf8(log.piece(from, 100).1).unwrap();
        for (tail, expected) in
            [(0, ""), (1, "fo"), (2, "three\nfo"), (4, "one\ntwo\nthree\nfo"), (9, "one\ntwo\nthree\nfo")]
        {
            assert_eq!(text(log.start(None, Some(tail))), expected);
        }
        let now = unix_millis();
        assert_eq!(text(log.start(Some(now - 60_000), Some(1))), "fo");
        assert_eq!(text(log.start(Some(now - 60_000), None)), "one\ntwo\nthree\nfo");
        assert_eq!(text(log.start(Some(now + 60_000), None)), "fo", "of a line that is begun all is shown");
        log.append(b"ur\n").unwrap();
        assert_eq!(log.piece(log.start(None, Some(1)), 100).1, b"four\n");
        assert_eq!(log.piece(log.start(Some(now + 60_000), None), 100).1, b"");
        assert_eq!(log.after(log.position(4)), 4);
        assert_eq!(log.after(LogPosition { log: 1, at: 4 }), 0, "another log is read from its beginning");
    }

    proptest! {
        #[test]
        fn nothing_written_since_a_time_is_missed(
            steps in prop::collection::vec((0u64..3000, 1u64..20), 1..6000), asked in 0u64..8_000_000,
        ) {
            let mut marks = Marks { marks: VecDeque::new(), span: BETWEEN_MARKS };
            let (mut now, mut at, mut expected) = (0, 0, None);
            for (pause, length) in steps {
                now += pause;
                marks.note(now, at, 0);
                if now >= asked && expected.is_none() { expected = Some((now, at)) }
                at += length;
            }
            prop_assert!(marks.marks.len() <= MOST_MARKS);
            if let Some((_, at)) = expected {
                prop_assert!(marks.since(asked).is_some_and(|found| found <= at));
            }
            if let Some(found) = marks.since(asked) {
                let marked = marks.marks.iter().find(|(_, at)| *at == found).unwrap().0;
                prop_assert!(marked + marks.span > asked);
            }
        }
    }

    #[test]
    fn the_last_lines_are_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log_in(folder.path(), 12);
        log.append(b"one\ntwo\n").unwrap();
        log.append(b"three\nfour").unwrap();
        assert_eq!(log.last_lines(3), "two\nthree\nfour");
        assert_eq!(log.last_lines(30), "one\ntwo\nthree\nfour");
    }
}
