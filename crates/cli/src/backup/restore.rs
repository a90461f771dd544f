//! A machine's data disk from a backup.

use std::io;
use std::path::PathBuf;

use clap::Args;
use mvm_model::InstanceState;
use mvm_protocol::api::{InstanceInfo, InstanceSummary, RestoreRequest, Restored};
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{PIECE, SIGNALED, Said, next};
use crate::address::InstanceAddress;
use crate::client::Client;
use crate::clock;
use crate::confirm::{self, Confirmation};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::interrupt::signaled;
use crate::loss;
use crate::output::Output;
use crate::progress::{self, Progress};

/// Give it the data disk of a backup, in the place of its own
///
/// The backup is read through and checked before anything is changed. What runs, sleeps or is paused is stopped for it,
/// starts cold and is then again as it was: its memory is gone. What has failed is started; what is stopped stays stopped.
#[derive(Debug, Args)]
pub struct Restore {
    /// The instance, as alice/workers/i-0000002a, or alice/workers if it has only one; with --new the pool
    #[arg(value_name = "ADDRESS")]
    instance: InstanceAddress,
    /// The file, or - for standard input
    file: PathBuf,
    /// Create one more instance of the pool with the backup's disk, and start it; by its id, if that is free
    #[arg(long)]
    new: bool,
    /// Whether to ask
    #[command(flatten)]
    confirmation: Confirmation,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

impl Restore {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// The machine does not have the backup's disk, or does not run with it as it should.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let Self { instance: address, file, new, confirmation, output } = self;
        let asked = !new && confirmation.is_needed("mvm instance restore")?;
        let source = Source::open(file).await?;
        let client = connection.agent().await?;
        let path = if new {
            let pool = address.pool().ok_or_else(|| {
                Failure::Usage(format!("with --new a pool is named, as alice/workers, not {address}"))
            })?;
            pool.path()
        } else if asked {
            let info: InstanceInfo = client.get(&address.path()).await?;
            let InstanceSummary { tenant, pool, id, .. } = &info.summary;
            let address = InstanceAddress::of(tenant, pool, *id);
            confirm::by_typing(&id.to_string(), &loss::of_disk(&client, &address).await?)?;
            // What was named, whatever a prefix has come to mean meanwhile.
            address.path()
        } else {
            address.path()
        };
        let restored = tokio::select! {
            restored = restore(&client, &path, &address, source) => restored?,
            signal = signaled() => return Ok(SIGNALED + signal?),
        };
        output.show(&restored, |restored| {
            let Restored { instance, state, of, taken_at_ms, .. } = restored;
            let taken = clock::utc(taken_at_ms / 1000);
            let hint = match state {
                InstanceState::Stopped => format!("; `mvm instance start {instance}` starts it"),
                _ => String::new(),
            };
            format!("{instance}: has the data disk of {of} as of {taken}; it is {state}{hint}")
        })?;
        Ok(0)
    }
}

/// Where it comes from.
struct Source {
    name: String,
    bytes: Option<u64>,
    reader: Box<dyn AsyncRead + Unpin>,
}

impl Source {
    async fn open(path: PathBuf) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self { name: "-".to_owned(), bytes: None, reader: Box::new(tokio::io::stdin()) });
        }
        let name = path.display().to_string();
        let unreadable = |error| Failure::io(format!("cannot read {name}"), error);
        let file = tokio::fs::File::open(&path).await.map_err(unreadable)?;
        let found = file.metadata().await.map_err(unreadable)?;
        if found.is_dir() {
            return Err(unreadable(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self { bytes: found.is_file().then_some(found.len()), name, reader: Box::new(file) })
    }
}

async fn restore(
    client: &Client,
    path: &str,
    address: &InstanceAddress,
    mut source: Source,
) -> Result<Restored, Failure> {
    let (stream, _) = client.upgrade(&format!("{path}/restore"), &RestoreRequest::default()).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let bar = progress::bytes(&address.to_string(), source.bytes);
    let sending = async {
        let sent = send(&mut source, &mut to, |count| bar.inc(count)).await;
        bar.finish_and_clear();
        sent
    };
    let mut steps = Progress::new();
    let restored = {
        let result = async {
            match next(client, &mut from, &mut steps).await? {
                Said::Restored(restored) => Ok(restored),
                _ => Err(client.broken("it did not say what was restored")),
            }
        };
        tokio::pin!(result);
        tokio::select! {
            restored = &mut result => restored,
            sent = sending => match sent {
                // What the agent does not take any more it says why of.
                Ok(()) | Err(Unsent::NotTaken) => result.await,
                Err(Unsent::Unreadable(error)) => {
                    Err(Failure::io(format!("cannot read {}", source.name), error))
                }
            },
        }
    };
    bar.finish_and_clear();
    steps.end();
    restored
}

/// Why not everything was sent.
enum Unsent {
    NotTaken,
    Unreadable(io::Error),
}

async fn send<W: AsyncWrite + Unpin>(
    source: &mut Source,
    to: &mut W,
    sent: impl Fn(u64),
) -> Result<(), Unsent> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = source.reader.read(&mut piece).await.map_err(Unsent::Unreadable)?;
        let record = if count == 0 { Record::Eof } else { Record::Stdin(piece[..count].to_vec()) };
        record::write(to, &record).await.map_err(|_| Unsent::NotTaken)?;
        if count == 0 {
            return Ok(());
        }
        sent(count as u64);
    }
}
