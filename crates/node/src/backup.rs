//! Data disks to files, and back: what goes between a client and a machine's task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mvm_backup::{Error, Facts, Metadata};
use mvm_host::NewDisk;
use mvm_model::manifest::{Change, ChangeOf};
use mvm_model::{PoolId, PoolSpec, TenantId};
use mvm_protocol::api::{
    ApiError, BackedUp, BackupNote, ChangeRequest, DeployEvent, DeployMode, ErrorCode, Restored,
};
use mvm_protocol::record::{self, Record};
use mvm_transfer::{pieces_from, pieces_to};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::deploy::{self, Events, GivenDisk};
use crate::machine::{ActError, DiskRead, Machine};
use crate::store::{Audit, now_millis};

/// How long a client may take to take something: its machine may be asleep for it.
const STALLED: Duration = Duration::from_secs(60);
/// After so many bytes of a disk it is told how far it is.
const TOLD_EVERY: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

/// Who gets a backup's disk.
#[derive(Debug)]
pub enum Target {
    /// An instance, in the place of its own.
    Instance(Machine),
    /// One more instance of a pool.
    New {
        /// Its tenant.
        tenant: TenantId,
        /// The pool.
        pool: PoolId,
    },
}

/// Where notes and bytes go to a client.
struct Client<W>(W);

impl<W: AsyncWrite + Unpin> Client<W> {
    async fn send(&mut self, record: &Record) -> Result<(), ApiError> {
        match tokio::time::timeout(STALLED, record::write(&mut self.0, record)).await {
            Ok(sent) => sent.map_err(failed),
            Err(_) => Err(failed("the client took nothing for too long")),
        }
    }

    async fn tell(&mut self, note: &BackupNote) -> Result<(), ApiError> {
        self.send(&Record::Stderr(serde_json::to_vec(note).map_err(failed)?)).await
    }

    /// Tells what a machine's task says, until its act has come to something.
    async fn tell_while<T>(
        &mut self,
        machine: &Machine,
        mut steps: mpsc::UnboundedReceiver<String>,
        act: impl Future<Output = T>,
    ) -> (T, mpsc::UnboundedReceiver<String>) {
        tokio::pin!(act);
        loop {
            tokio::select! {
                biased;
                Some(doing) = steps.recv() => {
                    // Whoever does not listen any more changes nothing about the act.
                    let _ = self.tell(&BackupNote::Step { instance: machine.view().row.address(), doing }).await;
                }
                done = &mut act => return (done, steps),
            }
        }
    }

    /// The last word.
    async fn conclude(&mut self, result: Result<BackupNote, ApiError>) {
        let note = result.unwrap_or_else(|error| BackupNote::Failed { error });
        // It may have gone.
        let _ = self.tell(&note).await;
    }
}

/// Sends a client the backup of a machine.
pub async fn back_up<S: AsyncRead + AsyncWrite>(agent: &Agent, machine: &Machine, stream: S) {
    let (mut from, to) = tokio::io::split(stream);
    let mut client = Client(to);
    let made = async {
        let made = send_backup(agent, machine, &mut client).await;
        client.conclude(made.map(BackupNote::BackedUp)).await;
    };
    // A client that goes away has no use for the rest, and its machine may be asleep for it.
    tokio::select! {
        () = made => {}
        _ = record::read(&mut from) => tracing::info!(instance = %machine.id, "the backup was given up by its client"),
    }
}

async fn send_backup<W: AsyncWrite + Unpin>(
    agent: &Agent,
    machine: &Machine,
    client: &mut Client<W>,
) -> Result<BackedUp, ApiError> {
    let (said, steps) = mpsc::unbounded_channel();
    let pool = agent.pool(&machine.place.tenant, &machine.place.pool).await?.spec;
    let (held, steps) = client.tell_while(machine, steps, machine.back_up(said)).await;
    let DiskRead { file: mut disk, row, end } = held?;
    let data_disk_bytes = disk.metadata().map_err(failed)?.len();
    let launched = row.launched.as_ref();
    let facts = Facts {
        mvm_version: env!("CARGO_PKG_VERSION").to_owned(),
        tenant: row.place.tenant.clone(),
        pool: row.place.pool.clone(),
        instance: row.id,
        role: pool.role,
        revision: launched.map(|launched| launched.revision.clone()),
        resources: launched.map_or(pool.resources, |launched| launched.resources),
        taken_at_ms: now_millis(),
    };
    let through = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let (into, mut pieces) = pieces_from();
    let counted = Arc::clone(&through);
    let writing = tokio::task::spawn_blocking(move || {
        mvm_backup::write(facts, &mut disk, into, |done, total| {
            counted[1].store(total, Ordering::Relaxed);
            counted[0].store(done, Ordering::Relaxed);
        })
    });
    let (mut bytes, mut told) = (0, 0);
    while let Some(piece) = pieces.recv().await {
        bytes += piece.len() as u64;
        client.send(&Record::Stdout(piece)).await?;
        let [done, total] = [0, 1].map(|of| through[of].load(Ordering::Relaxed));
        if done >= told + TOLD_EVERY {
            told = done;
            client.tell(&BackupNote::Progress { done, total }).await?;
        }
    }
    let checksum = writing.await.map_err(failed)?.map_err(failed)?;
    client.send(&Record::Eof).await?;
    let audit = Audit::new(row.address(), "InstanceBackedUp", format!("{bytes} bytes, checksum {checksum}"));
    let (again, _) = client.tell_while(machine, steps, end.let_go()).await;
    agent.store.write(move |tx| audit.append(tx, &row.place.tenant)).await?;
    Ok(BackedUp {
        instance: machine.view().row.address(),
        state: machine.state(),
        bytes,
        checksum,
        data_disk_bytes,
        not_as_before: again.err().map(|error| error.to_string()),
    })
}

