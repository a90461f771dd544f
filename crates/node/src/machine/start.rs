//! Start and wake: prepare, launch, come up. What fails before the launch leaves the machine as it was.

use std::time::Instant;

use mvm_host::{Launch, LaunchKind};
use mvm_model::Operation;
use mvm_protocol::api::{StartReport, millis};

use super::task::{Task, failed};
use super::{ActError, Asker};
use crate::kill_point::{KillPoint, reached};
use crate::store::{Audit, Goal, Intent, Recorded};

/// Why a machine does not run from its snapshot.
enum NotWoken {
    /// The snapshot cannot be used, or is consumed: one cold start follows in the same act.
    Unusable(ActError),
    /// Nothing irreversible was done, and the snapshot is not at fault: the machine stays asleep.
    Untouched(ActError),
}

impl From<ActError> for NotWoken {
    fn from(error: ActError) -> Self {
        NotWoken::Unusable(error)
    }
}

impl Task {
    /// A cold boot from `ready`, `stopped` or `failed`.
    pub(super) async fn start(&mut self, asker: Asker) -> Result<(), ActError> {
        self.row.state.after(Operation::Start)?;
        let begun = Instant::now();
        let pool = self.agent.pool(&self.row.place.tenant, &self.row.place.pool).await.map_err(failed)?;
        self.admission = Some(self.agent.admissions.admit(&self.tenant, self.row.id, pool.spec.resources)?);
        self.row.launched = Some(Recorded { revision: pool.revision, resources: pool.spec.resources });
        match self.boot(Intent::Start).await {
            Ok(confirmed) => {
                let report = report("cold boot", None, begun, confirmed);
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

    /// From its snapshot; where that is refused, consumed or fails, by one cold start in the same act.
    pub(super) async fn wake(&mut self, asker: Asker) -> Result<(), ActError> {
        self.row.state.after(Operation::Wake)?;
        let begun = Instant::now();
        let resources = self.row.launched.as_ref().map(|l| l.resources).unwrap_or_default();
        self.admission = Some(self.agent.admissions.admit(&self.tenant, self.row.id, resources)?);
        let refused = match self.restore().await {
            Ok(confirmed) => {
                let report = report("wake", None, begun, confirmed);
                self.now_running(Operation::Wake, report, "InstanceWoken", asker).await;
                // Consumed, it is of no use any more, and holds what the machine had in memory.
                self.discard_snapshot().await;
                reached(KillPoint::WakeCommitted);
                return Ok(());
            }
            Err(NotWoken::Untouched(error)) => return self.still_asleep(error).await,
            Err(NotWoken::Unusable(refused)) => refused.to_string(),
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
        self.session = None;
        self.agent.discard_vmm(&self.row).await;
        self.row.snapshot = None;
        self.row.process = None;
        match self.boot_instead(&why).await {
            Ok(confirmed) => {
                let reason = format!("started cold in place of a wake: {why}");
                self.now_running(
                    Operation::Wake,
                    report("cold boot", Some(reason), begun, confirmed),
                    "InstanceStarted",
                    asker,
                )
                .await;
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
        self.discard_snapshot().await;
        let pool = self.agent.pool(&self.row.place.tenant, &self.row.place.pool).await.map_err(failed)?;
        // The pool may want other resources by now than the machine fell asleep with.
        self.admission = Some(self.agent.admissions.admit(&self.tenant, self.row.id, pool.spec.resources)?);
        self.row.launched = Some(Recorded { revision: pool.revision, resources: pool.spec.resources });
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
        let process = self.agent.hands.launch(launch).await.map_err(failed)?;
        reached(KillPoint::StartLaunched);
        self.row.process = Some(process);
        // Until its process is recorded the machine stands still: an agent that dies now leaves nothing that runs.
        self.save(Vec::new()).await?;
        reached(KillPoint::StartRecorded);
        let channel = self.connect().await?;
        self.agent.hands.go_on(self.row.id).await.map_err(failed)?;
        reached(KillPoint::StartGoing);
        let confirmed = self.come_up(channel, KillPoint::StartConfirmed).await?;
        reached(KillPoint::StartReady);
        Ok(confirmed)
    }

    /// Launches from the snapshot and comes up.
    async fn restore(&mut self) -> Result<Instant, NotWoken> {
        let snapshot = self.row.snapshot.clone().ok_or_else(|| failed("it has no snapshot"))?;
        self.row.generation += 1;
        self.begin(Intent::Wake).await.map_err(NotWoken::Untouched)?;
        reached(KillPoint::WakeBegun);
        let kind = LaunchKind::Restore { snapshot, disk_epoch: self.row.disk_epoch };
        let launch = self.launch(kind).await.map_err(NotWoken::Untouched)?;
        let process = self.agent.hands.launch(launch).await.map_err(|error| {
            if error.refuses_snapshot() {
                NotWoken::Unusable(failed(error))
            } else {
                NotWoken::Untouched(failed(error))
            }
        })?;
        reached(KillPoint::WakeLaunched);
        self.row.process = Some(process);
        self.save(Vec::new()).await.map_err(NotWoken::Untouched)?;
        reached(KillPoint::WakeRecorded);
        // Connected before the device state comes in: a port that was in the middle of a write would wedge otherwise.
        let channel = self.connect().await.map_err(NotWoken::Untouched)?;
        self.agent.hands.restore(self.row.id).await.map_err(failed)?;
        reached(KillPoint::WakeRestored);
        // S2: the snapshot counts as consumed, durably, before the guest's first instruction. With it the disk's epoch
        // rises: until here nothing could write to the disk, and an agent that dies before this commit finds a snapshot that
        // still fits.
        self.row.snapshot = None;
        self.row.disk_epoch += 1;
        self.save(Vec::new()).await?;
        reached(KillPoint::WakeConsumed);
        self.agent.hands.go_on(self.row.id).await.map_err(failed)?;
        reached(KillPoint::WakeGoing);
        let confirmed = self.come_up(channel, KillPoint::WakeConfirmed).await?;
        reached(KillPoint::WakeReady);
        Ok(confirmed)
    }

    async fn launch(&self, kind: LaunchKind) -> Result<Launch, ActError> {
        let launched = self.row.launched.clone().ok_or_else(|| failed("nothing is known of its launch"))?;
        let pool = self.pool().await?;
        Ok(Launch {
            instance: self.row.id,
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
        let detail = format!("{} in {:.0} ms, for {}", report.how, report.total_ms, asker.as_str());
        self.row.reason.clone_from(&report.why);
        self.row.last_start = Some(report);
        if self.row.goal == Some(Goal::Running) {
            self.row.goal = None;
        }
        self.settle(operation, Audit::new(self.row.address(), kind, detail)).await;
    }

    /// A start or wake that was begun did not reach ready.
    async fn not_running(&mut self, what: &str, error: &ActError) {
        self.session = None;
        self.admission = None;
        let console = self.agent.hands.console_tail(self.row.id).await.ok().flatten();
        self.agent.discard_vmm(&self.row).await;
        self.row.process = None;
        self.row.snapshot = None;
        // Whoever wanted it is told now; it is not tried behind their back later.
        self.row.goal = None;
        let reason = match console {
            Some(tail) => format!("{what}: {error}; its console ended with: {tail}"),
            None => format!("{what}: {error}"),
        };
        self.row.reason = Some(reason.clone());
        self.settle(Operation::Fail, Audit::new(self.row.address(), "InstanceFailed", reason)).await;
    }
}

fn report(how: &str, why: Option<String>, begun: Instant, confirmed: Instant) -> StartReport {
    StartReport {
        how: how.to_owned(),
        why,
        spare: false,
        total_ms: millis(begun.elapsed()),
        confirmed_ms: millis(confirmed.duration_since(begun)),
    }
}
