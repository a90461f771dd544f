//! Start and wake: prepare, launch, come up. What fails before the launch leaves the machine as it was.

use std::time::Instant;

use mvm_host::{Launch, LaunchKind, SnapshotMemory};
use mvm_kill_point::{KillPoint, reached};
use mvm_model::Operation;
use mvm_protocol::api::{StartReport, millis};
use tokio::net::UnixStream;

use super::task::{Task, failed};
use super::{ActError, Asker, CameUp};
use crate::store::{self, Audit, Goal, Intent, PoolRow, Recorded};
use crate::{bases, spares};

/// How a start is called that begins with the kernel.
const COLD_BOOT: &str = "cold boot";

/// A machine that came up from a base or a snapshot.
struct Loaded {
    /// When its guest had confirmed who it is.
    confirmed: Instant,
    /// Whether its VMM had been started ahead.
    spare: bool,
}

/// What tests call the steps of a start from a base and of a wake.
struct LoadPoints {
    launched: KillPoint,
    recorded: KillPoint,
    loaded: KillPoint,
    going: KillPoint,
    confirmed: KillPoint,
}

const START: LoadPoints = LoadPoints {
    launched: KillPoint::StartLaunched,
    recorded: KillPoint::StartRecorded,
    loaded: KillPoint::StartLoaded,
    going: KillPoint::StartGoing,
    confirmed: KillPoint::StartConfirmed,
};

const WAKE: LoadPoints = LoadPoints {
    launched: KillPoint::WakeLaunched,
    recorded: KillPoint::WakeRecorded,
    loaded: KillPoint::WakeRestored,
    going: KillPoint::WakeGoing,
    confirmed: KillPoint::WakeConfirmed,
};

/// Why a machine does not run from its snapshot.
enum NotWoken {
    /// The snapshot cannot be used, or is consumed: one cold start follows in the same act.
    Unusable(ActError),
    /// Nothing irreversible was done, and the snapshot is not at fault: the machine stays asleep.
    Untouched(ActError),
    /// The guest has confirmed who it is, and then its workload did not get ready.
    NotReady(ActError),
}

/// Whether a machine began from its pool's base.
enum Cloned {
    Yes(Loaded),
    /// In words why not; nothing of it is left.
    No(String),
    /// It did, and its workload did not get ready.
    NotReady(ActError),
}

impl From<ActError> for NotWoken {
    fn from(error: ActError) -> Self {
        NotWoken::Unusable(error)
    }
}

impl Task {
    /// From `ready`, `stopped` or `failed`: a clone where a base fits, else a cold boot.
    pub(super) async fn start(&mut self, asker: Asker) -> Result<(), ActError> {
        self.row.state.after(Operation::Start)?;
        let begun = Instant::now();
        let mut pool = self.agent.pool(&self.row.place.tenant, &self.row.place.pool).await.map_err(failed)?;
        if let Some(upgrade) = self.row.upgrade() {
            pool.revision = upgrade.starts_with(&pool.revision).clone();
        }
        self.admission = Some(self.agent.admissions.admit(&self.tenant, self.row.id, pool.spec.resources)?);
        let started = match self.clone_or_not(&pool).await {
            Cloned::Yes(loaded) => Ok(loaded.report("clone", begun)),
            Cloned::NotReady(error) => Err(error),
            Cloned::No(why) => {
                self.launched_with(&pool, None);
                let booted = self.boot(Intent::Start).await;
                booted.map(|confirmed| Loaded { confirmed, spare: false }.report_why(COLD_BOOT, why, begun))
            }
        };
        match started {
            Ok(report) => {
                self.now_running(Operation::Start, report, "InstanceStarted", asker).await;
                reached(KillPoint::StartCommitted);
                Ok(())
            }
            Err(error) => {
                self.not_running("it did not start", &error).await;
                Err(error)
            }
        }
    }

