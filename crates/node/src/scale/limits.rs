//! What keeps machines from being started: quotas, before anything is done; the host's memory, before each start.

use mvm_model::quota::{QuotaExceeded, Usage};
use mvm_model::{PoolSpec, Quotas, Resources};

use crate::usage::Memory;

/// How much of the host's memory is kept free, in MiB: overrides what [`Reserve::of`] gives.
const RESERVE_VARIABLE: &str = "MVM_MEMORY_RESERVE_MIB";
/// At least so much is kept free, in MiB.
const LEAST_RESERVE: u64 = 256;
/// Of a large host's memory so small a part is kept free.
const RESERVE_PART: u64 = 20;

/// What a tenant has and wants, for its quotas.
#[derive(Debug)]
pub struct Demand<'a> {
    /// What is wanted of its pools, the new counts of this one included.
    pub pools: &'a [PoolSpec],
    /// Instances there are of each pool, in the same order; those that were too many are gone.
    pub have: &'a [u32],
    /// What machines of its other pools use that run now, whatever is wanted of them.
    pub elsewhere: Usage,
    /// What one machine of this pool has.
    pub resources: Resources,
    /// How many of this pool will run.
    pub running: u32,
    /// How many of them run already.
    pub running_now: u32,
    /// How many are started only to be put to sleep.
    pub prepared: u32,
}

impl Demand<'_> {
    /// Whether quotas hold what is wanted; how many may be started at once only to be put to sleep.
    ///
    /// # Errors
    /// The quota that is too small, in words.
    pub fn admit(&self, quotas: &Quotas) -> Result<u32, String> {
        quotas.admit(&self.usage()).map_err(|exceeded| exceeded.to_string())?;
        let mut room = 0;
        while room < self.prepared {
            match quotas.admit(&self.with(self.running_now + room + 1)) {
                Ok(()) => room += 1,
                Err(exceeded) if room == 0 => return Err(once(&exceeded)),
                Err(_) => break,
            }
        }
        Ok(room)
    }

    /// What is wanted, or what there will be where that is more.
    fn usage(&self) -> Usage {
        let mut usage = Usage::of_pools(self.pools);
        for (pool, have) in self.pools.iter().zip(self.have) {
            usage.instances_per_pool = usage.instances_per_pool.max(*have);
            let too_many = have.saturating_sub(pool.desired.total());
            usage.disk_mib += u64::from(too_many) * pool.resources.data_disk_mib;
        }
        let running = self.with(self.running);
        usage.vcpus = usage.vcpus.max(running.vcpus);
        usage.mem_mib = usage.mem_mib.max(running.mem_mib);
        usage.running = usage.running.max(running.running);
        usage
    }

    /// What runs elsewhere, and so many of this pool.
    fn with(&self, machines: u32) -> Usage {
        Usage {
            running: self.elsewhere.running.saturating_add(machines),
            vcpus: self.elsewhere.vcpus.saturating_add(machines.saturating_mul(self.resources.vcpus)),
            mem_mib: self.elsewhere.mem_mib + u64::from(machines) * u64::from(self.resources.mem_mib),
            ..Usage::default()
        }
    }
}

fn once(exceeded: &QuotaExceeded) -> String {
    format!("{exceeded}; an instance that is to sleep runs once before")
}

/// How much of the host's memory is kept free.
#[derive(Debug, Clone, Copy)]
pub struct Reserve(u64);

impl Reserve {
    /// Of a host with so much memory: a twentieth, at least 256 MiB, or what the environment says.
    ///
    /// # Errors
    /// Where the environment says no number.
    pub fn of(memory: Memory) -> Result<Self, String> {
        match std::env::var(RESERVE_VARIABLE) {
            Err(_) => Ok(Self((memory.total_mib() / RESERVE_PART).max(LEAST_RESERVE))),
            Ok(text) => text.parse().map(Self).map_err(|_| {
                format!(
                    "the agent's {RESERVE_VARIABLE} is a number of MiB, not `{text}`: start it with another"
                )
            }),
        }
    }

