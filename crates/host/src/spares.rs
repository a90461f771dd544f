//! Spares: VMMs of a pool started ahead, with its base mapped, that wait to become the next machine that starts or wakes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mvm_model::{PoolId, Resources, TenantId};
use mvm_network::TenantNetwork;
use mvm_vmm::{BlockDevice, Engine, Machine, MachineSpec, Start};
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::host::{Host, HostEvent, remove_folder};
use crate::nameless::Nameless;

/// Which spares a pool is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpareOrder {
    /// The tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// The tenant's network.
    pub network: TenantNetwork,
    /// Revision of the image.
    pub revision: String,
    /// vCPUs, memory, disk.
    pub resources: Resources,
    /// The base that they map; of no matter where there are to be none.
    pub base: String,
    /// How many.
    pub count: u32,
}

/// The spares there are.
#[derive(Default)]
pub(crate) struct Spares {
    waiting: Mutex<Vec<Spare>>,
    /// Spares are started one after another: nobody waits for them.
    keeping: tokio::sync::Mutex<()>,
}

/// A VMM that waits.
pub(crate) struct Spare {
    tenant: TenantId,
    pool: PoolId,
    fit: Fit,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) spec: MachineSpec,
    pub(crate) place: Nameless,
    /// What it maps.
    _base: Arc<BlockDevice>,
}

/// What a machine must have in common with a spare to be taken over by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fit {
    pub(crate) base: String,
    /// SHA-256 of its binary: one from before QEMU was replaced is of no use.
    pub(crate) engine: String,
    pub(crate) revision: String,
    pub(crate) vcpus: u32,
    pub(crate) mem_mib: u32,
    pub(crate) data_bytes: u64,
}

impl Fit {
    fn of(order: &SpareOrder, engine: String) -> Self {
        Self {
            base: order.base.clone(),
            engine,
            revision: order.revision.clone(),
            vcpus: order.resources.vcpus,
            mem_mib: order.resources.mem_mib,
            data_bytes: mvm_image::disk::data_disk_bytes(order.resources.data_disk_mib),
        }
    }
}

impl Spare {
    fn is_of(&self, tenant: &TenantId, pool: &PoolId) -> bool {
        self.tenant == *tenant && self.pool == *pool
    }

    fn has_ended(&self) -> bool {
        self.machine.ended().borrow().is_some()
    }
}

impl Spares {
    pub(crate) fn waiting(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that fits a machine of this pool, for good.
    pub(crate) fn take(&self, tenant: &TenantId, pool: &PoolId, fit: &Fit) -> Option<Spare> {
        let mut waiting = self.waiting();
        let fits = |spare: &Spare| spare.is_of(tenant, pool) && spare.fit == *fit && !spare.has_ended();
        let found = waiting.iter().position(fits)?;
        Some(waiting.remove(found))
    }
}

impl Host {
    /// Starts and ends spares until the pool has those that are ordered. Gives how many wait.
    pub(crate) async fn keep_spares(&self, order: SpareOrder) -> Result<u32, HostError> {
        let _one_at_a_time = self.inner.spares.keeping.lock().await;
        let wanted = Fit::of(&order, self.inner.engines.sha256().await?);
        let count = usize::try_from(order.count).unwrap_or(usize::MAX);
        let unwanted: Vec<Spare> = {
            let mut kept = 0;
            let mut keep = |spare: &Spare| {
                let fits = spare.fit == wanted && !spare.has_ended() && kept < count;
                kept += usize::from(fits);
                fits
            };
            let mut waiting = self.inner.spares.waiting();
            waiting.extract_if(.., |spare| spare.is_of(&order.tenant, &order.pool) && !keep(spare)).collect()
        };
        end_all(unwanted).await?;
        let of_pool = |host: &Self| {
            host.inner.spares.waiting().iter().filter(|s| s.is_of(&order.tenant, &order.pool)).count()
        };
        while of_pool(self) < count {
            let closing = self.inner.closing.read().await;
            if *closing {
                return Err(HostError::Closing);
            }
            let spare = self.start_spare(&order, wanted.clone()).await?;
            self.tell_end(&spare);
            let pid = spare.machine.identity().pid;
            tracing::info!(pid, tenant = %order.tenant, pool = %order.pool, "a spare waits");
            self.inner.spares.waiting().push(spare);
        }
        Ok(u32::try_from(of_pool(self)).unwrap_or(u32::MAX))
    }