    /// Begins from the pool's base.
    async fn clone_or_not(&mut self, pool: &PoolRow) -> Cloned {
        let soon = |look| bases::ensure_soon(&self.agent, pool.tenant.clone(), pool.spec.id.clone(), look);
        let base = match bases::current(&self.agent, pool).await {
            Ok(Some(base)) => base.id,
            Ok(None) => {
                soon(bases::Look::AtShape);
                return Cloned::No("its pool has no base of this revision yet".to_owned());
            }
            Err(error) => return Cloned::No(error.to_string()),
        };
        self.launched_with(pool, Some(base.clone()));
        // S5 and S3, as for a cold boot.
        self.row.generation += 1;
        self.row.disk_epoch += 1;
        let cloned = match self.begin_from(&base).await {
            Ok(()) => {
                reached(KillPoint::StartBegun);
                self.load(LaunchKind::Clone { base }, &START).await
            }
            Err(error) => Err(NotWoken::Untouched(error)),
        };
        let error = match cloned {
            Ok(loaded) => {
                reached(KillPoint::StartReady);
                return Cloned::Yes(loaded);
            }
            // A cold boot would bring it to the same.
            Err(NotWoken::NotReady(error)) => return Cloned::NotReady(error),
            Err(NotWoken::Unusable(error)) => {
                // A base that fits no more, or is damaged, is made anew.
                let look = bases::Look::AtContent;
                bases::ensure_soon(&self.agent, pool.tenant.clone(), pool.spec.id.clone(), look);
                error
            }
            Err(NotWoken::Untouched(error)) => error,
        };
        tracing::warn!(instance = %self.row.address(), %error, "cold boot in place of a clone");
        self.set_session(None);
        self.agent.discard_vmm(&self.row).await;
        self.row.process = None;
        Cloned::No(format!("its base could not be cloned: {error}"))
    }

    /// Notes durably that a start from a base begins, if that is still there: from here on it stays.
    async fn begin_from(&mut self, base: &str) -> Result<(), ActError> {
        self.row.intent = Some(Intent::Start);
        let (row, base) = (self.row.clone(), base.to_owned());
        let begun = self.agent.store.write(move |tx| {
            let there = store::has_base(tx, &base)?;
            if there { row.save(tx).map(|()| true) } else { Ok(false) }
        });
        match begun.await {
            Ok(true) => {
                self.show();
                Ok(())
            }
            Ok(false) => Err(failed("it was removed in this moment")),
            Err(error) => Err(failed(error)),
        }
    }

    fn launched_with(&mut self, pool: &PoolRow, base: Option<String>) {
        let (revision, resources) = (pool.revision.clone(), pool.spec.resources);
        let upgrade = self.row.launched.take().and_then(|launched| launched.upgrade);
        self.row.launched = Some(Recorded { revision, resources, base, upgrade });
    }

    /// From its snapshot; where that is refused, consumed or fails, by one cold start in the same act.
    pub(super) async fn wake(&mut self, asker: Asker) -> Result<(), ActError> {
        self.row.state.after(Operation::Wake)?;
        let begun = Instant::now();
        let resources = self.row.launched.as_ref().map(|l| l.resources).unwrap_or_default();
        self.admission = Some(self.agent.admissions.admit(&self.tenant, self.row.id, resources)?);
        let refused = match self.restore().await {
            Ok(loaded) => {
                let report = loaded.report("wake", begun);
                self.now_running(Operation::Wake, report, "InstanceWoken", asker).await;
                // Consumed, it is of no use any more, and holds what the machine had in memory.
                self.discard_later = true;
                reached(KillPoint::WakeCommitted);
                return Ok(());
            }
            Err(NotWoken::Untouched(error)) => return self.still_asleep(error).await,
            Err(NotWoken::Unusable(refused) | NotWoken::NotReady(refused)) => {
                // S8: an own image that was found damaged meanwhile. What failed then says only that the VMM is gone.
                if let Ok(Some(found)) = self.agent.hands.why_ended(self.row.id).await {
                    let error = failed(found);
                    self.not_running("its wake was ended", &error).await;
                    return Err(error);
                }
                refused.to_string()
            }
        };
        self.cold_instead(begun, refused, asker).await
    }

    /// The wake could not even be tried: its snapshot is as good as before.
    async fn still_asleep(&mut self, error: ActError) -> Result<(), ActError> {
        self.admission = None;
        self.agent.discard_vmm(&self.row).await;
        self.row.process = None;
        self.row.intent = None;
        self.save(vec![Audit::new(self.row.address(), "WakeFailed", error.to_string())]).await?;
        Err(error)
    }

    /// The one cold start that follows a snapshot which could not be used.
    pub(super) async fn cold_instead(
        &mut self,
        begun: Instant,
        why: String,
        asker: Asker,
    ) -> Result<(), ActError> {
        tracing::warn!(instance = %self.row.address(), %why, "cold start in place of a wake");
        self.set_session(None);
        self.agent.discard_vmm(&self.row).await;
        self.row.snapshot = None;
        self.row.process = None;
        match self.boot_instead(&why).await {
            Ok(confirmed) => {
                let reason = format!("started cold in place of a wake: {why}");
                let report = Loaded { confirmed, spare: false }.report_why(COLD_BOOT, reason, begun);
                self.now_running(Operation::Wake, report, "InstanceStarted", asker).await;
                Ok(())
            }
            Err(error) => {
                let error = failed(format!("{error} (a cold start, because {why})"));
                self.not_running("neither its wake nor the cold start after it succeeded", &error).await;
                Err(error)
            }
        }
    }

