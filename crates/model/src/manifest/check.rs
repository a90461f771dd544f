//! The rules between the parts of a deployment.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{Deployment, Problem};
use crate::quota::Usage;
use crate::routes::InvalidRoutes;
use crate::{PoolId, PoolSpec, Role, RoutingTable, User};

/// vCPUs of a machine.
pub(super) const VCPUS: RangeInclusive<u32> = 1..=32;
/// Memory of a machine in MiB: less does not boot; 1 TiB.
pub(super) const MEM_MIB: RangeInclusive<u32> = 128..=1 << 20;
/// A data disk in MiB, if there is one: less has no room for a journal; 16 TiB.
pub(super) const DATA_DISK_MIB: RangeInclusive<u64> = 16..=16 << 20;
/// Each of the three counts: no subnet has more addresses.
pub(super) const COUNT: RangeInclusive<u32> = 0..=65_535;
/// VMMs started ahead for one pool: each takes some 40 MiB.
pub(super) const SPARES: RangeInclusive<u32> = 0..=64;
/// The ports there are.
pub(super) const PORT: RangeInclusive<u16> = 1..=65_535;

impl Deployment {
    /// Checks that the parts fit together: ranges, names that are used twice or not defined, routes that decide, a
    /// subnet and quotas that hold what the deployment itself asks for.
    ///
    /// # Errors
    /// The first problem, at the manifest's key.
    pub fn check(&self) -> Result<(), Problem> {
        self.check_pools()?;
        self.check_publish()?;
        self.check_routes()?;
        self.check_users()?;
        self.check_subnet()?;
        let quota = self.quotas.admit(&self.usage());
        quota.map_err(|exceeded| {
            Problem::new(format!("tenant.quotas.{}", exceeded.limit), exceeded.to_string())
        })
    }

    /// What the deployment uses once every machine is in the state it begins in.
    pub fn usage(&self) -> Usage {
        Usage::of_pools(&self.pools)
    }

    fn check_pools(&self) -> Result<(), Problem> {
        let mut ids = HashSet::new();
        for (index, pool) in self.pools.iter().enumerate() {
            let key = |name: &str| format!("pools[{index}].{name}");
            in_range(&key("vcpus"), pool.resources.vcpus, &VCPUS)?;
            in_range(&key("mem_mib"), pool.resources.mem_mib, &MEM_MIB)?;
            let disk = pool.resources.data_disk_mib;
            if disk != 0 {
                in_range(&key("data_disk_mib"), disk, &DATA_DISK_MIB)
                    .map_err(|p| Problem::new(p.key, format!("{}; 0 is no data disk", p.message)))?;
            }
            in_range(&key("desired_running"), pool.desired.running, &COUNT)?;
            in_range(&key("desired_sleeping"), pool.desired.sleeping, &COUNT)?;
            if pool.desired.warm != 0 {
                return Err(Problem::new(
                    key("desired_warm"),
                    "instances that begin paused (`desired_warm`) are not supported by this version",
                ));
            }
            if !ids.insert(&pool.id) {
                return Err(Problem::new(key("id"), format!("there is another pool `{}`", pool.id)));
            }
        }
        Ok(())
    }

    fn check_publish(&self) -> Result<(), Problem> {
        for (index, publish) in self.publish.iter().enumerate() {
            let key = |name: &str| format!("publish[{index}].{name}");
            in_range(&key("port"), publish.port, &PORT)?;
            in_range(&key("target_port"), publish.target_port, &PORT)?;
            self.pool_exists(&key("pool"), &publish.pool)?;
            let earlier = self.publish[..index].iter().find(|other| publish.collides_with(other));
            if let Some(earlier) = earlier {
                let message = format!(
                    "{}:{} is taken already by {}:{}: choose another port",
                    publish.bind, publish.port, earlier.bind, earlier.port
                );
                return Err(Problem::new(key("port"), message));
            }
        }
        Ok(())
    }

    fn check_routes(&self) -> Result<(), Problem> {
        for (index, route) in self.routes.routes.iter().enumerate() {
            self.pool_exists(&format!("routes[{index}].target.pool_id"), &route.target.pool_id)?;
        }
        let Err(invalid) = self.routes.validate() else { return Ok(()) };
        let index = first_bad_route(&self.routes);
        let part = match &invalid {
            InvalidRoutes::Empty(_) | InvalidRoutes::Ambiguous(..) => "match_rule",
            InvalidRoutes::DuplicateName(_) => "name",
            InvalidRoutes::Prefix(_) => "match_rule.path_prefix",
            InvalidRoutes::Port(_) if self.routes.routes[index].target.target_port == 0 => {
                "target.target_port"
            }
            InvalidRoutes::Port(_) => "match_rule.port",
            InvalidRoutes::Limit { key, .. } => &format!("limits.{key}"),
        };
        Err(Problem::new(format!("routes[{index}].{part}"), invalid.to_string()))
    }

