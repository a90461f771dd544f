//! VMMs: their launch, their channels, their end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::{InstanceId, SnapshotCompression};
use mvm_network::PortSpec;
use mvm_vmm::{
    BlockDevice, Ended, Engine, Exit, FlatCheck, Machine, MemoryBase, ProcessIdentity, QemuEngine, Restore,
    SnapshotFacts, SnapshotInfo, SnapshotOptions, Start, kill_process,
};
use tokio::task::JoinHandle;

use crate::host::{Host, HostEvent, MachineEnded, remove_folder};
use crate::launching::Launched;
use crate::nameless::{Nameless, Number};
use crate::spares::{Fit, Spare};
use crate::{HostError, Launch, request};

/// With more private memory than this a machine is given an own image at its sleep: copying as much at every wake takes
/// longer than mapping it.
const OWN_IMAGE_FROM: u64 = 64 << 20;

/// Within so long after a VMM did not answer its end is seen, if that was why.
const END_SEEN: Duration = Duration::from_millis(500);

/// How long a spare may take for its last step; it takes milliseconds, more on a host that is busy or swaps. Whoever starts or
/// wakes does not wait longer for one that hangs.
const SPARE_PATIENCE: Duration = Duration::from_secs(1);

/// Number of the signal that nothing can refuse.
const SIGKILL: i32 = 9;

/// A VMM that runs.
pub(crate) struct Running {
    pub(crate) machine: Box<dyn Machine>,
    /// What its uid comes from, where it was a spare.
    _number: Option<Number>,
    /// The device of the base that it maps, so that those who come later map the same one.
    base: OnceLock<Arc<BlockDevice>>,
    /// What it was launched to load, until that is done.
    restore: Mutex<Option<Restore>>,
    /// How it was launched, until it runs for the first time.
    begins: Mutex<Option<Launched>>,
    /// Its port's rules, which are made while the guest comes up.
    admission: tokio::sync::Mutex<Option<JoinHandle<Result<(), HostError>>>>,
    /// The check of the own image that it maps, which goes on beside it.
    check: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    /// Ends that check without a finding.
    stop_check: OnceLock<Arc<AtomicBool>>,
    /// Why the host ended it by itself.
    doomed: Arc<Mutex<Option<String>>>,
}

impl Running {
    fn new(machine: Box<dyn Machine>, number: Option<Number>) -> Self {
        Self {
            machine,
            _number: number,
            base: OnceLock::new(),
            restore: Mutex::default(),
            begins: Mutex::default(),
            admission: tokio::sync::Mutex::default(),
            check: tokio::sync::Mutex::default(),
            stop_check: OnceLock::new(),
            doomed: Arc::default(),
        }
    }

    /// Loads what it was launched for.
    pub(crate) async fn restore(&self) -> Result<(), HostError> {
        let restore = self.restore.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(self.machine.restore(restore.ok_or(HostError::Confused)?).await?)
    }

    /// The link goes up only once the port's rules are in force.
    pub(crate) async fn set_link(&self, up: bool) -> Result<(), HostError> {
        if up {
            self.admitted().await?;
        }
        Ok(self.machine.set_link(up).await?)
    }

    async fn admitted(&self) -> Result<(), HostError> {
        match self.admission.lock().await.take() {
            Some(admission) => admission.await?,
            None => Ok(()),
        }
    }

    /// Why the host ended it by itself, if it did.
    pub(crate) fn doom(&self) -> Option<String> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it was killed from outside: no VMM does that to itself, whatever it is given to load.
    pub(crate) async fn was_killed(&self) -> bool {
        let ended = tokio::time::timeout(END_SEEN, self.machine.wait()).await;
        matches!(ended, Ok(Ended { exit: Exit::Signaled(SIGKILL), .. }))
    }

    /// Waits for the check of its image.
    pub(crate) async fn checked(&self) {
        let mut slot = self.check.lock().await;
        if let Some(check) = &mut *slot {
            // What it found it has said itself.
            let _ = check.await;
        }
        // Not before: whoever asks may give up.
        *slot = None;
    }
}

