//! `pool scale`: a pool is brought to its counts, as a person's command.
//!
//! What is wanted, and rows and disks of new instances, become true in one commit; before it everything can be refused
//! and nothing is done. Acts on machines follow, many at once. New instances have no goal of their own: where the
//! agent ends or the client goes before their turn, they are `ready`, a message starts them, and so does scaling again.

mod carry_out;
mod limits;
pub mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use mvm_model::quota::Usage;
use mvm_model::{DesiredCounts, InstanceId, InstanceState, PoolId, PoolSpec, TenantId};
use mvm_protocol::api::{ApiError, ErrorCode, ScaleAct, ScaleEvent, ScaleRequest, Scaled};
use tokio::sync::mpsc::UnboundedSender;

use crate::agent::Agent;
use crate::machine::Machine;
use crate::store::{self, Audit, InstanceRow, NewInstance, PoolRow, TenantRow};
use crate::usage::{self, count_states};
use crate::{bases, create};
use carry_out::Work;
use limits::Demand;
pub use limits::Reserve;
use plan::Candidate;

/// The most that a count may be: no subnet has more addresses.
const MOST: u32 = 65_535;

/// Where progress goes. When the other end is gone, nothing more is begun.
pub type Events = UnboundedSender<ScaleEvent>;

/// Brings a pool to its counts. The last event is `Done` or `Failed`.
pub async fn scale(agent: Arc<Agent>, tenant: TenantId, pool: PoolId, request: ScaleRequest, events: Events) {
    let address = format!("{tenant}/{pool}");
    let last = match bring(&agent, &tenant, &pool, request, &events).await {
        Ok(scaled) => ScaleEvent::Done(scaled),
        Err(error) => ScaleEvent::Failed { error },
    };
    if events.send(last).is_err() {
        tracing::info!(pool = %address, "whoever scaled it went away; no more acts were begun");
    }
}

async fn bring(
    agent: &Arc<Agent>,
    tenant: &TenantId,
    pool: &PoolId,
    request: ScaleRequest,
    events: &Events,
) -> Result<Scaled, ApiError> {
    let _changing = agent.changing.lock().await;
    let scaling = Scaling::look(agent, tenant, pool, request).await?;
    let surplus = scaling.surplus(request.destroy)?;
    let new = scaling.new_instances().await?;
    let acts = scaling.acts(&surplus, &new);
    let room = scaling.admit(&surplus, &new, &acts)?;
    let memory = usage::memory().map_err(failed)?;
    let reserve = Reserve::of(memory).map_err(|why| ApiError::new(ErrorCode::Invalid, why))?;
    let changed = scaling.desired != scaling.pool.spec.desired
        || !acts.is_empty()
        || !new.is_empty()
        || !surplus.is_empty();
    if !changed {
        return Ok(scaling.scaled(false, 0));
    }
    if events.is_closed() {
        return Err(failed("the scaling was abandoned before anything was made"));
    }
    scaling.commit(&new, &surplus).await?;
    scaling.add_machines(&new).await?;
    let work = Work {
        agent,
        address: &scaling.address,
        mem_mib: scaling.pool.spec.resources.mem_mib,
        reserve,
        room: room as usize,
        events,
    };
    let destroyed = surplus.iter().map(|id| (*id, ScaleAct::Destroy));
    let all: Vec<(InstanceId, ScaleAct)> = destroyed.chain(acts).collect();
    let _ = events.send(ScaleEvent::Planned {
        created: new.len(),
        destroys: surplus.iter().map(|id| scaling.address_of(*id)).collect(),
        acts: all.len(),
    });
    if all.iter().any(|(_, act)| matches!(act, ScaleAct::Run | ScaleAct::Prepare)) {
        let outcome = bases::ensure_in_time(agent, tenant, pool).await;
        tracing::debug!(%tenant, %pool, outcome, "before its machines begin");
    }
    let mut scaled = scaling.scaled(true, new.len());
    work.carry_out(all, &mut scaled).await;
    scaled.instances = count_states(&scaling.machines());
    Ok(scaled)
}

/// A pool as it is, and what is wanted of it.
struct Scaling<'a> {
    agent: &'a Arc<Agent>,
    tenant: TenantRow,
    pool: PoolRow,
    /// All pools of the tenant.
    pools: Vec<PoolRow>,
    /// All instances of the tenant.
    instances: Vec<InstanceRow>,
    desired: DesiredCounts,
    candidates: Vec<Candidate>,
    address: String,
}