    /// Why the host does not hold another machine of this size.
    pub fn shortage(self, memory: Memory, mem_mib: u32) -> Option<String> {
        let (available, Self(reserve)) = (memory.available_mib(), self);
        (available < u64::from(mem_mib).saturating_add(reserve)).then(|| {
            format!(
                "the host has {available} MiB of memory available; a machine takes up to {mem_mib} MiB, and \
                 {reserve} MiB are kept free"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use mvm_model::{DesiredCounts, Egress, Profile, RestartPolicy, Role, RuntimePolicy};

    use super::*;

    fn pool(running: u32, sleeping: u32) -> PoolSpec {
        PoolSpec {
            id: "workers".parse().unwrap(),
            role: Role::Worker,
            profile: Profile::default(),
            image: "minimal".to_owned(),
            resources: Resources { vcpus: 1, mem_mib: 256, data_disk_mib: 1024 },
            desired: DesiredCounts { running, warm: 0, sleeping },
            egress: Egress::default(),
            secret_scopes: None,
            runtime_policy: RuntimePolicy::default(),
            restart: RestartPolicy::OnDemand,
            sleep_after_seconds: PoolSpec::default_sleep_after_seconds(),
            snapshot_compression: mvm_model::SnapshotCompression::None,
            spares: 0,
        }
    }

    fn demand(pools: &[PoolSpec], running_now: u32, prepared: u32) -> Demand<'_> {
        let DesiredCounts { running, .. } = pools[0].desired;
        let resources = pools[0].resources;
        let elsewhere = Usage::default();
        Demand { pools, have: &[0], elsewhere, resources, running, running_now, prepared }
    }

    #[test]
    fn what_is_wanted_counts_and_so_does_what_runs_elsewhere() {
        let quotas = Quotas { max_running: Some(4), ..Quotas::default() };
        let pools = [pool(3, 0)];
        assert_eq!(demand(&pools, 0, 0).admit(&quotas), Ok(0));
        let elsewhere = Usage { running: 2, ..Usage::default() };
        let refused = Demand { elsewhere, ..demand(&pools, 0, 0) }.admit(&quotas).unwrap_err();
        assert!(refused.contains("max_running = 4 is too small: 5 needed"), "{refused}");
    }

    #[test]
    fn disks_count_of_every_instance_there_is() {
        let quotas = Quotas { max_disk_gib: Some(3), ..Quotas::default() };
        let pools = [pool(1, 2)];
        assert!(demand(&pools, 0, 0).admit(&quotas).is_ok());
        let refused = Demand { have: &[4], ..demand(&pools, 0, 0) }.admit(&quotas).unwrap_err();
        assert!(refused.contains("max_disk_gib = 3 is too small: 4 needed"), "{refused}");
    }

    #[test]
    fn what_is_to_sleep_is_started_within_the_quota_too() {
        let pools = [pool(2, 5)];
        let quotas = |running| Quotas { max_running: Some(running), ..Quotas::default() };
        assert_eq!(demand(&pools, 2, 5).admit(&Quotas::default()), Ok(5));
        assert_eq!(demand(&pools, 2, 5).admit(&quotas(4)), Ok(2));
        assert_eq!(demand(&pools, 0, 5).admit(&quotas(2)), Ok(2));
        let refused = demand(&pools, 2, 5).admit(&quotas(2)).unwrap_err();
        assert!(refused.contains("3 needed") && refused.contains("runs once before"), "{refused}");
    }

    #[test]
    fn memory_is_short_exactly_below_machine_and_reserve() {
        let memory = |available: u64| Memory { total: 8 << 30, available: available << 20 };
        let reserve = Reserve(512);
        assert_eq!(reserve.shortage(memory(768), 256), None);
        let short = reserve.shortage(memory(767), 256).unwrap();
        assert!(short.starts_with("the host has 767 MiB of memory available"), "{short}");
    }

    #[test]
    fn the_reserve_is_a_twentieth_or_256_mib() {
        let of = |total: u64| Reserve::of(Memory { total: total << 20, available: 0 }).unwrap().0;
        assert_eq!(of(2048), 256);
        assert_eq!(of(20_480), 1024);
    }
}
