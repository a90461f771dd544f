//! Bases: making them of a machine that is nobody yet, and keeping them where VMMs can map them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mvm_model::Resources;
use mvm_network::TenantNetwork;
use mvm_vmm::{
    Accel, Base, BaseFacts, BaseInfo, BlockDevice, Engine, Machine, MachineSpec, MemoryBase, Restore, Shape,
    Start,
};
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::host::{Host, remove_folder};

/// A machine that is to become a base: it has no instance, no data and no link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseLaunch {
    /// Revision of the image.
    pub revision: String,
    /// vCPUs, memory, disk of the machines that will begin from it.
    pub resources: Resources,
    /// The tenant's network, for a tap that stays down: the guest's network device depends on there being one.
    pub network: TenantNetwork,
}

/// The bases that VMMs can map, and the machines that are to become some.
#[derive(Default)]
pub(crate) struct Bases {
    attached: Mutex<HashMap<String, Arc<BlockDevice>>>,
    /// A base gets one device, also when several machines want it at once.
    attaching: Mutex<()>,
    making: Mutex<HashMap<String, Arc<Making>>>,
}

struct Making {
    machine: Box<dyn Machine>,
    spec: MachineSpec,
}

impl Bases {
    fn attached(&self) -> MutexGuard<'_, HashMap<String, Arc<BlockDevice>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uids of machines that are to become bases.
    pub(crate) fn uids(&self) -> Vec<u32> {
        self.making().values().map(|making| making.spec.uid).collect()
    }

    fn making(&self) -> MutexGuard<'_, HashMap<String, Arc<Making>>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// Starts a machine that is to become a base, and gives its name.
    pub(crate) async fn start_base(&self, launch: BaseLaunch) -> Result<String, HostError> {
        let nameless = self.nameless("base");
        let (name, tap, wanted) = (nameless.name.clone(), nameless.tap, launch.clone());
        let data_bytes = mvm_image::disk::data_disk_bytes(launch.resources.data_disk_mib);
        let spec = self
            .blocking(move |inner| {
                let mut spec = inner.nameless_spec(&nameless, &wanted.revision, wanted.resources)?;
                // It stands in for the disk that a machine of this base has, and is never opened by the guest.
                spec.data = spec.run_dir.join("stand-in.img");
                std::fs::create_dir_all(&spec.run_dir).map_err(HostError::at(&spec.run_dir))?;
                let disk = std::fs::File::create(&spec.data).and_then(|disk| disk.set_len(data_bytes));
                disk.map_err(HostError::at(&spec.data)).map(|()| spec)
            })
            .await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        let network = launch.network;
        let tap = self.blocking(move |inner| Ok(inner.networks.open_waiting_tap(&network, tap)?)).await?;
        let machine = match engine.launch(&spec, Some(tap), Start::Cold).await {
            Ok(machine) => machine,
            Err(error) => {
                remove_folder(&spec.run_dir)?;
                return Err(error.into());
            }
        };
        self.inner.bases.making().insert(name.clone(), Arc::new(Making { machine, spec }));
        Ok(name)
    }

    fn making(&self, name: &str) -> Result<Arc<Making>, HostError> {
        let making = self.inner.bases.making().get(name).cloned();
        making.ok_or_else(|| HostError::NoBaseMachine(name.to_owned()))
    }

    pub(crate) async fn let_base_run(&self, name: &str) -> Result<(), HostError> {
        Ok(self.making(name)?.machine.cont().await?)
    }

    /// Where the control channel of a machine is that is to become a base.
    pub fn base_socket(&self, name: &str) -> Option<std::path::PathBuf> {
        Some(self.making(name).ok()?.machine.control_socket().to_owned())
    }

    /// Makes a base of a machine that was started for it, and ends the machine.
    pub(crate) async fn write_base(&self, name: &str, facts: BaseFacts) -> Result<BaseInfo, HostError> {
        let making = self.making(name)?;
        let folder = self.paths().bases();
        let written = async {
            making.machine.pause().await?;
            Ok::<_, HostError>(making.machine.make_base(&folder, facts).await?)
        };
        let written = written.await;
        self.end_base(name).await?;
        written
    }

    /// Ends a machine that was to become a base.
    pub(crate) async fn end_base(&self, name: &str) -> Result<(), HostError> {
        let Some(making) = self.inner.bases.making().remove(name) else { return Ok(()) };
        making.machine.kill().await?;
        remove_folder(&making.spec.run_dir)
    }

    pub(crate) async fn remove_base(&self, id: String) -> Result<(), HostError> {
        // One that waits for a machine of it would be the last to map it.
        self.end_spares_of_base(&id).await?;
        self.inner.bases.attached().remove(&id);
        self.blocking(move |inner| Ok(mvm_vmm::remove_kept(&inner.paths.base(&id))?)).await
    }

    /// The shape that a machine of this revision with these resources would have now.
    pub(crate) async fn shape_of(&self, revision: String, resources: Resources) -> Result<Shape, HostError> {
        let nameless = self.nameless("shape");
        let spec = self.blocking(move |inner| inner.nameless_spec(&nameless, &revision, resources)).await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        Ok(engine.shape_with(&spec, mvm_image::disk::data_disk_bytes(resources.data_disk_mib))?)
    }
}

impl crate::host::Inner {
    /// A base's memory, where VMMs can map it. Checked in full when that is done for the first time.
    pub(crate) fn map_base(&self, id: &str) -> Result<MemoryBase, HostError> {
        let folder = self.paths.base(id);
        let mapped = |device: &BlockDevice| MemoryBase::Shared {
            id: id.to_owned(),
            folder: folder.clone(),
            node: device.node().to_owned(),
        };
        if let Some(device) = self.bases.attached().get(id) {
            return Ok(mapped(device));
        }
        let _one_at_a_time = self.bases.attaching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = self.bases.attached().get(id) {
            return Ok(mapped(device));
        }
        Base::verify(&folder, id)?;
        let device = Arc::new(BlockDevice::attach(&folder.join("memory"))?);
        if self.engines.accel() == Some(Accel::Kvm) && !device.is_protected()? {
            return Err(HostError::BasesUnprotected);
        }
        let base = mapped(&device);
        self.bases.attached().insert(id.to_owned(), device);
        Ok(base)
    }

    /// A base that is to be cloned by a machine of this shape.
    pub(crate) fn open_base(&self, expected: &mvm_vmm::BaseExpected) -> Result<Restore, HostError> {
        let folder = self.paths.base(&expected.id);
        Ok(Base::open(&folder, expected).map_err(mvm_vmm::Error::from)?.restore())
    }
}
