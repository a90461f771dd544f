//! What a deployment changes: a pure comparison of what is wanted with what is there.

use mvm_model::manifest::{Deployment, Problem};
use mvm_model::{DesiredCounts, InstanceId, InstanceState, NetId, PoolId, PoolSpec, TenantSubnet};

use super::images::Revisions;
use crate::store::{Goal, InstanceRow, PoolRow, TenantRow, UserRow};
use crate::users;

/// What is there of the tenant, and what others have.
#[derive(Debug, Default)]
pub struct Present {
    /// The tenant, unless it is new.
    pub tenant: Option<TenantRow>,
    /// Its pools.
    pub pools: Vec<PoolRow>,
    /// Its instances.
    pub instances: Vec<InstanceRow>,
    /// Whom it serves.
    pub users: Vec<UserRow>,
    /// Every other tenant.
    pub others: Vec<TenantRow>,
}

/// What whoever wants something speaks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// All that a tenant has.
    All,
    /// The tenant itself.
    Tenant,
    /// One of its pools.
    Pool(PoolId),
    /// One more instance of a pool, and how it begins.
    Instance(PoolId, Goal),
}

impl About {
    /// The pool of which an instance is to begin now.
    pub fn one_more(&self) -> Option<&PoolId> {
        match self {
            About::Instance(pool, _) => Some(pool),
            About::All | About::Tenant | About::Pool(_) => None,
        }
    }
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Network number and subnet; those it has, for a tenant that exists.
    pub network: Option<(NetId, TenantSubnet)>,
    /// Pools to write.
    pub pools: Vec<PoolRow>,
    /// Instances to make: the pool, and how they begin.
    pub instances: Vec<(PoolSpec, Goal)>,
    /// What changes, for people: the thing and how.
    pub changes: Vec<(String, String)>,
    /// What stays different, for people: the thing and how.
    pub differs: Vec<(String, String)>,
    /// Machines among these whom a restart would help, in the order in which pools start.
    pub outdated: Vec<Outdated>,
}

/// A machine that goes on with something else than its pool has.
#[derive(Debug, Clone, PartialEq)]
pub struct Outdated {
    /// Its id.
    pub id: InstanceId,
    /// Its address.
    pub address: String,
    /// Whether its image is another.
    pub image: bool,
}

impl Plan {
    /// Compares.
    ///
    /// # Errors
    /// The key of what cannot be.
    pub fn make(present: &Present, wanted: &Deployment, revisions: &Revisions) -> Result<Self, Problem> {
        admit_kept(present, wanted)?;
        if let Some((index, other)) = users::same_id(&present.users, &wanted.users) {
            let message = format!("user `{other}` has that id");
            return Err(Problem::new(format!("users[{index}].telegram"), message));
        }
        let mut plan = Plan { network: Some(network(present, wanted)?), ..Plan::default() };
        plan.compare_tenant(present, wanted);
        plan.compare_users(present, wanted);
        for (index, spec) in wanted.pools.iter().enumerate() {
            plan.compare_pool(present, wanted, index, spec, revisions)?;
            plan.count_instances(present, wanted, spec);
        }
        for pool in &present.pools {
            if !wanted.pools.iter().any(|spec| spec.id == pool.spec.id) {
                let how = "not in the manifest any more; `mvm pool destroy` removes it for good";
                plan.differs.push((format!("{}/{}", wanted.tenant, pool.spec.id), how.to_owned()));
            }
        }
        let role = |id: &InstanceId| {
            let instance = present.instances.iter().find(|instance| instance.id == *id);
            let pool = instance.and_then(|i| wanted.pools.iter().find(|pool| pool.id == i.place.pool));
            pool.map_or(u8::MAX, |pool| pool.role.priority())
        };
        plan.outdated.sort_by_key(|outdated| (role(&outdated.id), outdated.id));
        Ok(plan)
    }

    /// Leaves out what is none of a command's business: what differs elsewhere, and what is missing there.
    pub fn keep_to(&mut self, about: &About) {
        let concerns = |what: &str| match about {
            About::All => true,
            About::Tenant => !what.contains('/'),
            About::Pool(pool) | About::Instance(pool, _) => what.split('/').nth(1) == Some(pool.as_str()),
        };
        self.changes.retain(|(what, _)| concerns(what));
        self.differs.retain(|(what, _)| concerns(what));
        self.outdated.retain(|outdated| concerns(&outdated.address));
        self.instances.retain(|(spec, _)| match about {
            About::All => true,
            About::Tenant => false,
            About::Pool(pool) | About::Instance(pool, _) => spec.id == *pool,
        });
        if let About::Instance(_, goal) = about {
            self.make_one(*goal);
        }
    }

    /// Of those that are missing only the one that was asked for, as it was.
    fn make_one(&mut self, goal: Goal) {
        let all = created(self.instances.len());
        self.instances.truncate(1);
        for (_, begins) in &mut self.instances {
            *begins = goal;
        }
        for (_, how) in self.changes.iter_mut().filter(|(_, how)| *how == all) {
            *how = created(1);
        }
    }