impl<'a> Scaling<'a> {
    async fn look(
        agent: &'a Arc<Agent>,
        tenant: &TenantId,
        pool: &PoolId,
        request: ScaleRequest,
    ) -> Result<Self, ApiError> {
        let tenant_row = agent.tenant(tenant).await?;
        let pool_row = agent.pool(tenant, pool).await?;
        if tenant_row.doomed {
            return Err(refused(format!("tenant {tenant} is being destroyed")));
        }
        if pool_row.doomed {
            return Err(refused(format!("pool {tenant}/{pool} is being destroyed")));
        }
        let machines = agent.machines(|m| m.place.tenant == *tenant && m.place.pool == *pool);
        // What is being done to them is waited for; one that is destroyed meanwhile is not counted.
        futures::future::join_all(machines.iter().map(Machine::settled)).await;
        let id = tenant.clone();
        let (pools, instances) = agent
            .store
            .read(move |tx| Ok((store::pools(tx, Some(&id))?, store::instances(tx, Some(&id), None)?)))
            .await?;
        let mut desired = pool_row.spec.desired;
        for (count, wanted) in
            [(&mut desired.running, request.running), (&mut desired.sleeping, request.sleeping)]
        {
            *count = wanted.unwrap_or(*count);
            if *count > MOST {
                return Err(ApiError::new(
                    ErrorCode::Invalid,
                    format!("a pool has at most {MOST} instances"),
                ));
            }
        }
        let alive = machines.iter().filter(|machine| agent.machine(machine.id).is_some());
        let candidates = alive.map(|m| Candidate { id: m.id, state: m.state(), holds: m.holds() }).collect();
        let address = format!("{tenant}/{pool}");
        Ok(Self { agent, tenant: tenant_row, pool: pool_row, pools, instances, desired, candidates, address })
    }

    fn address_of(&self, id: InstanceId) -> String {
        format!("{}/{id}", self.address)
    }

    fn machines(&self) -> Vec<Machine> {
        self.agent.machines(|m| m.place.tenant == self.tenant.id && m.place.pool == self.pool.spec.id)
    }

    /// Those that are too many; refused by name where they may not be destroyed.
    fn surplus(&self, destroy: bool) -> Result<Vec<InstanceId>, ApiError> {
        let surplus = plan::surplus(&self.candidates, self.desired.total());
        if destroy || surplus.is_empty() {
            return Ok(surplus);
        }
        let names: Vec<String> = surplus.iter().map(|id| self.address_of(*id)).collect();
        Err(refused(format!(
            "{} has {} instances and {} are wanted; nothing was done. With --destroy these go, their data with them: {}",
            self.address,
            self.candidates.len(),
            self.desired.total(),
            names.join(", ")
        )))
    }

    /// Those that are missing. Nothing is made of them yet.
    async fn new_instances(&self) -> Result<Vec<NewInstance>, ApiError> {
        let missing = (self.desired.total() as usize).saturating_sub(self.candidates.len());
        let wanted = vec![(self.pool.spec.id.clone(), None); missing];
        create::instances(self.agent, &self.tenant, &self.instances, wanted).await
    }

    fn acts(&self, surplus: &[InstanceId], new: &[NewInstance]) -> Vec<(InstanceId, ScaleAct)> {
        let staying = self.staying(surplus).copied();
        let new = new.iter().map(|new| Candidate { id: new.id, state: InstanceState::Ready, holds: 0 });
        plan::acts(&staying.chain(new).collect::<Vec<_>>(), &self.desired)
    }

    fn staying<'s>(&'s self, surplus: &'s [InstanceId]) -> impl Iterator<Item = &'s Candidate> {
        self.candidates.iter().filter(|candidate| !surplus.contains(&candidate.id))
    }

    /// Whether quotas hold it. What only takes away is not refused: it may be what makes them hold again.
    fn admit(
        &self,
        surplus: &[InstanceId],
        new: &[NewInstance],
        acts: &[(InstanceId, ScaleAct)],
    ) -> Result<u32, ApiError> {
        let count = |wanted: ScaleAct| narrow(acts.iter().filter(|(_, act)| *act == wanted).count());
        if new.is_empty() && count(ScaleAct::Run) + count(ScaleAct::Prepare) == 0 {
            return Ok(0);
        }
        let running = self.staying(surplus).filter(|candidate| candidate.state.has_vmm()).count();
        let wanted: Vec<PoolSpec> = self.pools.iter().map(|pool| self.wanted_of(pool)).collect();
        let have: Vec<u32> = self.pools.iter().map(|pool| self.will_have(pool)).collect();
        let demand = Demand {
            pools: &wanted,
            have: &have,
            elsewhere: self.running_elsewhere(),
            resources: self.pool.spec.resources,
            running: self.desired.running,
            running_now: narrow(running).saturating_sub(count(ScaleAct::Sleep)),
            prepared: count(ScaleAct::Prepare),
        };
        demand.admit(&self.tenant.quotas).map_err(refused)
    }

