//! From what the agent wants to what a VMM is started with, and what is written down of it for a later agent.

use std::sync::Arc;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::InstanceId;
use mvm_network::{PortSpec, TenantNetwork};
use mvm_vmm::{
    BaseExpected, BlockDevice, Expected, FileIdentity, MachineSpec, MemoryBase, Restore, Shape, Snapshot,
    SnapshotMemory,
};
use serde::{Deserialize, Serialize};

use crate::host::{Inner, remove_folder};
use crate::{HostError, Launch, LaunchKind};

/// `launch.json`: what another agent needs to take a VMM over, or to clear up behind it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launched {
    pub(crate) revision: String,
    /// Of the engine that was there at the launch; it may have been replaced since.
    pub(crate) shape: Shape,
    pub(crate) spec: MachineSpec,
    pub(crate) network: TenantNetwork,
    pub(crate) port: PortSpec,
}

impl Inner {
    /// From what the agent wants to what the engine takes, with the device of the base that is to be mapped.
    pub(crate) fn prepare(
        &self,
        launch: &Launch,
    ) -> Result<(MachineSpec, Option<Arc<BlockDevice>>), HostError> {
        let id = launch.revision.parse().map_err(|_| HostError::NotARevision(launch.revision.clone()))?;
        let revision = self.images.revision(&id)?;
        let data = self.paths.disk_of(launch.instance);
        let shared = |base| self.map_base(base).map(|mapped| (mapped.memory, Some(mapped.device)));
        let (memory, base) = match &launch.kind {
            LaunchKind::Cold => (MemoryBase::Empty, None),
            LaunchKind::Clone { base } => shared(base)?,
            LaunchKind::Restore { snapshot, .. } => match &snapshot.memory {
                SnapshotMemory::Delta { base: None } => (MemoryBase::Empty, None),
                SnapshotMemory::Delta { base: Some(base) } => shared(base)?,
                SnapshotMemory::Own => (MemoryBase::Own { folder: self.paths.own_of(launch.instance) }, None),
            },
        };
        if !matches!(launch.kind, LaunchKind::Restore { .. }) {
            mvm_image::disk::grow(&data, launch.resources.data_disk_mib)?;
        }
        let run_dir = self.paths.run_of(launch.instance);
        std::fs::create_dir_all(&run_dir).map_err(HostError::at(&run_dir))?;
        let spec = MachineSpec {
            name: format!("mvm-{}-{}", self.tag.as_str(), launch.instance),
            vcpus: launch.resources.vcpus,
            mem_mib: launch.resources.mem_mib,
            memory,
            kernel: revision.kernel,
            initrd: revision.initrd,
            kernel_arguments: Vec::new(),
            rootfs: revision.rootfs,
            data,
            mac: launch.port.mac,
            run_dir,
            uid: launch.uid,
        };
        Ok((spec, base))
    }

    /// What the machine is to load, checked as far as it can be before; nothing for a cold start.
    pub(crate) fn open(&self, launch: &Launch, launched: &Launched) -> Result<Option<Restore>, HostError> {
        let Launched { spec, shape, revision, .. } = launched.clone();
        match &launch.kind {
            LaunchKind::Cold => Ok(None),
            LaunchKind::Clone { base } => {
                let (tenant, pool) = (launch.tenant.to_string(), launch.pool.to_string());
                let expected = BaseExpected { id: base.clone(), tenant, pool, revision, shape };
                self.open_base(&expected).map(Some)
            }
            LaunchKind::Restore { snapshot, disk_epoch } => {
                let disk = std::fs::File::open(&spec.data).and_then(|file| FileIdentity::of(&file));
                let expected = Expected {
                    digest: snapshot.digest.clone(),
                    memory: snapshot.memory.clone(),
                    instance: launch.instance.to_string(),
                    revision,
                    shape,
                    disk_epoch: *disk_epoch,
                    disk: disk.map_err(HostError::at(&spec.data))?,
                };
                let instance = launch.instance;
                let (folder, own) = (self.paths.snapshot_of(instance), self.paths.own_of(instance));
                let snapshot = Snapshot::open(&folder, &own, &expected).map_err(mvm_vmm::Error::from)?;
                Ok(Some(snapshot.restore()))
            }
        }
    }

    /// Makes the folder of a spare the instance's, with what its console said before.
    pub(crate) fn move_in(
        &self,
        instance: InstanceId,
        from: &std::path::Path,
        launched: &Launched,
    ) -> Result<(), HostError> {
        let to = self.paths.run_of(instance);
        let console = "console.log";
        if let Ok(mut earlier) = std::fs::File::open(to.join(console)) {
            let path = from.join(console);
            let mut open = std::fs::File::options();
            let appended =
                open.append(true).open(&path).and_then(|mut log| std::io::copy(&mut earlier, &mut log));
            appended.map_err(HostError::at(&path))?;
        }
        remove_folder(&to)?;
        std::fs::rename(from, &to).map_err(HostError::at(&to))?;
        reached(KillPoint::SpareMoved);
        self.write_down(instance, launched)
    }

    /// For a later agent.
    pub(crate) fn write_down(&self, instance: InstanceId, launched: &Launched) -> Result<(), HostError> {
        let path = self.paths.launch_of(instance);
        // It may have gone with a spare that could not be used.
        let folder = self.paths.run_of(instance);
        std::fs::create_dir_all(&folder).map_err(HostError::at(&folder))?;
        let text = serde_json::to_vec(launched).map_err(|e| HostError::at(&path)(e.into()))?;
        std::fs::write(&path, text).map_err(HostError::at(&path))
    }

    pub(crate) fn launched(&self, instance: InstanceId) -> Result<Launched, HostError> {
        let path = self.paths.launch_of(instance);
        let text = std::fs::read(&path).map_err(HostError::at(&path))?;
        serde_json::from_slice(&text).map_err(|e| HostError::at(&path)(e.into()))
    }
}