/// Takes a backup from a client and gives its disk to whom it is for.
pub async fn restore<S: AsyncRead + AsyncWrite>(agent: &Arc<Agent>, target: Target, stream: S) {
    let (mut from, to) = tokio::io::split(stream);
    let mut client = Client(to);
    let restored = async {
        let (tenant, pool) = match &target {
            Target::Instance(machine) => (&machine.place.tenant, &machine.place.pool),
            Target::New { tenant, pool } => (tenant, pool),
        };
        let pool = agent.pool(tenant, pool).await?.spec;
        let address = format!("{tenant}/{}", pool.id);
        let received = receive(agent, pool, address, &mut from).await?;
        give(agent, target, received, &mut client).await
    };
    let restored: Result<Restored, ApiError> = restored.await;
    client.conclude(restored.map(BackupNote::Restored)).await;
}

/// A disk that came whole.
struct Received {
    disk: NewDisk,
    metadata: Metadata,
    checksum: String,
}

/// Takes all of a backup, and finds that it is whole, before anything is done with it.
async fn receive<R: AsyncRead + Unpin>(
    agent: &Agent,
    pool: PoolSpec,
    address: String,
    from: &mut R,
) -> Result<Received, ApiError> {
    let disk = agent.hands.new_disk().await.map_err(failed)?;
    let (pieces, reader) = pieces_to();
    let unpacking = tokio::task::spawn_blocking(move || {
        let unpacked = mvm_backup::unpack(reader, disk.file(), |metadata| fits(metadata, &pool, &address));
        unpacked.map(|(metadata, checksum)| Received { disk, metadata, checksum })
    });
    loop {
        match record::read(from).await.map_err(failed)? {
            Some(Record::Stdin(piece)) => {
                // Refused already.
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            Some(Record::Eof) => {
                pieces.end().await;
                break;
            }
            Some(_) => return Err(ApiError::new(ErrorCode::Invalid, "this does not belong to a backup")),
            None => return Err(failed("the client went away in the middle of the backup")),
        }
    }
    unpacking.await.map_err(failed)?.map_err(|error| {
        let code = match &error {
            Error::Foreign | Error::Unknown { .. } | Error::Damaged(_) => ErrorCode::Invalid,
            Error::Refused(_) => ErrorCode::Refused,
            Error::Io(_) => ErrorCode::Failed,
        };
        ApiError::new(code, format!("nothing was changed: {error}"))
    })
}

/// Whether a pool's machines can have the disk.
fn fits(metadata: &Metadata, pool: &PoolSpec, address: &str) -> Result<(), String> {
    let (has, wants) = (metadata.disk_bytes.div_ceil(MIB), pool.resources.data_disk_mib);
    if has <= wants {
        return Ok(());
    }
    let pool_has = match wants {
        0 => "machines without a data disk".to_owned(),
        mib => format!("data disks of {mib} MiB"),
    };
    Err(format!(
        "the backup's data disk has {has} MiB, and pool {address} has {pool_has}; \
         `mvm pool update {address} --data-disk-mib {has}` makes them large enough"
    ))
}

async fn give<W: AsyncWrite + Unpin>(
    agent: &Arc<Agent>,
    target: Target,
    received: Received,
    client: &mut Client<W>,
) -> Result<Restored, ApiError> {
    let Received { disk, metadata, checksum } = received;
    let Facts { tenant, pool, instance, taken_at_ms, .. } = &metadata.facts;
    let of = format!("{tenant}/{pool}/{instance}");
    let taken = Duration::from_millis(now_millis().saturating_sub(*taken_at_ms)).as_secs();
    let from = format!("from a backup of {of}, made {taken} s before, with checksum {checksum}");
    let machine = match target {
        Target::Instance(machine) => {
            let (said, steps) = mpsc::unbounded_channel();
            let restoring = machine.restore(disk, from, said);
            client.tell_while(&machine, steps, restoring).await.0?;
            machine
        }
        Target::New { tenant, pool } => {
            let given = GivenDisk { disk, id: *instance, from };
            create(agent, tenant, pool, given, client).await?
        }
    };
    Ok(Restored {
        instance: machine.view().row.address(),
        state: machine.state(),
        of,
        taken_at_ms: *taken_at_ms,
        checksum,
        data_disk_bytes: metadata.disk_bytes,
    })
}

/// One more instance of a pool, as `instance create` makes it but for its disk.
async fn create<W: AsyncWrite + Unpin>(
    agent: &Arc<Agent>,
    tenant: TenantId,
    pool: PoolId,
    given: GivenDisk,
    client: &mut Client<W>,
) -> Result<Machine, ApiError> {
    let change = Change { tenant, of: ChangeOf::Instance { pool, asleep: false } };
    let request = deploy::Request::Change(ChangeRequest { change, mode: DeployMode::default() });
    let (events, mut progress) = Events::channel();
    tokio::spawn(deploy::deploy_with(Arc::clone(agent), request, Some(given), events));
    let mut created = None;
    while let Some(event) = progress.recv().await {
        match event {
            DeployEvent::Step { what, doing, .. } => {
                // Whoever does not listen any more changes nothing about it.
                let _ = client.tell(&BackupNote::Step { instance: what, doing }).await;
            }
            DeployEvent::Created { instance, .. } => created = Some(instance),
            DeployEvent::Failed { error } => return Err(error),
            _ => {}
        }
    }
    let made = agent.machines(|machine| Some(machine.view().row.address()) == created);
    made.into_iter().next().ok_or_else(|| ActError::Gone.into())
}

fn failed(error: impl ToString) -> ApiError {
    ApiError::new(ErrorCode::Failed, error)
}