    fn wanted_of(&self, pool: &PoolRow) -> PoolSpec {
        let mut spec = pool.spec.clone();
        if spec.id == self.pool.spec.id {
            spec.desired = self.desired;
        }
        spec
    }

    fn will_have(&self, pool: &PoolRow) -> u32 {
        if pool.spec.id == self.pool.spec.id {
            return self.desired.total();
        }
        narrow(self.instances.iter().filter(|instance| instance.place.pool == pool.spec.id).count())
    }

    /// What machines of the tenant's other pools use that run now.
    fn running_elsewhere(&self) -> Usage {
        let others = self
            .instances
            .iter()
            .filter(|instance| instance.place.pool != self.pool.spec.id && instance.state.has_vmm());
        let mut usage = Usage::default();
        for resources in others.filter_map(|instance| Some(instance.launched.as_ref()?.resources)) {
            usage.running += 1;
            usage.vcpus += resources.vcpus;
            usage.mem_mib += u64::from(resources.mem_mib);
        }
        usage
    }

    /// Makes what is wanted true. Where that fails, nothing is left of it.
    async fn commit(&self, new: &[NewInstance], surplus: &[InstanceId]) -> Result<(), ApiError> {
        let mib = self.pool.spec.resources.data_disk_mib;
        let disks = new.iter().map(|instance| (instance.id, mib)).collect();
        let committed = match create::make_disks(self.agent, disks).await {
            Ok(()) => self.commit_rows(new, surplus).await,
            Err(error) => Err(error),
        };
        if committed.is_err() {
            create::remove_disks(self.agent, new.iter().map(|instance| instance.id).collect()).await;
        }
        committed
    }

    async fn commit_rows(&self, new: &[NewInstance], surplus: &[InstanceId]) -> Result<(), ApiError> {
        let (before, desired) = (self.pool.spec.desired, self.desired);
        let detail = format!(
            "running {} to {}, sleeping {} to {}; {} created, {} too many",
            before.running,
            desired.running,
            before.sleeping,
            desired.sleeping,
            new.len(),
            surplus.len()
        );
        let audit = Audit::new(self.address.clone(), "PoolScaled", detail);
        let (tenant, pool, new) = (self.tenant.id.clone(), self.pool.spec.id.clone(), new.to_vec());
        let written = self.agent.store.write(move |tx| {
            // Read anew: only the counts change here.
            let mut row = store::pool(tx, &tenant, &pool)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            row.spec.desired = desired;
            row.save(tx)?;
            new.iter().try_for_each(|instance| instance.insert(tx))?;
            audit.append(tx, &tenant)
        });
        Ok(written.await?)
    }

    async fn add_machines(&self, new: &[NewInstance]) -> Result<(), ApiError> {
        let ids: BTreeSet<InstanceId> = new.iter().map(|instance| instance.id).collect();
        let (tenant, pool) = (self.tenant.id.clone(), self.pool.spec.id.clone());
        let rows = self.agent.store.read(move |tx| store::instances(tx, Some(&tenant), Some(&pool))).await?;
        for row in rows.into_iter().filter(|row| ids.contains(&row.id)) {
            let ip = self.tenant.subnet.machine_ip(row.place.offset);
            let ip =
                ip.ok_or_else(|| failed(format!("{} has no address in {}", row.id, self.tenant.subnet)))?;
            self.agent.add_machine(&self.tenant, row, ip);
        }
        Ok(())
    }

    fn scaled(&self, changed: bool, created: usize) -> Scaled {
        Scaled {
            pool: self.address.clone(),
            desired: self.desired,
            instances: count_states(&self.machines()),
            changed,
            created,
            outcomes: Vec::new(),
            stopped: None,
            not_begun: Vec::new(),
        }
    }
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn refused(message: impl ToString) -> ApiError {
    ApiError::new(ErrorCode::Refused, message)
}

fn failed(message: impl ToString) -> ApiError {
    ApiError::new(ErrorCode::Failed, message)
}