impl Host {
    pub(crate) fn running(&self, instance: InstanceId) -> Result<Arc<Running>, HostError> {
        self.all_running().get(&instance).cloned().ok_or(HostError::NoMachine(instance))
    }

    fn all_running(&self) -> MutexGuard<'_, std::collections::HashMap<InstanceId, Arc<Running>>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a VMM with its port, or takes one that was started ahead; whatever fails, nothing is left of it.
    pub(crate) async fn start_vmm(&self, launch: Launch) -> Result<request::Launched, HostError> {
        let instance = launch.instance;
        let wanted = launch.clone();
        let (spec, base) = self.blocking(move |inner| inner.prepare(&wanted)).await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        let wanted = launch.clone();
        let Launch { revision, network, port, .. } = launch.clone();
        let mut launched = Launched { revision, shape: engine.shape(&spec)?, spec, network, port };
        let opening = launched.clone();
        let restore = self.blocking(move |inner| inner.open(&wanted, &opening)).await?;
        if restore.is_some()
            && let Some(spare) = self.fitting_spare(&launch, &launched)
        {
            match self.assign(spare, &mut launched, instance).await {
                Ok((machine, number)) => {
                    let running = Running::new(machine, Some(number));
                    let process = self.begun(instance, running, launched, base, restore);
                    return Ok(request::Launched { process, spare: true });
                }
                Err(error) => tracing::warn!(%instance, %error, "a spare could not be used"),
            }
        }
        let machine = self.launch_on_demand(&engine, instance, &launched, restore.is_some()).await;
        match machine {
            Ok(machine) => {
                let running = Running::new(machine, None);
                let process = self.begun(instance, running, launched, base, restore);
                Ok(request::Launched { process, spare: false })
            }
            Err(error) => {
                self.with_network(&launched, |networks, l| networks.detach(&l.network, &l.port)).await?;
                Err(error)
            }
        }
    }

    async fn launch_on_demand(
        &self,
        engine: &QemuEngine,
        instance: InstanceId,
        launched: &Launched,
        restores: bool,
    ) -> Result<Box<dyn Machine>, HostError> {
        let written = launched.clone();
        self.blocking(move |inner| inner.write_down(instance, &written)).await?;
        let start = if restores { Start::Restore } else { Start::Cold };
        let tap =
            self.with_network(launched, |networks, l| networks.open_tap(&l.network, l.port.offset)).await?;
        Ok(engine.launch(&launched.spec, Some(tap), start).await?)
    }

    fn fitting_spare(&self, launch: &Launch, Launched { spec, shape, .. }: &Launched) -> Option<Spare> {
        let MemoryBase::Shared { id, .. } = &spec.memory else { return None };
        let fit = Fit {
            base: id.clone(),
            engine: shape.engine.sha256.clone(),
            revision: launch.revision.clone(),
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            data_bytes: std::fs::metadata(&spec.data).ok()?.len(),
        };
        self.inner.spares.take(&launch.tenant, &launch.pool, &fit)
    }

    /// Makes a spare the VMM of an instance. If that fails, nothing is left of the spare.
    async fn assign(
        &self,
        spare: Spare,
        launched: &mut Launched,
        instance: InstanceId,
    ) -> Result<(Box<dyn Machine>, Number), HostError> {
        let Spare { machine, spec, place: Nameless { tap, number, run_dir, .. }, .. } = spare;
        reached(KillPoint::SpareTaken);
        let process = machine.identity().clone();
        let mut own = launched.clone();
        (own.spec.name, own.spec.uid) = (spec.name, spec.uid);
        let (written, from) = (own.clone(), run_dir.clone());
        let assigned = async {
            self.blocking(move |inner| inner.move_in(instance, &from, &written)).await?;
            reached(KillPoint::SpareWrittenDown);
            let (shape, target) = (own.shape.clone(), own.spec.clone());
            let naming = self.with_network(&own, move |nets, l| {
                let named = nets.assign_tap(&l.network, tap, l.port.offset);
                named.inspect(|()| reached(KillPoint::SpareTapNamed))
            });
            let assigning = async {
                let assigned = machine.assign(&target, shape).await;
                assigned.inspect(|_| reached(KillPoint::SpareDiskGiven))
            };
            let assigning = tokio::time::timeout(SPARE_PATIENCE, assigning);
            let (named, machine) = tokio::join!(naming, assigning);
            named.and(Ok(machine.map_err(|_| HostError::SilentSpare)??))
        };
        match assigned.await {
            Ok(machine) => {
                *launched = own;
                Ok((machine, number))
            }
            Err(error) => {
                kill_process(&process).await?;
                remove_folder(&run_dir)?;
                Err(error)
            }
        }
    }