    async fn boot_instead(&mut self, why: &str) -> Result<Instant, ActError> {
        self.save(vec![Audit::new(self.row.address(), "WakeRefused", why)]).await?;
        self.forget_memory().await;
        let pool = self.agent.pool(&self.row.place.tenant, &self.row.place.pool).await.map_err(failed)?;
        // The pool may want other resources by now than the machine fell asleep with.
        self.admission = Some(self.agent.admissions.admit(&self.tenant, self.row.id, pool.spec.resources)?);
        self.launched_with(&pool, None);
        self.boot(Intent::Wake).await
    }

    /// Boots cold and comes up. Gives the moment at which the guest had confirmed who it is.
    async fn boot(&mut self, intent: Intent) -> Result<Instant, ActError> {
        // S5 and S3: generation and disk epoch rise, durably, before the launch.
        self.row.generation += 1;
        self.row.disk_epoch += 1;
        self.begin(intent).await?;
        reached(KillPoint::StartBegun);
        let agent = self.agent.clone();
        let _turn = agent.boots.acquire().await.map_err(failed)?;
        let launch = self.launch(LaunchKind::Cold).await?;
        let launched = self.agent.hands.launch(launch).await.map_err(failed)?;
        reached(KillPoint::StartLaunched);
        self.row.process = Some(launched.process);
        // Until its process is recorded the machine stands still: an agent that dies now leaves nothing that runs.
        self.save(Vec::new()).await?;
        reached(KillPoint::StartRecorded);
        let channel = self.connect().await?;
        self.agent.hands.go_on(self.row.id).await.map_err(failed)?;
        reached(KillPoint::StartGoing);
        let up = self.confirm(channel, KillPoint::StartConfirmed).await?;
        let confirmed = up.confirmed;
        self.get_ready(up).await?;
        reached(KillPoint::StartReady);
        Ok(confirmed)
    }

    /// Launches from the snapshot and comes up. A VMM that was killed before the snapshot was consumed has not used it (S2),
    /// and a kill says nothing against it: it is tried once more, and then stays for a later wake.
    async fn restore(&mut self) -> Result<Loaded, NotWoken> {
        let mut again = true;
        loop {
            let error = match self.restore_once().await {
                Err(NotWoken::Unusable(error) | NotWoken::Untouched(error)) if self.killed_unused().await => {
                    error
                }
                other => return other,
            };
            if !std::mem::take(&mut again) {
                let what =
                    "its VMM was killed twice while its memory was loaded; is the host short of memory?";
                return Err(NotWoken::Untouched(failed(format!("{what} ({error})"))));
            }
            tracing::warn!(instance = %self.row.address(), %error, "its VMM was killed: woken once more");
            self.agent.discard_vmm(&self.row).await;
            self.row.process = None;
        }
    }

    async fn killed_unused(&self) -> bool {
        self.row.snapshot.is_some() && self.agent.hands.was_killed(self.row.id).await.unwrap_or(false)
    }

    async fn restore_once(&mut self) -> Result<Loaded, NotWoken> {
        let snapshot = self.row.snapshot.clone().ok_or_else(|| failed("it has no snapshot"))?;
        if let Some(launched) = &mut self.row.launched {
            launched.base = match &snapshot.memory {
                SnapshotMemory::Delta { base } => base.clone(),
                SnapshotMemory::Own => None,
            };
        }
        self.row.generation += 1;
        self.begin(Intent::Wake).await.map_err(NotWoken::Untouched)?;
        reached(KillPoint::WakeBegun);
        let kind = LaunchKind::Restore { snapshot, disk_epoch: self.row.disk_epoch };
        let loaded = self.load(kind, &WAKE).await?;
        reached(KillPoint::WakeReady);
        Ok(loaded)
    }