    fn compare_tenant(&mut self, present: &Present, wanted: &Deployment) {
        let name = wanted.tenant.to_string();
        let Some(tenant) = &present.tenant else {
            self.changes.push((name, "created".to_owned()));
            return;
        };
        let parts = [
            ("quotas", tenant.quotas == wanted.quotas),
            ("published ports", tenant.publish == wanted.publish),
            ("routes", tenant.routes == wanted.routes),
            ("endpoints", tenant.endpoints == wanted.endpoints),
        ];
        for (part, _) in parts.into_iter().filter(|(_, same)| !same) {
            self.changes.push((name.clone(), format!("{part} changed")));
        }
    }

    fn compare_users(&mut self, present: &Present, wanted: &Deployment) {
        let name = wanted.tenant.to_string();
        for user in &wanted.users {
            match present.users.iter().find(|row| row.user.name == user.name) {
                None => self.changes.push((name.clone(), format!("user {} added", user.name))),
                Some(row) if row.user != *user => {
                    self.changes.push((name.clone(), format!("user {} changed", user.name)));
                }
                Some(_) => {}
            }
        }
        for row in &present.users {
            if !wanted.users.iter().any(|user| user.name == row.user.name) {
                let how = format!("user {} is not in the manifest any more, and stays", row.user.name);
                self.differs.push((name.clone(), how));
            }
        }
    }

    fn compare_pool(
        &mut self,
        present: &Present,
        wanted: &Deployment,
        index: usize,
        spec: &PoolSpec,
        revisions: &Revisions,
    ) -> Result<(), Problem> {
        let address = format!("{}/{}", wanted.tenant, spec.id);
        let revision = revisions.get(&spec.id).cloned().unwrap_or_default();
        let row = PoolRow { tenant: wanted.tenant.clone(), spec: spec.clone(), revision, doomed: false };
        let Some(old) = present.pools.iter().find(|pool| pool.spec.id == spec.id) else {
            self.changes.push((address, "created".to_owned()));
            self.pools.push(row);
            return Ok(());
        };
        if old.spec.role != spec.role {
            let message = format!(
                "pool {} is a {} pool; a role does not change: give the {} another pool",
                spec.id, old.spec.role, spec.role
            );
            return Err(Problem::new(format!("pools[{index}].role"), message));
        }
        if spec.resources.data_disk_mib < old.spec.resources.data_disk_mib {
            let message = format!(
                "data disks only grow: pool {} has {} MiB",
                spec.id, old.spec.resources.data_disk_mib
            );
            return Err(Problem::new(format!("pools[{index}].data_disk_mib"), message));
        }
        // Whether the pool changes now or changed earlier: a machine differs until its next cold start.
        self.list_outdated(present, &row);
        if *old != row {
            self.changes.extend(changed_parts(old, &row).into_iter().map(|part| (address.clone(), part)));
            self.pools.push(row);
        }
        Ok(())
    }

    /// Machines that were launched with something else, and go on with it.
    fn list_outdated(&mut self, present: &Present, pool: &PoolRow) {
        for instance in present.instances.iter().filter(|instance| instance.place.pool == pool.spec.id) {
            if let Some(parts) = outdated_parts(instance, pool) {
                let how = format!(
                    "takes the new {parts} at its next cold start (`mvm deploy --restart`, or `mvm instance stop` and `start`)"
                );
                self.differs.push((instance.address(), how));
                let image =
                    instance.launched.as_ref().is_some_and(|launched| launched.revision != pool.revision);
                self.outdated.push(Outdated { id: instance.id, address: instance.address(), image });
            }
        }
    }

    fn count_instances(&mut self, present: &Present, wanted: &Deployment, spec: &PoolSpec) {
        let have = present.instances.iter().filter(|instance| instance.place.pool == spec.id).count();
        let total = spec.desired.total() as usize;
        let old = present.pools.iter().find(|pool| pool.spec.id == spec.id);
        let running =
            begin_running(have, old.map(|pool| pool.spec.desired).unwrap_or_default(), spec.desired);
        for number in 0..total.saturating_sub(have) {
            let goal = if number < running { Goal::Running } else { Goal::Sleeping };
            self.instances.push((spec.clone(), goal));
        }
        let address = format!("{}/{}", wanted.tenant, spec.id);
        if have > total {
            let how =
                format!("has {}, {total} wanted: `mvm instance destroy` removes one for good", counted(have));
            self.differs.push((address, how));
        } else if have < total {
            self.changes.push((address, created(total - have)));
        }
    }
}

/// What a machine was launched with and goes on with, that is another in its pool by now.
pub fn outdated_parts(instance: &InstanceRow, pool: &PoolRow) -> Option<String> {
    let keeps_its_launch = instance.state.has_vmm() || instance.state == InstanceState::Sleeping;
    let launched = instance.launched.as_ref().filter(|_| keeps_its_launch)?;
    let parts = [
        ("image", launched.revision == pool.revision),
        ("resources", launched.resources == pool.spec.resources),
    ];
    let outdated: Vec<&str> = parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part).collect();
    (!outdated.is_empty()).then(|| outdated.join(" and "))
}

