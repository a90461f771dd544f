//! VMMs: their launch, their channels, their end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mvm_model::InstanceId;
use mvm_network::{PortSpec, TenantNetwork};
use mvm_vmm::{
    DiskIdentity, Engine, Expected, Machine, MachineSpec, MemoryBase, ProcessIdentity, Shape, Snapshot,
    SnapshotFacts, SnapshotInfo, Start, kill_process,
};
use serde::{Deserialize, Serialize};

use crate::host::{Host, MachineEnded};
use crate::{HostError, Launch, LaunchKind};

/// A VMM that runs.
pub(crate) struct Running {
    pub(crate) machine: Box<dyn Machine>,
    /// The snapshot that it was launched for, until it is loaded.
    snapshot: Mutex<Option<Snapshot>>,
}

/// `launch.json`: what another agent needs to take a VMM over, or to clear up behind it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Launched {
    revision: String,
    /// Of the engine that was there at the launch; it may have been replaced since.
    shape: Shape,
    spec: MachineSpec,
    network: TenantNetwork,
    port: PortSpec,
}

impl Running {
    /// Loads the snapshot.
    pub(crate) async fn restore(&self) -> Result<(), HostError> {
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(self.machine.restore(snapshot.ok_or(HostError::Confused)?).await?)
    }
}

impl Host {
    pub(crate) fn running(&self, instance: InstanceId) -> Result<Arc<Running>, HostError> {
        self.all_running().get(&instance).cloned().ok_or(HostError::NoMachine(instance))
    }

    fn all_running(&self) -> MutexGuard<'_, std::collections::HashMap<InstanceId, Arc<Running>>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a VMM with its port; whatever fails, nothing is left of it.
    pub(crate) async fn start_vmm(&self, launch: Launch) -> Result<ProcessIdentity, HostError> {
        let (instance, kind) = (launch.instance, launch.kind.clone());
        let wanted = launch.clone();
        let spec = self.blocking(move |inner| inner.prepare(&wanted)).await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        let Launch { revision, network, port, .. } = launch;
        let launched = Launched { revision, shape: engine.shape(&spec)?, spec, network, port };
        let written = launched.clone();
        self.blocking(move |inner| inner.write_down(instance, &written)).await?;
        let snapshot = match kind {
            LaunchKind::Cold => None,
            LaunchKind::Restore { snapshot, disk_epoch } => {
                Some(open_snapshot(self, &launched, instance, snapshot, disk_epoch).await?)
            }
        };
        let start = if snapshot.is_some() { Start::Restore } else { Start::Cold };
        let tap =
            self.with_network(&launched, |networks, l| networks.open_tap(&l.network, l.port.offset)).await?;
        // The port's rules are made while the VMM starts; its link goes up only when both are done.
        let admitting = self.with_network(&launched, |networks, l| networks.admit(&l.network, &l.port));
        let (machine, admitted) = tokio::join!(engine.launch(&launched.spec, Some(tap), start), admitting);
        let result = match (machine, admitted) {
            (Ok(machine), Ok(())) => Ok(self.watch(instance, machine, snapshot)),
            (Ok(machine), Err(error)) => {
                machine.kill().await?;
                Err(error)
            }
            (Err(error), _) => Err(error.into()),
        };
        if result.is_err() {
            self.with_network(&launched, |networks, l| networks.detach(&l.network, &l.port)).await?;
        }
        result
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
        self.watch(instance, machine, None);
        Ok(())
    }

    /// From now on the machine is known by its instance, and its end is told.
    fn watch(
        &self,
        instance: InstanceId,
        machine: Box<dyn Machine>,
        snapshot: Option<Snapshot>,
    ) -> ProcessIdentity {
        let process = machine.identity().clone();
        let missing = machine.missing_limits();
        if !missing.is_empty() {
            tracing::warn!(%instance, ?missing, "this host cannot limit what the machine takes of these");
        }
        let mut ended = machine.ended();
        let events = self.inner.ended.clone();
        let identity = process.clone();
        tokio::spawn(async move {
            let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
            if let Some(ended) = end {
                // Without a receiver the agent is ending.
                let _ = events.send(MachineEnded { instance, process: identity, ended });
            }
        });
        let running = Arc::new(Running { machine, snapshot: Mutex::new(snapshot) });
        self.all_running().insert(instance, running);
        process
    }

