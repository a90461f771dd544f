//! What goes with a tenant, a pool or an instance that is destroyed, or restored from a backup.

use mvm_model::PoolId;
use mvm_protocol::api::{InstanceStats, TenantInfo};

use crate::address::{InstanceAddress, PoolAddress};
use crate::client::Client;
use crate::failure::Failure;
use crate::view::{bytes, counted};

/// So many instances are named; of more it is said how many they are.
const NAMED: usize = 20;

/// Of a tenant.
///
/// # Errors
/// What the agent says.
pub async fn of_tenant(client: &Client, info: &TenantInfo) -> Result<String, Failure> {
    let id = &info.summary.id;
    let stats: Vec<InstanceStats> = client.get(&format!("/v1/stats?tenant={id}")).await?;
    let mut lines = vec![format!("This destroys {id}:")];
    lines.extend(named("pools", info.pool_ids.iter().map(ToString::to_string)));
    lines.extend(instances(&stats));
    lines.extend(named("published ports", ports(info, None)));
    lines.extend(named("routes", routes(info, None)));
    lines.extend(named("secrets", info.secrets.iter().cloned()));
    lines.push("  its network, and the log of what happened to it".to_owned());
    Ok(lines.join("\n"))
}

/// Of a pool.
///
/// # Errors
/// What the agent says.
pub async fn of_pool(client: &Client, pool: &PoolAddress) -> Result<String, Failure> {
    let PoolAddress { tenant, pool: id } = pool;
    let info: TenantInfo = client.get(&format!("/v1/tenants/{tenant}")).await?;
    let stats: Vec<InstanceStats> = client.get(&format!("/v1/stats?tenant={tenant}&pool={id}")).await?;
    let mut lines = vec![format!("This destroys {pool}:")];
    lines.extend(instances(&stats));
    lines.extend(named("published ports", ports(&info, Some(id))));
    lines.extend(named("routes", routes(&info, Some(id))));
    Ok(lines.join("\n"))
}

/// Of an instance.
///
/// # Errors
/// What the agent says.
pub async fn of_instance(client: &Client, instance: &InstanceAddress) -> Result<String, Failure> {
    let stats: Vec<InstanceStats> = client.get(&format!("{}/stats", instance.path())).await?;
    Ok(format!("This destroys {}", stats.iter().map(line).collect::<Vec<_>>().join("\n")))
}

/// Of an instance that is given another data disk.
///
/// # Errors
/// What the agent says.
pub async fn of_disk(client: &Client, instance: &InstanceAddress) -> Result<String, Failure> {
    let stats: Vec<InstanceStats> = client.get(&format!("{}/stats", instance.path())).await?;
    let lines: Vec<_> = stats.iter().map(line).collect();
    Ok(format!("This replaces what is on the data disk, and ends what is in memory, of {}", lines.join("\n")))
}

fn instances(stats: &[InstanceStats]) -> Vec<String> {
    let mut lines: Vec<String> = stats.iter().take(NAMED).map(|one| format!("  {}", line(one))).collect();
    if let Some(more) = stats.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let of = |each: fn(&InstanceStats) -> u64| bytes(stats[NAMED..].iter().map(each).sum());
        let (disks, snapshots) = (of(|one| one.data_disk_bytes), of(|one| one.snapshot_bytes));
        lines.push(format!("  and {more} more instances: data disks {disks}, snapshots {snapshots}"));
    }
    if stats.is_empty() {
        lines.push(format!("  {}", counted(0, "instance")));
    }
    lines
}

fn line(stats: &InstanceStats) -> String {
    let InstanceStats { tenant, pool, id, state, data_disk_bytes, snapshot_bytes, .. } = stats;
    let address = InstanceAddress::of(tenant, pool, *id);
    let snapshot =
        if *snapshot_bytes > 0 { format!(", snapshot {}", bytes(*snapshot_bytes)) } else { String::new() };
    format!("{address} ({state}): data disk {}{snapshot}", bytes(*data_disk_bytes))
}

fn named(what: &str, names: impl IntoIterator<Item = String>) -> Option<String> {
    let names: Vec<String> = names.into_iter().collect();
    (!names.is_empty()).then(|| format!("  {what}: {}", names.join(", ")))
}

fn ports<'a>(info: &'a TenantInfo, of: Option<&'a PoolId>) -> impl Iterator<Item = String> + 'a {
    let leads = move |pool: &PoolId| of.is_none_or(|of| of == pool);
    info.publish.iter().filter(move |p| leads(&p.pool)).map(|p| format!("{}:{}", p.bind, p.port))
}

fn routes<'a>(info: &'a TenantInfo, of: Option<&'a PoolId>) -> impl Iterator<Item = String> + 'a {
    let leads = move |pool: &PoolId| of.is_none_or(|of| of == pool);
    info.routes.iter().filter(move |route| leads(&route.target.pool_id)).map(|route| route.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_instances_some_are_named_and_the_rest_is_counted() {
        let one = |number: u32| InstanceStats {
            tenant: "alice".parse().unwrap(),
            pool: "workers".parse().unwrap(),
            id: mvm_model::InstanceId::new(number),
            state: mvm_model::InstanceState::Sleeping,
            pid: None,
            mem_mib: 256,
            resident_bytes: None,
            proportional_bytes: None,
            cpu_seconds: None,
            cpu_percent: None,
            uptime_seconds: None,
            data_disk_bytes: 1 << 20,
            snapshot_bytes: 1 << 10,
        };
        let all: Vec<InstanceStats> = (0..23).map(one).collect();
        let lines = instances(&all);
        assert_eq!(lines.len(), NAMED + 1);
        let first = "  alice/workers/i-00000000 (sleeping): data disk 1.00 MiB, snapshot 1.00 KiB";
        assert_eq!(lines[0], first);
        assert_eq!(lines[NAMED], "  and 3 more instances: data disks 3.00 MiB, snapshots 3.00 KiB");
        assert_eq!(instances(&all[..NAMED]).len(), NAMED);
        assert_eq!(instances(&[]), ["  0 instances"]);
    }
}