/// How many of a pool's new instances begin running, at most: those by which more are wanted to than before. Of what was
/// wanted before and is not there, those that were to run are taken to be missing first.
fn begin_running(have: usize, old: DesiredCounts, new: DesiredCounts) -> usize {
    let missing = (old.total() as usize).saturating_sub(have);
    (new.running as usize).saturating_sub((old.running as usize).saturating_sub(missing))
}

fn created(instances: usize) -> String {
    format!("{} created", counted(instances))
}

fn counted(instances: usize) -> String {
    if instances == 1 { "1 instance".to_owned() } else { format!("{instances} instances") }
}

/// Quotas bind what is kept beside the wanted too: a deployment destroys nothing, so replacing pools frees no room.
fn admit_kept(present: &Present, wanted: &Deployment) -> Result<(), Problem> {
    let mut usage = wanted.usage();
    for pool in &present.pools {
        let have = present.instances.iter().filter(|instance| instance.place.pool == pool.spec.id).count();
        let have = u32::try_from(have).unwrap_or(u32::MAX);
        let wanted_pool = wanted.pools.iter().find(|spec| spec.id == pool.spec.id);
        let counted = wanted_pool.map_or(0, |spec| spec.desired.total());
        usage.pools += u32::from(wanted_pool.is_none());
        usage.instances_per_pool = usage.instances_per_pool.max(have);
        usage.disk_mib += u64::from(have.saturating_sub(counted)) * pool.spec.resources.data_disk_mib;
    }
    wanted.quotas.admit(&usage).map_err(|exceeded| {
        let message =
            format!("{exceeded}; what an earlier deployment made and this one leaves out counts too");
        Problem::new(format!("tenant.quotas.{}", exceeded.limit), message)
    })
}

fn changed_parts(old: &PoolRow, new: &PoolRow) -> Vec<String> {
    let (a, b) = (&old.spec, &new.spec);
    let parts = [
        ("resources changed", a.resources == b.resources),
        ("desired counts changed", a.desired == b.desired),
        ("egress changed", a.egress == b.egress),
        ("secret scopes changed", a.secret_scopes == b.secret_scopes),
        ("runtime policy changed", a.runtime_policy == b.runtime_policy),
        ("restart policy changed", a.restart == b.restart),
        ("sleep when idle changed", a.sleep_after_seconds == b.sleep_after_seconds),
        ("snapshot compression changed", a.snapshot_compression == b.snapshot_compression),
        ("spares changed", a.spares == b.spares),
        ("image changed", a.image == b.image && a.profile == b.profile),
        ("new revision of the image", old.revision == new.revision),
    ];
    parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part.to_owned()).collect()
}

/// The tenant's network number and subnet: what it has, what was asked for, or the lowest that is free.
fn network(present: &Present, wanted: &Deployment) -> Result<(NetId, TenantSubnet), Problem> {
    let asked = &wanted.network;
    if let Some(tenant) = &present.tenant {
        if asked.net_id.is_some_and(|id| id != tenant.net_id) {
            let message = format!("tenant {} has net_id {}; it does not change", tenant.id, tenant.net_id);
            return Err(Problem::new("tenant.net_id", message));
        }
        if asked.subnet.is_some_and(|subnet| subnet != tenant.subnet) {
            let message = format!("tenant {} has subnet {}; it does not change", tenant.id, tenant.subnet);
            return Err(Problem::new("tenant.subnet", message));
        }
        return Ok((tenant.net_id, tenant.subnet));
    }
    let owner = |id: NetId| present.others.iter().find(|other| other.net_id == id);
    let overlap = |subnet: TenantSubnet| {
        present.others.iter().find(|other| {
            let (a, b) = (other.subnet.net(), subnet.net());
            a.contains(&b) || b.contains(&a)
        })
    };
    let net_id = match asked.net_id {
        Some(id) => match owner(id) {
            Some(other) => {
                let message = format!("tenant {} has this number: choose another, or leave it out", other.id);
                return Err(Problem::new("tenant.net_id", message));
            }
            None => id,
        },
        None => NetId::all()
            .find(|id| {
                owner(*id).is_none() && (asked.subnet.is_some() || overlap(id.default_subnet()).is_none())
            })
            .ok_or_else(|| Problem::new("tenant.id", "this node has no free net_id left"))?,
    };
    let subnet = asked.subnet.unwrap_or_else(|| net_id.default_subnet());
    match overlap(subnet) {
        Some(other) => {
            let key = if asked.subnet.is_some() { "tenant.subnet" } else { "tenant.net_id" };
            Err(Problem::new(key, format!("subnet {subnet} overlaps tenant {}'s {}", other.id, other.subnet)))
        }
        None => Ok((net_id, subnet)),
    }
}

#[cfg(test)]
mod tests;