    /// From here on the VMM is an instance's.
    fn begun(
        &self,
        instance: InstanceId,
        mut running: Running,
        launched: Launched,
        base: Option<Arc<BlockDevice>>,
        restore: Option<Restore>,
    ) -> ProcessIdentity {
        running.base = base.map_or_else(OnceLock::new, OnceLock::from);
        running.restore = Mutex::new(restore);
        running.begins = Mutex::new(Some(launched));
        self.watch(instance, running)
    }

    /// Takes up a VMM that an earlier agent started, and its port with it: what it may reach can have changed since its
    /// launch.
    pub(crate) async fn take_up(
        &self,
        instance: InstanceId,
        process: &ProcessIdentity,
        port: PortSpec,
    ) -> Result<(), HostError> {
        let launched = self.blocking(move |inner| inner.launched(instance)).await?;
        let engine = self.inner.engines.engine(&launched.spec.kernel).await?;
        let machine = engine.reattach(&launched.spec, launched.shape.clone(), process).await?;
        self.with_network(&launched, move |networks, l| networks.admit(&l.network, &port)).await?;
        self.inner.reserve(instance, launched.spec.uid);
        self.watch(instance, Running::new(machine, self.inner.reserved.take(instance)));
        let running = self.running(instance)?;
        if let MemoryBase::Shared { id, .. } = launched.spec.memory {
            let host = self.clone();
            // Beside it, as the base is read through before: the machine maps it already, and runs.
            tokio::spawn(async move { host.share_base(&running, instance, id).await });
            return Ok(());
        }
        self.check_own(&running, instance, &launched.spec.memory).await
    }

    /// Holds the base of a machine that was taken up, so that those who come later map the same device.
    async fn share_base(&self, running: &Running, instance: InstanceId, id: String) {
        match self.blocking(move |inner| inner.map_base(&id)).await {
            // Nobody else sets it.
            Ok(mapped) => drop(running.base.set(mapped.device)),
            Err(error) => tracing::warn!(%instance, %error, "its base cannot be shared with others"),
        }
    }

    /// From now on the machine is known by its instance, and its end is told.
    fn watch(&self, instance: InstanceId, running: Running) -> ProcessIdentity {
        let process = running.machine.identity().clone();
        let missing = running.machine.missing_limits();
        if !missing.is_empty() {
            tracing::warn!(%instance, ?missing, "this host cannot limit what the machine takes of these");
        }
        let mut ended = running.machine.ended();
        let (events, identity) = (self.inner.events.clone(), process.clone());
        let doomed = Arc::clone(&running.doomed);
        tokio::spawn(async move {
            let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
            if let Some(ended) = end {
                let why = doomed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let event = MachineEnded { instance, process: identity, ended, why };
                // Without a receiver the agent is ending.
                let _ = events.send(HostEvent::MachineEnded(event));
            }
        });
        self.all_running().insert(instance, Arc::new(running));
        process
    }

    /// Lets a machine run. While its guest comes up, its port's rules are made, and the own image that it maps is checked.
    pub(crate) async fn go_on_checked(&self, instance: InstanceId) -> Result<(), HostError> {
        let running = self.running(instance)?;
        running.machine.cont().await?;
        let begins = running.begins.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(launched) = begins else { return Ok(()) };
        let (host, memory) = (self.clone(), launched.spec.memory.clone());
        let admission = tokio::spawn(async move {
            host.with_network(&launched, |networks, l| networks.admit(&l.network, &l.port)).await
        });
        *running.admission.lock().await = Some(admission);
        self.check_own(&running, instance, &memory).await
    }