    async fn start_spare(&self, order: &SpareOrder, fit: Fit) -> Result<Spare, HostError> {
        let place = self.nameless("spare")?;
        let folder = place.run_dir.clone();
        let started = self.start_spare_in(place, order, fit).await;
        if started.is_err() {
            remove_folder(&folder)?;
        }
        started
    }

    async fn start_spare_in(
        &self,
        place: Nameless,
        order: &SpareOrder,
        fit: Fit,
    ) -> Result<Spare, HostError> {
        let (tap, wanted) = (place.tap, order.clone());
        let (place, spec, base) = self
            .blocking(move |inner| {
                let mut spec = inner.nameless_spec(&place, &wanted.revision, wanted.resources)?;
                let mapped = inner.map_base(&wanted.base)?;
                spec.memory = mapped.memory;
                Ok((place, spec, mapped.device))
            })
            .await?;
        let engine = self.inner.engines.current(&spec.kernel).await?;
        let fit = Fit { engine: engine.detection().sha256.clone(), ..fit };
        let network = order.network;
        let device = self.blocking(move |inner| Ok(inner.networks.open_waiting_tap(&network, tap)?)).await?;
        let start = Start::Spare { data_bytes: fit.data_bytes };
        let machine = engine.launch(&spec, Some(device), start).await?;
        let (tenant, pool) = (order.tenant.clone(), order.pool.clone());
        Ok(Spare { tenant, pool, fit, machine, spec, place, _base: base })
    }

    /// Tells the agent when a spare ends that still waits.
    fn tell_end(&self, spare: &Spare) {
        let (tenant, pool, mut ended) = (spare.tenant.clone(), spare.pool.clone(), spare.machine.ended());
        let (host, name) = (Arc::downgrade(&self.inner), spare.spec.name.clone());
        tokio::spawn(async move {
            let _ = ended.wait_for(Option::is_some).await;
            let Some(inner) = host.upgrade() else { return };
            if inner.spares.waiting().iter().any(|spare| spare.spec.name == name) {
                // Without a receiver the agent is ending.
                let _ = inner.events.send(HostEvent::SpareEnded { tenant, pool });
            }
        });
    }

    /// Ends the spares of a tenant, or all.
    pub(crate) async fn end_spares(&self, tenant: Option<TenantId>) -> Result<(), HostError> {
        self.end_those(|spare| tenant.as_ref().is_none_or(|tenant| spare.tenant == *tenant)).await
    }

    /// Ends the spares that map a base.
    pub(crate) async fn end_spares_of_base(&self, base: &str) -> Result<(), HostError> {
        self.end_those(|spare| spare.fit.base == base).await
    }

    async fn end_those(&self, which: impl Fn(&Spare) -> bool) -> Result<(), HostError> {
        let _one_at_a_time = self.inner.spares.keeping.lock().await;
        let ending: Vec<Spare> = self.inner.spares.waiting().extract_if(.., |spare| which(spare)).collect();
        end_all(ending).await
    }

    /// Ends what was started ahead, also for bases. From now on nothing is.
    pub(crate) async fn close_all(&self) -> Result<(), HostError> {
        *self.inner.closing.write().await = true;
        let (spares, bases) = tokio::join!(self.end_spares(None), self.end_bases());
        spares.and(bases)
    }
}

/// Ends all of them, and tells the first failure.
async fn end_all(spares: Vec<Spare>) -> Result<(), HostError> {
    let mut ended = Ok(());
    for spare in spares {
        ended = ended.and(end(spare).await);
    }
    ended
}

/// Ends a spare. Its tap goes with it.
async fn end(spare: Spare) -> Result<(), HostError> {
    spare.machine.kill().await?;
    remove_folder(&spare.spec.run_dir)
}
