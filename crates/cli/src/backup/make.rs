//! A backup to a file.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use mvm_protocol::api::{BackedUp, BackupRequest};
use serde::Serialize;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{SIGNALED, Said, next};
use crate::address::InstanceAddress;
use crate::client::Client;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::interrupt::signaled;
use crate::output::Output;
use crate::progress::{self, Progress};
use crate::view;

/// Write its data disk to a file, for `restore` here or on another node
///
/// The file holds the data disk, compressed, with a checksum and what is needed to restore it: no memory, no secrets. A
/// machine that sleeps or is stopped stays as it is; one that runs or is paused sleeps for it and is then again as it was.
#[derive(Debug, Args)]
pub struct Backup {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// The file, or - for standard output
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

/// A backup that was made, as a result.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "BackedUp"))]
pub struct Made {
    /// What the agent says of it.
    #[serde(flatten)]
    made: BackedUp,
    /// The file.
    file: String,
}

impl Backup {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// There is no backup, or its machine is not again as it was.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let to = To::find(self.file, self.force)?;
        let client = connection.agent().await?;
        let made = tokio::select! {
            made = make(&client, &self.instance, to) => made?,
            signal = signaled() => return Ok(SIGNALED + signal?),
        };
        let (made, file) = made;
        let unlike = made.not_as_before.clone();
        if let Some(file) = file {
            let result = Made { made, file: file.display().to_string() };
            self.output.show(&result, |Made { made, file }| {
                let BackedUp { instance, bytes, data_disk_bytes, checksum, .. } = made;
                let (bytes, disk) = (view::bytes(*bytes), view::bytes(*data_disk_bytes));
                format!("{instance}: backed up to {file} ({bytes}, data disk {disk}, checksum {checksum})")
            })?;
        }
        match unlike {
            None => Ok(0),
            Some(why) => Err(Failure::NotDone(format!(
                "the backup is whole, but {} is not again as it was before: {why}",
                self.instance
            ))),
        }
    }
}

/// Where it goes.
enum To {
    Output,
    File { path: PathBuf, replace: bool, partial: NamedTempFile },
}

impl To {
    /// What is wrong with it is said before anything is asked for.
    fn find(path: PathBuf, replace: bool) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(To::Output);
        }
        if path.is_dir() {
            return Err(Failure::NotDone(format!("{} is a folder: name a file in it", path.display())));
        }
        if path.exists() && !replace {
            return Err(is_there(&path));
        }
        let folder = folder_of(&path);
        let partial = NamedTempFile::new_in(folder)
            .map_err(|error| Failure::io(format!("cannot write to {}", folder.display()), error))?;
        Ok(To::File { path, replace, partial })
    }
}

fn is_there(path: &Path) -> Failure {
    Failure::NotDone(format!("{} is there already: --force replaces it", path.display()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes it; a file has its name when it is whole and on the disk.
async fn make(
    client: &Client,
    instance: &InstanceAddress,
    to: To,
) -> Result<(BackedUp, Option<PathBuf>), Failure> {
    let path = format!("{}/backup", instance.path());
    let (mut stream, _) = client.upgrade(&path, &BackupRequest::default()).await?;
    match to {
        To::Output => {
            let mut stdout = tokio::io::stdout();
            let unwritable = |error| Failure::io("cannot write to standard output", error);
            Ok((receive(client, instance, &mut stream, &mut stdout, unwritable).await?, None))
        }
        To::File { path, replace, partial } => {
            let unwritable = |error| Failure::io(format!("cannot write {}", path.display()), error);
            let mut file = tokio::fs::File::from_std(partial.as_file().try_clone().map_err(unwritable)?);
            let made = receive(client, instance, &mut stream, &mut file, unwritable).await?;
            file.sync_all().await.map_err(unwritable)?;
            let kept = if replace { partial.persist(&path) } else { partial.persist_noclobber(&path) };
            kept.map_err(|error| match error.error.kind() {
                std::io::ErrorKind::AlreadyExists => is_there(&path),
                _ => unwritable(error.error),
            })?;
            File::open(folder_of(&path)).and_then(|folder| folder.sync_all()).map_err(unwritable)?;
            Ok((made, Some(path)))
        }
    }
}

async fn receive<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    client: &Client,
    instance: &InstanceAddress,
    from: &mut R,
    to: &mut W,
    unwritable: impl Fn(std::io::Error) -> Failure,
) -> Result<BackedUp, Failure> {
    let mut steps = Progress::new();
    let mut bar = None;
    let mut bytes = 0;
    let result = async {
        loop {
            match next(client, from, &mut steps).await? {
                Said::Piece(piece) => {
                    to.write_all(&piece).await.map_err(&unwritable)?;
                    bytes += piece.len() as u64;
                }
                Said::Progress { done, total } => {
                    let bar = bar.get_or_insert_with(|| progress::bytes(&instance.to_string(), Some(total)));
                    bar.set_position(done);
                }
                Said::End => to.flush().await.map_err(&unwritable)?,
                Said::BackedUp(made) if made.bytes == bytes => return Ok(made),
                _ => return Err(client.broken("it did not send all of the backup")),
            }
        }
    };
    let result = result.await;
    bar.inspect(|bar| bar.finish_and_clear());
    steps.end();
    result
}
