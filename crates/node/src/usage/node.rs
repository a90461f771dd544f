//! The host and the agent.

use std::collections::BTreeMap;

use mvm_model::{InstanceId, InstanceState, TenantId};
use mvm_protocol::api::{
    AgentStats, ApiError, NodeDisk, NodeInfo, NodeStats, Spread, StartReport, StartStats, TenantDisk,
};

use super::{UsageError, blocking, count_states, disk as files, host, machines};
use crate::agent::Agent;
use crate::store::{self, InstanceRow};

/// `node info`.
///
/// # Errors
/// Where /proc or a folder cannot be read.
pub async fn info(agent: &Agent) -> Result<NodeInfo, ApiError> {
    let tenants = agent.store.read(|tx| Ok(store::tenants(tx)?.len())).await?;
    let (config, engine) = (agent.config.clone(), agent.hands.engine());
    let instances = count_states(&agent.machines(|_| true));
    let info = blocking(move || {
        let memory = host::memory()?;
        let name = rustix::system::uname();
        Ok::<_, UsageError>(NodeInfo {
            host: name.nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: name.release().to_string_lossy().into_owned(),
            cpu_model: host::cpu_model()?,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.total,
            available_bytes: memory.available,
            engine,
            data_dir: host::folder(&config.data_dir)?,
            run_dir: host::folder(&config.run_dir)?,
            tenants,
            instances,
        })
    });
    Ok(info.await?)
}

/// `node stats`.
///
/// # Errors
/// Where /proc cannot be read.
pub async fn node_stats(agent: &Agent) -> Result<NodeStats, ApiError> {
    let all = agent.machines(|_| true);
    let rows: Vec<InstanceRow> = all.iter().map(|machine| machine.view().row).collect();
    let (vmms, own, cpu_percent) = machines::together(agent, &rows).await?;
    let (load, memory, status) =
        blocking(|| Ok::<_, UsageError>((host::load()?, host::memory()?, host::read("/proc/self/status")?)))
            .await?;
    Ok(NodeStats {
        load,
        cpu_percent,
        memory_bytes: memory.total,
        available_bytes: memory.available,
        vmms,
        agent: AgentStats {
            pid: std::process::id(),
            resident_bytes: host::kib(&status, "VmRSS:").unwrap_or_default() << 10,
            cpu_seconds: own.seconds,
            cpu_percent: own.percent,
            uptime_seconds: store::now_secs().saturating_sub(agent.started_at),
        },
        instances: count_states(&all),
        minimums: agent.minimums.so_far(),
        starts: starts(
            rows.iter()
                .filter(|row| came_up(row, agent.started_at))
                .filter_map(|row| row.last_start.as_ref()),
        ),
    })
}

/// Whether it runs, and does so since a time.
fn came_up(row: &InstanceRow, since: u64) -> bool {
    row.state == InstanceState::Running && row.since >= since
}

/// How long starts took, by their kind.
fn starts<'a>(reports: impl Iterator<Item = &'a StartReport>) -> Vec<StartStats> {
    let mut by_kind: BTreeMap<&str, Vec<&StartReport>> = BTreeMap::new();
    for report in reports {
        by_kind.entry(&report.how).or_default().push(report);
    }
    let stats = by_kind.into_iter().filter_map(|(how, reports)| {
        let spread_of = |each: fn(&StartReport) -> f64| spread(reports.iter().copied().map(each).collect());
        Some(StartStats {
            how: how.to_owned(),
            count: reports.len(),
            confirmed_ms: spread_of(|report| report.confirmed_ms)?,
            total_ms: spread_of(|report| report.total_ms)?,
        })
    });
    stats.collect()
}

/// Median and 95th percentile, both as a value that occurs; nothing of nothing.
fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    // The lowest that so many of 100 do not exceed.
    let percentile = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some(Spread { median: percentile(50)?, p95: percentile(95)? })
}

/// `node disk`.
///
/// # Errors
/// Where the data folder cannot be read.
pub async fn disk(agent: &Agent) -> Result<NodeDisk, ApiError> {
    let owners: BTreeMap<InstanceId, TenantId> =
        agent.machines(|_| true).into_iter().map(|machine| (machine.id, machine.place.tenant)).collect();
    let tenants = agent.store.read(store::tenants).await?;
    let data_dir = agent.config.data_dir.clone();
    let disk = blocking(move || {
        let contents = files::contents(&data_dir)?;
        let mut by_tenant: BTreeMap<TenantId, TenantDisk> =
            tenants.into_iter().map(|tenant| (tenant.id.clone(), nothing(tenant.id))).collect();
        let mut other_bytes = contents.other;
        for (id, disk) in &contents.instances {
            match owners.get(id).and_then(|owner| by_tenant.get_mut(owner)) {
                Some(of_tenant) => {
                    of_tenant.instances += 1;
                    of_tenant.data_disk_bytes += disk.data;
                    of_tenant.snapshot_bytes += disk.snapshot;
                }
                None => other_bytes += disk.data + disk.snapshot,
            }
        }
        let tenants: Vec<TenantDisk> = by_tenant.into_values().collect();
        let of_tenants: u64 = tenants.iter().map(|t| t.data_disk_bytes + t.snapshot_bytes).sum();
        Ok::<_, UsageError>(NodeDisk {
            data_dir: host::folder(&data_dir)?,
            images_bytes: contents.images,
            bases_bytes: contents.bases,
            tenants,
            other_bytes,
            total_bytes: contents.images + contents.bases + of_tenants + other_bytes,
        })
    });
    Ok(disk.await?)
}

fn nothing(tenant: TenantId) -> TenantDisk {
    TenantDisk { tenant, instances: 0, data_disk_bytes: 0, snapshot_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn starts_are_told_apart_by_their_kind() {
        let report = |how: &str, total_ms: f64| StartReport {
            how: how.to_owned(),
            why: None,
            spare: false,
            total_ms,
            confirmed_ms: total_ms / 2.0,
        };
        let reports = [report("wake", 30.0), report("cold boot", 2000.0), report("wake", 10.0)];
        let stats = starts(reports.iter());
        let kinds: Vec<(&str, usize)> = stats.iter().map(|s| (s.how.as_str(), s.count)).collect();
        assert_eq!(kinds, [("cold boot", 1), ("wake", 2)]);
        assert_eq!(stats[1].total_ms, Spread { median: 10.0, p95: 30.0 });
        assert_eq!(stats[1].confirmed_ms, Spread { median: 5.0, p95: 15.0 });
        assert_eq!(starts([].iter()), []);
    }

    proptest! {
        #[test]
        fn as_many_as_a_percentile_says_do_not_exceed_it(values in prop::collection::vec(0.0f64..1e6, 1..200)) {
            let Spread { median, p95 } = spread(values.clone()).unwrap();
            for (percentile, percent) in [(median, 50), (p95, 95)] {
                let at_most = values.iter().filter(|value| **value <= percentile).count();
                let below = values.iter().filter(|value| **value < percentile).count();
                prop_assert!(at_most * 100 >= values.len() * percent);
                prop_assert!(below * 100 < values.len() * percent);
                prop_assert!(values.contains(&percentile));
            }
        }
    }
}
