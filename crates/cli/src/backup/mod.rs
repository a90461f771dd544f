//! `mvm instance backup` and `mvm instance restore`.

mod make;
mod restore;

pub use make::Backup;
#[cfg(test)]
pub use make::Made;
pub use restore::Restore;

use mvm_protocol::api::{ApiError, BackedUp, BackupNote, ErrorCode, Restored};
use mvm_protocol::record::{self, Record};
use tokio::io::AsyncRead;

use crate::client::Client;
use crate::failure::Failure;
use crate::progress::{Extent, Progress};

/// Bytes of a file that are sent at once.
const PIECE: usize = 64 * 1024;
/// As a shell says that a signal ended a program.
const SIGNALED: u8 = 128;

/// What comes from the agent.
enum Said {
    Piece(Vec<u8>),
    End,
    Progress { done: u64, total: u64 },
    BackedUp(BackedUp),
    Restored(Restored),
}

/// The next of it; what happens to a machine meanwhile is shown.
async fn next<R: AsyncRead + Unpin>(
    client: &Client,
    from: &mut R,
    steps: &mut Progress,
) -> Result<Said, Failure> {
    loop {
        let note = match record::read(from).await {
            Ok(Some(Record::Stdout(piece))) => return Ok(Said::Piece(piece)),
            Ok(Some(Record::Eof)) => return Ok(Said::End),
            Ok(Some(Record::Stderr(note))) => note,
            Ok(Some(_)) => return Err(client.broken("it sent what does not belong here")),
            Ok(None) | Err(record::RecordError::Io(_)) => {
                let why = "it was broken off: the agent ended, or gave it up; `mvm instance info` shows how the machine is";
                return Err(Failure::Refused(ApiError::new(ErrorCode::Failed, why)));
            }
            Err(error) => return Err(client.broken(error)),
        };
        match serde_json::from_slice(&note).map_err(|error| client.broken(error))? {
            BackupNote::Step { instance, doing } => {
                steps.step(&instance, &doing, Extent { done: 0, total: 0 });
            }
            BackupNote::Progress { done, total } => return Ok(Said::Progress { done, total }),
            BackupNote::BackedUp(made) => return Ok(Said::BackedUp(made)),
            BackupNote::Restored(restored) => return Ok(Said::Restored(restored)),
            BackupNote::Failed { error } => return Err(Failure::Refused(error)),
        }
    }
}