    fn check_users(&self) -> Result<(), Problem> {
        for (index, user) in self.users.iter().enumerate() {
            let problem =
                |key: &str, message: String| Err(Problem::new(format!("users[{index}].{key}"), message));
            let earlier = &self.users[..index];
            if earlier.iter().any(|other| other.name == user.name) {
                return problem("name", format!("there is another user `{}`", user.name));
            }
            let same = |other: &&User| user.telegram.is_some() && other.telegram == user.telegram;
            if let Some(other) = earlier.iter().find(same) {
                return problem("telegram", format!("user `{}` has that id", other.name));
            }
        }
        let (Some(first), pools) = (self.users.first(), self.pools_for_users()) else { return Ok(()) };
        let problem = |message: String| Err(Problem::new("users", message));
        let [pool] = pools.as_slice() else {
            return problem(format!(
                "user `{}` needs a worker, of the one pool with role {}; there are {} such pools",
                first.name,
                Role::CapabilityOpenclaw,
                pools.len()
            ));
        };
        // Two would poll with one bot's token, which Telegram refuses, and each would hand over the same messages.
        let gateways: u64 = self.pools.iter().filter(|pool| pool.role.is_gateway()).map(instances).sum();
        if gateways != 1 {
            return problem(format!(
                "users are reached through one gateway machine: there are {gateways} instances of gateways"
            ));
        }
        let (have, wanted) = (instances(pool), self.users.len() as u64);
        if have < wanted {
            return problem(format!(
                "each user has a worker of their own: pool {} has {have} instances, and there are {wanted} users",
                pool.id
            ));
        }
        Ok(())
    }

    /// The pools whose machines may be users' workers; of a tenant with users there is one.
    pub fn pools_for_users(&self) -> Vec<&PoolSpec> {
        self.pools.iter().filter(|pool| pool.role == Role::CapabilityOpenclaw).collect()
    }

    fn check_subnet(&self) -> Result<(), Problem> {
        let capacity = self.network.capacity();
        let wanted: u64 = self.pools.iter().map(instances).fold(0, u64::saturating_add);
        if u64::try_from(capacity).is_ok_and(|capacity| wanted <= capacity) {
            return Ok(());
        }
        let message = format!(
            "the subnet is full: it has addresses for {capacity} instances and {wanted} are wanted. Ask for fewer, or give the \
             tenant a larger one, as 10.255.0.0/16, when it is made"
        );
        Err(Problem::new("tenant.subnet", message))
    }

    fn pool_exists(&self, key: &str, id: &PoolId) -> Result<(), Problem> {
        if self.pools.iter().any(|pool| pool.id == *id) {
            return Ok(());
        }
        let known: Vec<&str> = self.pools.iter().map(|pool| pool.id.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(Problem::new(key, format!("there is no pool `{id}`; defined here: {known}")))
    }
}

impl Usage {
    /// What a tenant's pools use once every machine is in the state that is wanted of it.
    pub fn of_pools(pools: &[PoolSpec]) -> Self {
        let sum = |each: fn(&PoolSpec) -> u64| pools.iter().map(each).fold(0, u64::saturating_add);
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Usage {
            vcpus: narrow(sum(|p| u64::from(p.desired.running) * u64::from(p.resources.vcpus))),
            mem_mib: sum(|p| (instances(p) - u64::from(p.desired.sleeping)) * u64::from(p.resources.mem_mib)),
            running: narrow(sum(|p| p.desired.running.into())),
            warm: narrow(sum(|p| p.desired.warm.into())),
            pools: narrow(sum(|_| 1)),
            instances_per_pool: narrow(pools.iter().map(instances).max().unwrap_or(0)),
            disk_mib: sum(|p| instances(p).saturating_mul(p.resources.data_disk_mib)),
        }
    }
}

/// The instances of a pool; its counts may still be out of range.
fn instances(pool: &PoolSpec) -> u64 {
    u64::from(pool.desired.running) + u64::from(pool.desired.warm) + u64::from(pool.desired.sleeping)
}

/// The first route that the ones before it do not go with. A table stays invalid whatever follows.
fn first_bad_route(table: &RoutingTable) -> usize {
    let indices: Vec<usize> = (0..table.routes.len()).collect();
    let good = |last: &usize| RoutingTable { routes: table.routes[..=*last].to_vec() }.validate().is_ok();
    indices.partition_point(good)
}

/// Checks that a number is in its range.
pub(super) fn in_range<T: PartialOrd + Display>(
    key: &str,
    number: T,
    range: &RangeInclusive<T>,
) -> Result<(), Problem> {
    if range.contains(&number) {
        return Ok(());
    }
    Err(out_of_range(key, number, range))
}

/// The problem of a number that is not in its range.
pub(super) fn out_of_range<T: Display>(
    key: &str,
    number: impl Display,
    range: &RangeInclusive<T>,
) -> Problem {
    Problem::new(key, format!("must be {} to {}, not {number}", range.start(), range.end()))
}
