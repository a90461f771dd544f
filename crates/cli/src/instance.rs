//! `mvm instance`

use clap::{Args, Subcommand};
use mvm_model::InstanceState;
use mvm_model::manifest::ChangeOf;
use mvm_protocol::api::{Act, ActDone, DeployMode, Destroyed, InstanceInfo, InstanceSummary, StartReport};

use crate::address::{InstanceAddress, Owner, PoolAddress};
use crate::backup::{Backup, Restore};
use crate::change;
use crate::clock;
use crate::confirm::{self, Confirmation};
use crate::connection::Connection;
use crate::copy::Copy;
use crate::exec::{Exec, Shell};
use crate::failure::Failure;
use crate::forward::Forward;
use crate::logs::Logs;
use crate::loss;
use crate::output::{Output, properties, table};
use crate::pool;
use crate::stats::Stats;
use crate::tenant::destroyed_lines;
use crate::view;

/// Commands about instances.
#[derive(Debug, Subcommand)]
pub enum Instance {
    /// List instances: all, a tenant's or a pool's
    List {
        /// Only this tenant's or pool's, as alice or alice/workers
        owner: Option<Owner>,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Create one more instance of a pool, and start it
    ///
    /// So many more are wanted of the pool from then on.
    Create {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// It runs once and is then put to sleep
        #[arg(long)]
        sleeping: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Show an instance: its state and why, address, image, how its last start went, how its integrations are
    Info(One),
    /// Make it run: by waking it where it sleeps, else from its disk
    Start(One),
    /// Shut it down; memory it slept with is discarded
    Stop(One),
    /// Put it to sleep: its memory goes to disk, its VMM ends
    Sleep(One),
    /// Wake it where it sleeps
    Wake(One),
    /// Pause it: its memory stays, its processors stand still
    Warm(One),
    /// Let it go on where it is paused
    Resume(One),
    Exec(Exec),
    Shell(Shell),
    Stats(Stats),
    Logs(Logs),
    Cp(Copy),
    Forward(Forward),
    Backup(Backup),
    Restore(Restore),
    /// Destroy it, its data disk included
    Destroy {
        /// The instance and how to write the result
        #[command(flatten)]
        one: One,
        /// Whether to ask
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

/// One instance.
#[derive(Debug, Args)]
pub struct One {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

impl Instance {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        match self {
            Instance::List { owner, output } => {
                let query = owner.map(|owner| owner.query()).unwrap_or_default();
                let instances: Vec<InstanceSummary> =
                    connection.agent().await?.get(&format!("/v1/instances{query}")).await?;
                output.show(&instances, |instances| listing(instances))?;
            }
            Instance::Create { pool: PoolAddress { tenant, pool }, sleeping, output } => {
                let of = ChangeOf::Instance { pool, asleep: sleeping };
                let client = connection.agent().await?;
                let outcome = change::send(&client, &tenant, of, DeployMode::default()).await?;
                output.show(&outcome.created, |created| {
                    created.iter().map(|one| one.instance.as_str()).collect::<Vec<_>>().join("\n")
                })?;
                outcome.whole()?;
            }
            Instance::Info(One { instance, output }) => {
                let info: InstanceInfo = connection.agent().await?.get(&instance.path()).await?;
                output.show(&info, details)?;
            }
            Instance::Start(one) => one.act(connection, Act::Start).await?,
            Instance::Stop(one) => one.act(connection, Act::Stop).await?,
            Instance::Sleep(one) => one.act(connection, Act::Sleep).await?,
            Instance::Wake(one) => one.act(connection, Act::Wake).await?,
            Instance::Warm(one) => one.act(connection, Act::Warm).await?,
            Instance::Resume(one) => one.act(connection, Act::Resume).await?,
            Instance::Exec(exec) => return exec.run(connection).await,
            Instance::Shell(shell) => return shell.run(connection).await,
            Instance::Stats(stats) => return stats.run(connection).await,
            Instance::Logs(logs) => return logs.run(connection).await,
            Instance::Cp(copy) => return copy.run(connection).await,
            Instance::Forward(forward) => return forward.run(connection).await,
            Instance::Backup(backup) => return backup.run(connection).await,
            Instance::Restore(restore) => return restore.run(connection).await,
            Instance::Destroy { one, confirmation } => one.destroy(connection, confirmation).await?,
        }
        Ok(0)
    }
}

impl One {
    async fn act(self, connection: &Connection, act: Act) -> Result<(), Failure> {
        let path = format!("{}/{}", self.instance.path(), act.as_str());
        let done: ActDone = connection.agent().await?.post(&path).await?;
        self.output.show(&done, |done| done.message.clone())
    }

    async fn destroy(self, connection: &Connection, confirmation: Confirmation) -> Result<(), Failure> {
        let asked = confirmation.is_needed("mvm instance destroy")?;
        let client = connection.agent().await?;
        let mut path = self.instance.path();
        if asked {
            let info: InstanceInfo = client.get(&path).await?;
            let InstanceSummary { tenant, pool, id, .. } = &info.summary;
            let address = InstanceAddress::of(tenant, pool, *id);
            confirm::by_typing(&id.to_string(), &loss::of_instance(&client, &address).await?)?;
            // What was named, whatever a prefix has come to mean meanwhile.
            path = address.path();
        }
        let destroyed: Destroyed = client.delete(&path).await?;
        self.output.show(&destroyed, destroyed_lines)
    }
}

fn listing(instances: &[InstanceSummary]) -> String {
    let now = clock::now();
    let rows = instances.iter().map(|instance| {
        let InstanceSummary { tenant, pool, id, role, state, act, ip, since } = instance;
        [
            InstanceAddress::of(tenant, pool, *id).into(),
            role.into(),
            view::state_cell(*state, act.as_deref()),
            ip.into(),
            clock::age(now, *since).into(),
        ]
    });
    table(["INSTANCE", "ROLE", "STATE", "IP", "SINCE"], rows, "no instances")
}

fn details(info: &InstanceInfo) -> String {
    let InstanceSummary { tenant, pool, id, role, state, act, ip, since } = &info.summary;
    properties([
        ("instance", Some(InstanceAddress::of(tenant, pool, *id).to_string())),
        ("role", Some(role.to_string())),
        ("state", Some(view::state(*state, act.as_deref()))),
        ("since", Some(clock::utc(*since))),
        ("reason", info.reason.clone()),
        ("ip", Some(ip.to_string())),
        ("mac", Some(info.mac.to_string())),
        ("vcpus", Some(info.vcpus.to_string())),
        ("mem_mib", Some(info.mem_mib.to_string())),
        ("data_disk_mib", Some(info.data_disk_mib.to_string())),
        ("generation", Some(info.generation.to_string())),
        ("revision", info.revision.as_deref().map(pool::short)),
        ("base", info.base.as_deref().map(pool::short)),
        ("last start", info.last_start.as_ref().map(last_start)),
        ("snapshot", info.snapshot_bytes.map(view::bytes)),
        ("next wake", info.wake_at.map(clock::utc)),
        ("holds", Some(info.holds.to_string())),
        ("integrations", integrations(info)),
        ("pid", info.pid.map(|pid| pid.to_string())),
    ])
}

/// Of one that does not run nobody asks.
fn integrations(info: &InstanceInfo) -> Option<String> {
    match &info.integrations {
        Some(known) => {
            let each: Vec<String> = known.iter().map(|(name, status)| format!("{name} {status}")).collect();
            Some(each.join(", "))
        }
        None => (info.summary.state == InstanceState::Running)
            .then(|| "not known: its guest does not say".to_owned()),
    }
}

fn last_start(report: &StartReport) -> String {
    let StartReport { how, why, spare, total_ms, confirmed_ms } = report;
    let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let spare = if *spare { ", its VMM started ahead" } else { "" };
    format!(
        "{how} in {total_ms:.0} ms ({confirmed_ms:.0} ms until it had confirmed its identity){spare}{why}"
    )
}