    /// Launches a VMM that is given memory and device state, lets it go on and comes up.
    async fn load(&mut self, kind: LaunchKind, at: &LoadPoints) -> Result<Loaded, NotWoken> {
        self.step("begun");
        let wakes = matches!(kind, LaunchKind::Restore { .. });
        let launch = self.launch(kind).await.map_err(NotWoken::Untouched)?;
        let launched = self.agent.hands.launch(launch).await.map_err(|error| {
            if error.refuses_snapshot() {
                NotWoken::Unusable(failed(error))
            } else {
                NotWoken::Untouched(failed(error))
            }
        })?;
        self.step("launched");
        reached(at.launched);
        self.row.process = Some(launched.process);
        let recording = self.commit(Vec::new());
        let (hands, id) = (self.agent.hands.clone(), self.row.id);
        let socket = hands.control_socket(id);
        let recorded = async {
            recording.await.map_err(NotWoken::Untouched)?;
            reached(at.recorded);
            Ok::<(), NotWoken>(())
        };
        let loaded = async {
            // Connected before the device state comes in: a port that was in the middle of a write would wedge otherwise.
            let channel = UnixStream::connect(&socket).await;
            let channel =
                channel.map_err(|e| NotWoken::Untouched(failed(format!("its control channel: {e}"))))?;
            hands.restore(id).await.map_err(failed)?;
            Ok::<_, NotWoken>(channel)
        };
        // Until its process is recorded the machine stands still; it may be loaded meanwhile.
        let (recorded, channel) = tokio::join!(recorded, loaded);
        recorded?;
        let channel = channel?;
        self.show();
        self.step("loaded");
        reached(at.loaded);
        if wakes && !self.is_alive() {
            return Err(NotWoken::Unusable(failed("its VMM ended when it was loaded")));
        }
        if wakes {
            // S2: the snapshot counts as consumed, durably, before the guest's first instruction. With it the disk's epoch
            // rises: until here nothing could write to the disk, and an agent that dies before this commit finds a snapshot
            // that still fits.
            self.row.snapshot = None;
            self.row.disk_epoch += 1;
            self.save(Vec::new()).await?;
            reached(KillPoint::WakeConsumed);
        }
        self.agent.hands.go_on(self.row.id).await.map_err(failed)?;
        self.step("going");
        reached(at.going);
        let up = self.confirm(channel, at.confirmed).await?;
        let confirmed = up.confirmed;
        self.get_ready(up).await.map_err(NotWoken::NotReady)?;
        Ok(Loaded { confirmed, spare: launched.spare })
    }

    async fn launch(&self, kind: LaunchKind) -> Result<Launch, ActError> {
        let launched = self.row.launched.clone().ok_or_else(|| failed("nothing is known of its launch"))?;
        let pool = self.pool().await?;
        Ok(Launch {
            instance: self.row.id,
            tenant: self.tenant.id.clone(),
            pool: pool.id.clone(),
            uid: self.row.place.uid,
            revision: launched.revision,
            resources: launched.resources,
            network: self.agent.network_of(&self.tenant),
            port: self.agent.port_of(&self.tenant, &self.row, self.ip, &pool),
            kind,
        })
    }

    async fn now_running(
        &mut self,
        operation: Operation,
        report: StartReport,
        kind: &'static str,
        asker: Asker,
    ) {
        let came_up = CameUp { how: report.how.clone(), ms: report.total_ms, asker };
        let from_base = self.row.launched.as_ref().is_some_and(|launched| launched.base.is_some());
        if from_base && report.how != COLD_BOOT {
            spares::begun(&self.agent, &self.tenant.id, &self.row.place.pool);
        } else {
            // What it had before may have been the last to need a base.
            spares::keep_soon(&self.agent, (self.tenant.id.clone(), self.row.place.pool.clone()));
        }
        // A cold boot where there is no base yet is no fault.
        self.row.reason = report.why.clone().filter(|_| operation == Operation::Wake);
        self.row.last_start = Some(report);
        if let Some(launched) = &mut self.row.launched {
            // Back from an upgrade, it has what it had.
            launched.upgrade.take_if(|upgrade| upgrade.is_back);
        }
        if self.row.goal == Some(Goal::Running) {
            self.row.goal = None;
        }
        self.settle(operation, vec![Audit::new(self.row.address(), kind, came_up.to_string())]).await;
    }

    /// A start or wake that was begun did not reach ready.
    async fn not_running(&mut self, what: &str, error: &ActError) {
        self.set_session(None);
        self.admission = None;
        let console = self.agent.hands.console_tail(self.row.id).await.ok().flatten();
        self.agent.discard_vmm(&self.row).await;
        self.row.process = None;
        self.row.snapshot = None;
        self.forget_memory().await;
        // Whoever wanted it is told now; it is not tried behind their back later.
        self.row.goal = None;
        let reason = match console {
            Some(tail) => format!("{what}: {error}; its console ended with: {tail}"),
            None => format!("{what}: {error}"),
        };
        self.row.reason = Some(reason.clone());
        self.settle(Operation::Fail, vec![Audit::new(self.row.address(), "InstanceFailed", reason)]).await;
    }
}

impl Loaded {
    fn report(self, how: &str, begun: Instant) -> StartReport {
        StartReport {
            how: how.to_owned(),
            why: None,
            spare: self.spare,
            total_ms: millis(begun.elapsed()),
            confirmed_ms: millis(self.confirmed.duration_since(begun)),
        }
    }

    fn report_why(self, how: &str, why: String, begun: Instant) -> StartReport {
        StartReport { why: Some(why), ..self.report(how, begun) }
    }
}
