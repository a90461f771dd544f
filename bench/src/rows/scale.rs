//! The agent with many instances in its store.
//!
//! One machine is really made and put to sleep; its row, its pool and its tenant are then copied in the store while no agent
//! runs, so that every copy is what a sleeping machine leaves there.

use std::path::Path;
use std::time::{Duration, Instant};

use mvm_model::NetId;
use mvm_network::Uplink;
use mvm_protocol::api::Act;
use rusqlite::{Connection, Transaction};

use super::{Bench, Pool, manifest};
use crate::Result;
use crate::mvm::Mvm;
use crate::report::{Report, Sides};
use crate::samples::Samples;

const COUNTS: [u32; 4] = [1, 100, 1000, 10_000];
/// Instances of a tenant: its subnet holds few more.
const A_TENANT: u32 = 250;
const TENANT: &str = "scale";
/// What is idle is looked at for so long: tasks of every minute are to be seen with the most instances.
const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(62);

/// Memory, CPU, `instance list` and the command line's start.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut mvm = bench.another_agent("s")?;
    mvm.lab.start_agent();
    mvm.deploy(&manifest(TENANT, &[Pool { name: "sleepers", ..Pool::default() }]))?;
    let instance = mvm.instances(TENANT, "sleepers")?.pop().ok_or("no instance")?;
    mvm.act(&instance, Act::Sleep)?;
    for count in COUNTS {
        mvm.lab.stop_agent();
        fill_store(&mvm.data_dir().join("mvm.db"), count)?;
        let begun = Instant::now();
        mvm.lab.start_agent();
        report.row(format!("agent start, {count} instances"), "ms", &Sides::mvm_only(millis(begun)));
        with_instances(bench, &mvm, count, report)?;
    }
    Ok(())
}

fn with_instances(bench: &Bench, mvm: &Mvm, count: u32, report: &mut Report) -> Result<()> {
    let pid = mvm.lab.agent_pid().ok_or("the agent does not run")?;
    // What starting took is not what being idle takes.
    std::thread::sleep(Duration::from_secs(1));
    let window = if count == 10_000 { LONG } else { SHORT };
    let before = cpu_time(pid)?;
    std::thread::sleep(window);
    let cpu = (cpu_time(pid)? - before).as_secs_f64() / window.as_secs_f64() * 100.0;
    let (mut list, mut version) = (Samples::default(), Samples::default());
    let mut listed = String::new();
    for _ in bench.rounds(1) {
        let begun = Instant::now();
        listed = mvm.lab.mvm(&["instance", "list"]);
        list.push(millis(begun));
        let begun = Instant::now();
        mvm.lab.mvm(&["--version"]);
        version.push(millis(begun));
    }
    if listed.lines().count() < count as usize {
        return Err(format!("of {count} instances {} lines are listed", listed.lines().count()).into());
    }
    // After the lists: what they take and give back late counts too.
    let rss = rss_mib(pid)?;
    if count == 10_000 {
        report.value("agent_rss_mib_10k", Some(rss));
        report.value("idle_cpu_percent_10k", Some(cpu));
        report.value("list_10k_ms", list.median());
        report.value("cli_start_ms", version.median());
    }
    report.row(format!("`mvm --version`, {count} instances"), "ms", &Sides::mvm_only(version));
    report.row(format!("agent's RSS, {count} instances"), "MiB", &Sides::mvm_only(rss));
    report.row(format!("agent's CPU when idle, {count} instances"), "% of a core", &Sides::mvm_only(cpu));
    report.row(format!("`mvm instance list`, {count} instances"), "ms", &Sides::mvm_only(list));
    Ok(())
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

/// Copies the first tenant, pool and instance until there are so many instances.
fn fill_store(path: &Path, count: u32) -> Result<()> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "foreign_keys", "OFF")?;
    let transaction = connection.transaction()?;
    let present: u32 = transaction.query_row("SELECT count(*) FROM instances", [], |row| row.get(0))?;
    let [tenants, pools, instances] = [
        columns(&transaction, "tenants")?,
        columns(&transaction, "pools")?,
        columns(&transaction, "instances")?,
    ];
    for number in present..count {
        let (tenant, offset) = (number / A_TENANT, number % A_TENANT);
        let name = format!("'{TENANT}-{tenant}'");
        let tenant_name = if tenant == 0 { format!("'{TENANT}'") } else { name };
        if tenant > 0 && offset == 0 {
            copy_tenant(&transaction, &tenants, &tenant_name, tenant)?;
            copy(&transaction, "pools", &pools, &[("tenant", tenant_name.clone())])?;
        }
        let changes = [
            ("id", format!("id + {number}")),
            ("tenant", tenant_name),
            ("offset", format!("3 + {offset}")),
            ("uid", format!("uid + {number}")),
        ];
        copy(&transaction, "instances", &instances, &changes)?;
    }
    transaction.commit()?;
    Ok(())
}

fn copy_tenant(transaction: &Transaction<'_>, columns: &[String], name: &str, number: u32) -> Result<()> {
    let net_id = NetId::new(number.into())?;
    let uplink = Uplink::all().nth(number as usize).ok_or("there are not so many uplinks")?;
    let changes = [
        ("id", name.to_owned()),
        ("net_id", number.to_string()),
        ("subnet", format!("'{}'", serde_json::to_string(&net_id.default_subnet())?)),
        ("uplink", format!("'{}'", serde_json::to_string(&uplink)?)),
    ];
    copy(transaction, "tenants", columns, &changes)
}

fn columns(transaction: &Transaction<'_>, table: &str) -> Result<Vec<String>> {
    let mut statement = transaction.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = statement.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(names)
}

/// Copies a table's first row with some columns changed.
fn copy(
    transaction: &Transaction<'_>,
    table: &str,
    columns: &[String],
    changes: &[(&str, String)],
) -> Result<()> {
    let value = |column: &String| {
        let change = changes.iter().find(|(name, _)| name == column);
        change.map_or_else(|| format!("\"{column}\""), |(_, value)| value.clone())
    };
    let names = columns.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
    let values = columns.iter().map(value).collect::<Vec<_>>().join(", ");
    let statement = format!(
        "INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})"
    );
    transaction.execute(&statement, [])?;
    Ok(())
}

/// What a process has taken of the processors so far.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("no stat")?.1;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<std::result::Result<Vec<_>, _>>()?.iter().sum();
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn rss_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(kib.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