    /// Reads an own image through beside its machine. A piece that is not what the sleep wrote ends the machine.
    /// Once per wake and by each agent: what a sleep that was given up changes in it, its machine has pages of its own for.
    async fn check_own(
        &self,
        running: &Running,
        instance: InstanceId,
        memory: &MemoryBase,
    ) -> Result<(), HostError> {
        let MemoryBase::Own { folder } = memory.clone() else { return Ok(()) };
        let mut slot = running.check.lock().await;
        let check = self.blocking(move |_| Ok(FlatCheck::unless_changing(&folder)?)).await?;
        let Some(check) = check else { return Ok(()) };
        let _ = running.stop_check.set(check.stop());
        let (doomed, process) = (Arc::clone(&running.doomed), running.machine.identity().clone());
        let done = tokio::spawn(async move {
            let found = tokio::task::spawn_blocking(move || check.run()).await;
            let Ok(Err(error)) = found else { return };
            tracing::error!(%instance, %error, "its own image is damaged: the machine is ended");
            *doomed.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("its own image: {error}"));
            if let Err(error) = kill_process(&process).await {
                tracing::error!(%instance, %error, "and could not be");
            }
        });
        *slot = Some(done);
        Ok(())
    }

    pub(crate) async fn write_snapshot(
        &self,
        facts: SnapshotFacts,
        compression: SnapshotCompression,
    ) -> Result<SnapshotInfo, HostError> {
        let instance: InstanceId = facts.instance.parse().map_err(|_| HostError::Confused)?;
        let running = self.running(instance)?;
        // What is written in place must have been found whole before.
        running.checked().await;
        let folder = self.paths().snapshot_of(instance);
        let earlier = folder.clone();
        // One that was consumed may still be there.
        self.blocking(move |_| Ok(mvm_vmm::remove_kept(&earlier)?)).await?;
        let own = self.paths().own_of(instance);
        let options = SnapshotOptions { compression, own, own_from: OWN_IMAGE_FROM };
        Ok(running.machine.snapshot(&folder, facts, &options).await?)
    }

    /// Ends a VMM, known or recorded, and takes away its port and what else it leaves.
    pub(crate) async fn end_vmm(
        &self,
        instance: InstanceId,
        process: Option<ProcessIdentity>,
    ) -> Result<(), HostError> {
        let running = self.all_running().remove(&instance);
        if let Some(running) = &running
            && let Err(error) = running.admitted().await
        {
            tracing::debug!(%instance, %error, "its port had not been admitted");
        }
        // None where it was never launched in this boot of the host.
        let launched = self.blocking(move |inner| inner.launched(instance)).await.ok();
        let detached = async {
            let Some(launched) = &launched else { return Ok(()) };
            self.with_network(launched, |networks, l| networks.detach(&l.network, &l.port)).await
        };
        let (ended, detached) = tokio::join!(end(running.as_deref(), process), detached);
        ended?;
        // Nobody is given its uid, name and cgroup before they are cleared away, too.
        let _number = self.inner.reserved.take(instance);
        detached?;
        let Some(launched) = launched else { return Ok(()) };
        let engine = self.inner.engines.engine(&launched.spec.kernel).await?;
        self.blocking(move |_| Ok(engine.clear(&launched.spec)?)).await
    }

    async fn with_network<T: Send + 'static>(
        &self,
        launched: &Launched,
        act: impl FnOnce(&mvm_network::Networks, &Launched) -> mvm_network::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let launched = launched.clone();
        let net_id = launched.network.net_id;
        self.blocking(move |inner| {
            Ok(inner.tenants.one_at_a_time(net_id, || act(&inner.networks, &launched))?)
        })
        .await
    }
}

/// Ends a VMM, known or recorded.
async fn end(running: Option<&Running>, process: Option<ProcessIdentity>) -> Result<(), HostError> {
    match (running, process) {
        (Some(running), _) => {
            running.machine.kill().await?;
            if let Some(stop) = running.stop_check.get() {
                stop.store(true, Ordering::Relaxed);
            }
            running.checked().await;
        }
        (None, Some(process)) => {
            kill_process(&process).await?;
        }
        (None, None) => {}
    }
    Ok(())
}
