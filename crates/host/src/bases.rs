//! Bases: making them of a machine that is nobody yet, and keeping them where VMMs can map them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mvm_model::Resources;
use mvm_network::TenantNetwork;
use mvm_vmm::{
    Accel, Base, BaseFacts, BaseInfo, BlockDevice, Engine, Machine, MachineSpec, MemoryBase, Refusal,
    Restore, Shape, Start,
};
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::host::{Host, remove_folder};
use crate::nameless::Nameless;

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
    known: Mutex<HashMap<String, Known>>,
    /// Whether this kernel was found not to protect them: no base need be read through to be refused again.
    unprotected: AtomicBool,
    making: Mutex<HashMap<String, Arc<Making>>>,
}

/// What is known of a base. Its lock is held while a device is made of it and while it is removed: it gets one device, also when
/// several machines want it at once, and none when it is gone.
type Known = Arc<Mutex<Content>>;

/// What is known of a base's content.
#[derive(Default)]
enum Content {
    /// Nothing: it is read through before it is mapped.
    #[default]
    Unread,
    /// It was whole when it was read through, and is mapped by this device.
    Whole(Arc<BlockDevice>),
    /// S8: for as long as it is there, nobody who comes maps it any more. Who maps it already, goes on.
    Damaged(Arc<Refusal>),
}

/// A base for VMMs to map: for as long as this is kept.
pub(crate) struct Mapped {
    pub(crate) memory: MemoryBase,
    pub(crate) device: Arc<BlockDevice>,
}

struct Making {
    machine: Box<dyn Machine>,
    spec: MachineSpec,
    _place: Nameless,
}

impl Bases {
    fn all_known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, id: &str) -> Known {
        Arc::clone(self.all_known().entry(id.to_owned()).or_default())
    }

    /// Has a base mapped by nobody any more who comes from now on.
    fn condemn(&self, id: &str, refusal: Arc<Refusal>) {
        // One that nobody has mapped yet is read through before it is.
        let Some(known) = self.all_known().get(id).cloned() else { return };
        *known.lock().unwrap_or_else(PoisonError::into_inner) = Content::Damaged(refusal);
    }

    fn making(&self) -> MutexGuard<'_, HashMap<String, Arc<Making>>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// Starts a machine that is to become a base, and gives its name.
    pub(crate) async fn start_base(&self, launch: BaseLaunch) -> Result<String, HostError> {
        let closing = self.inner.closing.read().await;
        if *closing {
            return Err(HostError::Closing);
        }
        let place = self.nameless("base")?;
        let (name, folder) = (place.name.clone(), place.run_dir.clone());
        match self.start_base_in(place, launch).await {
            Ok(making) => {
                self.inner.bases.making().insert(name.clone(), Arc::new(making));
                Ok(name)
            }
            Err(error) => {
                remove_folder(&folder)?;
                Err(error)
            }
        }
    }

    async fn start_base_in(&self, place: Nameless, launch: BaseLaunch) -> Result<Making, HostError> {
        let (tap, wanted) = (place.tap, launch.clone());
        let data_bytes = mvm_image::disk::data_disk_bytes(launch.resources.data_disk_mib);
        let (place, spec) = self
            .blocking(move |inner| {
                let mut spec = inner.nameless_spec(&place, &wanted.revision, wanted.resources)?;
                // It stands in for the disk that a machine of this base has, and is never opened by the guest.
                spec.data = spec.run_dir.join("stand-in.img");
                std::fs::create_dir_all(&spec.run_dir).map_err(HostError::at(&spec.run_dir))?;
                let disk = std::fs::File::create(&spec.data).and_then(|disk| disk.set_len(data_bytes));
                disk.map_err(HostError::at(&spec.data)).map(|()| (place, spec))
            })
            .await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        let network = launch.network;
        let tap = self.blocking(move |inner| Ok(inner.networks.open_waiting_tap(&network, tap)?)).await?;
        let machine = engine.launch(&spec, Some(tap), Start::Cold).await?;
        Ok(Making { machine, spec, _place: place })
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

    /// Ends all of them.
    pub(crate) async fn end_bases(&self) -> Result<(), HostError> {
        let names: Vec<String> = self.inner.bases.making().keys().cloned().collect();
        let mut ended = Ok(());
        for name in names {
            ended = ended.and(self.end_base(&name).await);
        }
        ended
    }

    pub(crate) async fn remove_base(&self, id: String) -> Result<(), HostError> {
        // One that waits for a machine of it would be the last to map it.
        self.end_spares_of_base(&id).await?;
        self.blocking(move |inner| {
            let known = inner.bases.known(&id);
            let mut content = known.lock().unwrap_or_else(PoisonError::into_inner);
            *content = Content::Unread;
            mvm_vmm::remove_kept(&inner.paths.base(&id))?;
            // Who waited for it meanwhile finds no files.
            inner.bases.all_known().remove(&id);
            Ok(())
        })
        .await
    }

    /// The shape that a machine of this revision with these resources would have now.
    pub(crate) async fn shape_of(&self, revision: String, resources: Resources) -> Result<Shape, HostError> {
        let nameless = self.nameless("shape")?;
        let spec = self.blocking(move |inner| inner.nameless_spec(&nameless, &revision, resources)).await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        Ok(engine.shape_with(&spec, mvm_image::disk::data_disk_bytes(resources.data_disk_mib))?)
    }
}

impl crate::host::Inner {
    /// A base's memory, where VMMs can map it. Checked in full when that is done for the first time.
    pub(crate) fn map_base(&self, id: &str) -> Result<Mapped, HostError> {
        let known = self.bases.known(id);
        let mut content = known.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match &*content {
            Content::Whole(device) => Arc::clone(device),
            Content::Damaged(refusal) => return Err(HostError::DamagedBase(Arc::clone(refusal))),
            Content::Unread => {
                let device = Arc::new(self.attach_base(id)?);
                *content = Content::Whole(Arc::clone(&device));
                device
            }
        };
        let folder = self.paths.base(id);
        let memory = MemoryBase::Shared { id: id.to_owned(), folder, node: device.node().to_owned() };
        Ok(Mapped { memory, device })
    }

    fn attach_base(&self, id: &str) -> Result<BlockDevice, HostError> {
        if self.bases.unprotected.load(Ordering::Relaxed) {
            return Err(HostError::BasesUnprotected);
        }
        let folder = self.paths.base(id);
        Base::verify(&folder, id)?;
        let device = BlockDevice::attach(&folder.join("memory"))?;
        // In emulation a VMM's filter does it.
        if self.engines.accel() != Some(Accel::Tcg) && !device.is_protected()? {
            self.bases.unprotected.store(true, Ordering::Relaxed);
            return Err(HostError::BasesUnprotected);
        }
        Ok(device)
    }

    /// Reads a base through, also one that is mapped.
    pub(crate) fn check_base(&self, id: &str) -> Result<(), HostError> {
        match Base::verify(&self.paths.base(id), id) {
            Err(mvm_vmm::Error::Refused(refusal)) => {
                let refusal = Arc::new(refusal);
                self.bases.condemn(id, Arc::clone(&refusal));
                Err(HostError::DamagedBase(refusal))
            }
            checked => Ok(checked?),
        }
    }

    /// A base that is to be cloned by a machine of this shape.
    pub(crate) fn open_base(&self, expected: &mvm_vmm::BaseExpected) -> Result<Restore, HostError> {
        let folder = self.paths.base(&expected.id);
        Ok(Base::open(&folder, expected).map_err(mvm_vmm::Error::from)?.restore())
    }
}
