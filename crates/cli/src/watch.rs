//! `mvm deploy --watch`

use std::path::Path;
use std::time::Duration;

use mvm_protocol::api::DeployMode;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::deploy::File;
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::output::{self, Output};

/// How often the file is looked at. It is read: whatever way an editor replaces it by, its content is what counts, once two
/// looks have found the same.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// Applies a manifest whenever it changes and at the interval, until Ctrl-C or until nobody reads what it says. A mistake
/// is told and waited out; only at first it is the end where the file or the agent cannot be had at all.
///
/// # Errors
/// Where it does not even begin.
pub async fn until_told(
    connection: &Connection,
    path: &Path,
    mode: DeployMode,
    interval: u64,
    output: Output,
) -> Result<u8, Failure> {
    let watching = Watching { connection, path, mode, interval: Duration::from_secs(interval), output };
    tokio::select! {
        never = watching.go_on() => never,
        // A deployment that has not committed anything is given up with its connection.
        told = tokio::signal::ctrl_c() => told.map(|()| 0).map_err(|error| Failure::io("cannot wait for Ctrl-C", error)),
        () = output::nobody_reads() => Ok(0),
    }
}

struct Watching<'a> {
    connection: &'a Connection,
    path: &'a Path,
    mode: DeployMode,
    interval: Duration,
    output: Output,
}

impl Watching<'_> {
    async fn go_on(&self) -> Result<u8, Failure> {
        let mut file = File::read(self.path)?;
        anstream::eprintln!(
            "watching {}: it is applied when it changes, and every {} s; Ctrl-C ends it",
            file.name(),
            self.interval.as_secs()
        );
        let (mut first, mut last) = (true, Told::Nothing);
        loop {
            let told = match file.apply(self.connection, self.mode).await {
                Ok(outcome) => Told::Outcome(outcome),
                Err(failure) if first && !can_pass(&failure) => return Err(failure),
                Err(failure) => Told::Failure(failure.to_string(), failure),
            };
            self.tell(&last, &told, file.name())?;
            (first, last) = (false, told);
            let next = self.next(&file, &mut last).await;
            if next != file {
                // A file that is another is worth a word, whatever comes of it.
                last = Told::Nothing;
                file = next;
            }
        }
    }

    /// What is new about it: not every interval that there was nothing to do.
    fn tell(&self, last: &Told, told: &Told, name: &str) -> Result<(), Failure> {
        match (last, told) {
            (Told::Failure(before, _), Told::Failure(now, _)) if before == now => Ok(()),
            (Told::Outcome(before), Told::Failure(now, _)) if before.failed.as_ref() == Some(now) => Ok(()),
            (Told::Outcome(before), Told::Outcome(now))
                if now.changes == 0 && before.differs == now.differs && before.failed == now.failed =>
            {
                Ok(())
            }
            (_, Told::Outcome(outcome)) => {
                self.output.show_next(outcome, |outcome| outcome.text(name))?;
                outcome.whole().unwrap_or_else(|failure| failure.report());
                Ok(())
            }
            (_, Told::Failure(_, failure)) => {
                failure.report();
                anstream::eprintln!("waiting for {name} to change");
                Ok(())
            }
            (_, Told::Nothing) => Ok(()),
        }
    }

    /// The file, once it has changed or the interval is over. One that cannot be read, as while an editor replaces it, has
    /// not changed.
    async fn next(&self, file: &File, last: &mut Told) -> File {
        let mut until = Instant::now() + self.interval;
        let mut seen = None;
        loop {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            match File::read(self.path) {
                Ok(read) if read == *file && Instant::now() < until => seen = None,
                Ok(read) if is_written(&read, file, &seen) => return read,
                Ok(read) => seen = Some(read),
                Err(failure) if Instant::now() >= until => {
                    let told = Told::Failure(failure.to_string(), failure);
                    // Standard error takes it; the outcome is nothing to be written.
                    let _ = self.tell(last, &told, file.name());
                    *last = told;
                    until = Instant::now() + self.interval;
                }
                Err(_) => {}
            }
        }
    }
}

/// Whether a file that was read is whole, and not just being written: it is as it was applied, or as the last look found it.
fn is_written(read: &File, applied: &File, seen: &Option<File>) -> bool {
    read == applied || seen.as_ref() == Some(read)
}

/// What was told last.
enum Told {
    Nothing,
    Outcome(Outcome),
    Failure(String, Failure),
}

/// Whether waiting may help.
fn can_pass(failure: &Failure) -> bool {
    matches!(failure, Failure::Manifest { .. } | Failure::Refused(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_not_applied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deployment.toml");
        let look = |content: &str| {
            std::fs::write(&path, content).unwrap();
            File::read(&path).unwrap()
        };
        let applied = look("[tenant]\nid = \"alice\"\n[[pools]]\n");
        assert!(is_written(&look("[tenant]\nid = \"alice\"\n[[pools]]\n"), &applied, &None));
        let mut seen = None;
        for content in ["", "[tenant]\nid = \"alice\"", "[tenant]\nid = \"alice\"\n[[pools]]\nid = \"w\""] {
            let read = look(content);
            assert!(!is_written(&read, &applied, &seen), "{content}");
            seen = Some(read);
        }
        assert!(is_written(&File::read(&path).unwrap(), &applied, &seen));
    }
}