    pub(crate) async fn write_snapshot(&self, facts: SnapshotFacts) -> Result<SnapshotInfo, HostError> {
        let instance: InstanceId = facts.instance.parse().map_err(|_| HostError::Confused)?;
        let running = self.running(instance)?;
        let folder = self.paths().snapshot_of(instance);
        let earlier = folder.clone();
        // One that was consumed may still be there.
        self.blocking(move |_| Ok(mvm_vmm::remove_snapshot(&earlier)?)).await?;
        Ok(running.machine.snapshot(&folder, facts).await?)
    }

    /// Ends a VMM, known or recorded, and takes away its port and what else it leaves.
    pub(crate) async fn end_vmm(
        &self,
        instance: InstanceId,
        process: Option<ProcessIdentity>,
    ) -> Result<(), HostError> {
        let running = self.all_running().remove(&instance);
        match (running, process) {
            (Some(running), _) => {
                running.machine.kill().await?;
            }
            (None, Some(process)) => {
                kill_process(&process).await?;
            }
            (None, None) => {}
        }
        let Ok(launched) = self.blocking(move |inner| inner.launched(instance)).await else {
            // It was never launched in this boot of the host.
            return Ok(());
        };
        self.with_network(&launched, |networks, l| networks.detach(&l.network, &l.port)).await?;
        let engine = self.inner.engines.engine(&launched.spec.kernel).await?.clone();
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

async fn open_snapshot(
    host: &Host,
    launched: &Launched,
    instance: InstanceId,
    info: SnapshotInfo,
    disk_epoch: u64,
) -> Result<Snapshot, HostError> {
    let Launched { spec, shape, revision, .. } = launched.clone();
    host.blocking(move |inner| {
        let disk = std::fs::File::open(&spec.data).and_then(|file| DiskIdentity::of(&file));
        let expected = Expected {
            digest: info.digest,
            instance: instance.to_string(),
            revision,
            shape,
            disk_epoch,
            disk: disk.map_err(HostError::at(&spec.data))?,
        };
        let folder = inner.paths.snapshot_of(instance);
        Ok(Snapshot::open(&folder, &expected).map_err(mvm_vmm::Error::from)?)
    })
    .await
}

impl crate::host::Inner {
    /// From what the agent wants to what the engine takes.
    fn prepare(&self, launch: &Launch) -> Result<MachineSpec, HostError> {
        let id = launch.revision.parse().map_err(|_| HostError::NotARevision(launch.revision.clone()))?;
        let revision = self.images.revision(&id)?;
        let data = self.paths.disk_of(launch.instance);
        if launch.kind == LaunchKind::Cold {
            mvm_image::disk::grow(&data, launch.resources.data_disk_mib)?;
        }
        let run_dir = self.paths.run_of(launch.instance);
        std::fs::create_dir_all(&run_dir).map_err(HostError::at(&run_dir))?;
        Ok(MachineSpec {
            name: format!("mvm-{}-{}", self.tag.as_str(), launch.instance),
            vcpus: launch.resources.vcpus,
            mem_mib: launch.resources.mem_mib,
            memory: MemoryBase::Empty,
            kernel: revision.kernel,
            initrd: revision.initrd,
            kernel_arguments: Vec::new(),
            rootfs: revision.rootfs,
            data,
            mac: launch.port.mac,
            run_dir,
            uid: launch.uid,
        })
    }

    /// For a later agent.
    fn write_down(&self, instance: InstanceId, launched: &Launched) -> Result<(), HostError> {
        let path = self.paths.launch_of(instance);
        let text = serde_json::to_vec(launched).map_err(|e| HostError::at(&path)(e.into()))?;
        std::fs::write(&path, text).map_err(HostError::at(&path))
    }

    fn launched(&self, instance: InstanceId) -> Result<Launched, HostError> {
        let path = self.paths.launch_of(instance);
        let text = std::fs::read(&path).map_err(HostError::at(&path))?;
        serde_json::from_slice(&text).map_err(|e| HostError::at(&path)(e.into()))
    }
}
