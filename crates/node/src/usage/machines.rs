//! What each instance takes, and all VMMs together.

use futures::StreamExt;
use mvm_model::{InstanceId, InstanceState};
use mvm_protocol::api::{ApiError, InstanceStats, VmmStats};

use super::processor::{CpuUse, Process, sample};
use super::{blocking, disk};
use crate::agent::Agent;
use crate::machine::Machine;
use crate::store::{self, InstanceRow};

/// VMMs whose memory is measured at once: the kernel goes through their page tables for it.
const AT_ONCE: usize = 4;

/// What machines take, in the same order.
///
/// # Errors
/// Where /proc or the data folder cannot be read. A machine that ends meanwhile is none.
pub async fn stats(agent: &Agent, machines: &[Machine]) -> Result<Vec<InstanceStats>, ApiError> {
    let rows: Vec<InstanceRow> = machines.iter().map(|machine| machine.view().row).collect();
    let pools = agent.store.read(|tx| store::pools(tx, None)).await?;
    let (cpu, memory, disks) = tokio::join!(cpu_of(&rows), memory_of(agent, &rows), disks_of(agent, &rows));
    let (cpu, disks) = (cpu?.0, disks?);
    let now = store::now_secs();
    let stats = rows.iter().zip(cpu).zip(memory).zip(disks).map(|(((row, cpu), memory), disk)| {
        let pool = pools.iter().find(|p| p.tenant == row.place.tenant && p.spec.id == row.place.pool);
        let wanted = pool.map(|pool| pool.spec.resources);
        let resources = row.launched.as_ref().map(|launched| launched.resources).or(wanted);
        InstanceStats {
            tenant: row.place.tenant.clone(),
            pool: row.place.pool.clone(),
            id: row.id,
            state: row.state,
            pid: vmm(row).map(|process| process.pid),
            mem_mib: resources.unwrap_or_default().mem_mib,
            resident_bytes: memory.map(|memory| memory.resident),
            proportional_bytes: memory.map(|memory| memory.proportional),
            cpu_seconds: cpu.map(|cpu| cpu.seconds),
            cpu_percent: cpu.map(|cpu| cpu.percent),
            uptime_seconds: (row.state == InstanceState::Running).then(|| now.saturating_sub(row.since)),
            data_disk_bytes: disk.data,
            snapshot_bytes: disk.snapshot,
        }
    });
    Ok(stats.collect())
}

/// What all VMMs take together, the agent, and the host's processors in percent of all of them.
pub(super) async fn together(
    agent: &Agent,
    rows: &[InstanceRow],
) -> Result<(VmmStats, CpuUse, f64), ApiError> {
    let (cpu, memory) = tokio::join!(cpu_of(rows), memory_of(agent, rows));
    let (mut cpu, host) = cpu?;
    let own = cpu.pop().flatten().unwrap_or_default();
    let mut all = VmmStats::default();
    for memory in memory.into_iter().flatten() {
        all.count += 1;
        all.proportional_bytes += memory.proportional;
    }
    for cpu in cpu.into_iter().flatten() {
        all.cpu_seconds += cpu.seconds;
        all.cpu_percent += cpu.percent;
    }
    Ok((all, own, host))
}

fn vmm(row: &InstanceRow) -> Option<Process> {
    let process = row.process.as_ref().filter(|_| row.state.has_vmm())?;
    Some(Process { pid: process.pid, start_ticks: Some(process.start_ticks) })
}

/// What each row's VMM takes of the processors, then what the agent does; and the host.
async fn cpu_of(rows: &[InstanceRow]) -> Result<(Vec<Option<CpuUse>>, f64), super::UsageError> {
    let vmms: Vec<Option<Process>> = rows.iter().map(vmm).collect();
    let mut processes: Vec<Process> = vmms.iter().flatten().copied().collect();
    processes.push(Process { pid: std::process::id(), start_ticks: None });
    let (uses, host) = sample(processes).await?;
    let mut uses = uses.into_iter();
    let mut by_row: Vec<Option<CpuUse>> =
        vmms.iter().map(|vmm| vmm.and_then(|_| uses.next().flatten())).collect();
    by_row.extend(uses.next());
    Ok((by_row, host))
}

async fn memory_of(agent: &Agent, rows: &[InstanceRow]) -> Vec<Option<mvm_host::MemoryUsage>> {
    let with_vmm: Vec<Option<InstanceId>> = rows.iter().map(|row| vmm(row).map(|_| row.id)).collect();
    let measuring = with_vmm.into_iter().map(|id| async move { agent.hands.memory_usage(id?).await.ok() });
    futures::stream::iter(measuring).buffered(AT_ONCE).collect().await
}

async fn disks_of(agent: &Agent, rows: &[InstanceRow]) -> Result<Vec<disk::InstanceDisk>, super::UsageError> {
    let (data_dir, ids) = (agent.config.data_dir.clone(), rows.iter().map(|row| row.id).collect::<Vec<_>>());
    blocking(move || ids.into_iter().map(|id| disk::instance(&data_dir, id)).collect()).await
}
