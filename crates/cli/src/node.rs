//! `mvm node`

use clap::Subcommand;
use mvm_protocol::api::{
    AgentStats, Damaged, Folder, MinimumStats, NodeDisk, NodeInfo, NodeStats, ScrubReport, StartStats,
    TenantDisk,
};

use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{Output, properties, table};
use crate::view::{by_state, bytes, seconds};

/// Commands about the node.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Show the host: processor, memory, kernel, engine, folders and what they have free
    Info {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Show what machines and the agent take of the host, and how long starts took
    Stats {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Read images, bases and what machines sleep with through, and name what is damaged
    Scrub {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Show what takes how much under the data folder, by blocks that are really taken
    Disk {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
}

impl Node {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let client = connection.agent().await?;
        match self {
            Node::Info { output } => output.show(&client.get("/v1/node").await?, info)?,
            Node::Stats { output } => output.show(&client.get("/v1/node/stats").await?, stats)?,
            Node::Scrub { output } => {
                let report: ScrubReport = client.post("/v1/node/scrub").await?;
                output.show(&report, scrubbed)?;
                return Ok(u8::from(!report.damaged.is_empty()));
            }
            Node::Disk { output } => output.show(&client.get("/v1/node/disk").await?, disk)?,
        }
        Ok(0)
    }
}

fn scrubbed(report: &ScrubReport) -> String {
    let ScrubReport { checked, damaged } = report;
    let mut lines: Vec<String> =
        damaged.iter().map(|Damaged { what, detail }| format!("damaged: {what}: {detail}")).collect();
    lines.push(format!("{checked} images, bases and snapshots read, {} damaged", damaged.len()));
    lines.join("\n")
}

fn info(info: &NodeInfo) -> String {
    properties([
        ("host", Some(info.host.clone())),
        ("version", Some(info.version.clone())),
        ("kernel", Some(info.kernel.clone())),
        ("cpu", Some(info.cpu_model.clone())),
        ("cores", Some(info.cores.to_string())),
        ("memory", Some(memory(info.memory_bytes, info.available_bytes))),
        ("engine", Some(info.engine.clone())),
        ("data_dir", Some(folder(&info.data_dir))),
        ("run_dir", Some(folder(&info.run_dir))),
        ("tenants", Some(info.tenants.to_string())),
        ("instances", Some(by_state(&info.instances))),
    ])
}

/// Memory, and what of it is available.
pub fn memory(total: u64, available: u64) -> String {
    format!("{}, {} available", bytes(total), bytes(available))
}

/// A folder and what it has free.
pub fn folder(folder: &Folder) -> String {
    format!("{} ({} free of {})", folder.path, bytes(folder.free_bytes), bytes(folder.total_bytes))
}

fn stats(stats: &NodeStats) -> String {
    let NodeStats { load: [one, five, fifteen], vmms, agent, .. } = stats;
    let AgentStats { resident_bytes, cpu_seconds, cpu_percent, uptime_seconds, .. } = agent;
    let host = properties([
        ("load", Some(format!("{one:.2} {five:.2} {fifteen:.2}"))),
        ("cpu", Some(format!("{:.0}% of all cores", stats.cpu_percent))),
        ("memory", Some(memory(stats.memory_bytes, stats.available_bytes))),
        (
            "machines",
            Some(format!(
                "{} with {} of memory, {:.0}% of a core",
                vmms.count,
                bytes(vmms.proportional_bytes),
                vmms.cpu_percent
            )),
        ),
        (
            "agent",
            Some(format!(
                "{} of memory, {cpu_percent:.0}% of a core ({} in {})",
                bytes(*resident_bytes),
                seconds(*cpu_seconds),
                clock::age(*uptime_seconds, 0)
            )),
        ),
        ("instances", Some(by_state(&stats.instances))),
        ("minimum runtime", minimums(stats.minimums)),
    ]);
    if stats.starts.is_empty() {
        return host;
    }
    let rows = stats.starts.iter().map(|start| {
        let StartStats { how, count, confirmed_ms, total_ms } = start;
        let ms = |ms: f64| format!("{ms:.0} ms").into();
        let (confirmed, total) = (confirmed_ms, total_ms);
        [how.into(), count.into(), ms(confirmed.median), ms(confirmed.p95), ms(total.median), ms(total.p95)]
    });
    let headings = ["STARTED BY", "COUNT", "CONFIRMED", "P95", "READY", "P95"];
    format!("{host}\n\n{}", table(headings, rows, ""))
}

/// Where it never made a difference, nothing.
fn minimums(MinimumStats { deferred, overridden }: MinimumStats) -> Option<String> {
    (deferred + overridden > 0).then(|| format!("{deferred} deferred, {overridden} overridden"))
}

fn disk(disk: &NodeDisk) -> String {
    let total = properties([
        ("images", Some(bytes(disk.images_bytes))),
        ("bases", Some(bytes(disk.bases_bytes))),
        ("instances", Some(bytes(disk.tenants.iter().map(|t| t.data_disk_bytes + t.snapshot_bytes).sum()))),
        ("other", Some(bytes(disk.other_bytes))),
        ("total", Some(bytes(disk.total_bytes))),
        ("data_dir", Some(folder(&disk.data_dir))),
    ]);
    if disk.tenants.is_empty() {
        return total;
    }
    let rows = disk.tenants.iter().map(|of_tenant| {
        let TenantDisk { tenant, instances, data_disk_bytes, snapshot_bytes } = of_tenant;
        let all = data_disk_bytes + snapshot_bytes;
        [
            tenant.into(),
            instances.into(),
            bytes(*data_disk_bytes).into(),
            bytes(*snapshot_bytes).into(),
            bytes(all).into(),
        ]
    });
    let headings = ["TENANT", "INSTANCES", "DATA DISKS", "SNAPSHOTS", "TOTAL"];
    format!("{total}\n\n{}", table(headings, rows, ""))
}

#[cfg(test)]
mod tests {
    use mvm_protocol::api::{Spread, VmmStats};

    use super::*;

    fn data_dir() -> Folder {
        Folder { path: "/var/lib/mvm".into(), free_bytes: 3 << 30, total_bytes: 8 << 30 }
    }

    #[test]
    fn the_parts_of_the_disk_are_told_with_their_total() {
        let tenant = TenantDisk {
            tenant: "alice".parse().unwrap(),
            instances: 2,
            data_disk_bytes: 5 << 20,
            snapshot_bytes: 1 << 20,
        };
        let whole = NodeDisk {
            data_dir: data_dir(),
            images_bytes: 100 << 20,
            bases_bytes: 0,
            tenants: vec![tenant],
            other_bytes: 1 << 20,
            total_bytes: 107 << 20,
        };
        let expected = "\
images     100.00 MiB
bases      0 B
instances  6.00 MiB
other      1.00 MiB
total      107.00 MiB
data_dir   /var/lib/mvm (3.00 GiB free of 8.00 GiB)

TENANT  INSTANCES  DATA DISKS  SNAPSHOTS  TOTAL
alice   2          5.00 MiB    1.00 MiB   6.00 MiB";
        assert_eq!(disk(&whole), expected);
    }

    #[test]
    fn what_everything_takes_is_told_with_how_long_starts_took() {
        let mut all = NodeStats {
            load: [0.5, 1.25, 2.0],
            cpu_percent: 49.6,
            memory_bytes: 8 << 30,
            available_bytes: 5 << 30,
            vmms: VmmStats { count: 2, proportional_bytes: 120 << 20, cpu_seconds: 7.0, cpu_percent: 3.4 },
            agent: AgentStats {
                pid: 7,
                resident_bytes: 20 << 20,
                cpu_seconds: 1.5,
                cpu_percent: 0.0,
                uptime_seconds: 7200,
            },
            instances: [("running".to_owned(), 2)].into(),
            minimums: MinimumStats::default(),
            starts: Vec::new(),
        };
        let expected = "\
load       0.50 1.25 2.00
cpu        50% of all cores
memory     8.00 GiB, 5.00 GiB available
machines   2 with 120.00 MiB of memory, 3% of a core
agent      20.00 MiB of memory, 0% of a core (1.5 s in 2h)
instances  2 running";
        assert_eq!(stats(&all), expected);
        let spread = |median| Spread { median, p95: 2.0 * median };
        let wakes =
            StartStats { how: "wake".into(), count: 2, confirmed_ms: spread(40.0), total_ms: spread(90.0) };
        all.starts.push(wakes);
        let table = "
STARTED BY  COUNT  CONFIRMED  P95    READY  P95
wake        2      40 ms      80 ms  90 ms  180 ms";
        assert_eq!(stats(&all), format!("{expected}\n{table}"));
        all.minimums = MinimumStats { deferred: 3, overridden: 1 };
        let line = "minimum runtime  3 deferred, 1 overridden";
        assert!(stats(&all).lines().any(|shown| shown == line), "{}", stats(&all));
    }
}
