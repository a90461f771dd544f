//! `mvm pool`

use clap::Subcommand;
use mvm_model::manifest::{ChangeOf, KeyChanges, Verb};
use mvm_model::{PoolSpec, TenantId};
use mvm_protocol::api::{Collected, DeployMode, Destroyed, PoolInfo, PoolSummary, RolledBack};
use serde::Serialize;

use crate::address::PoolAddress;
use crate::change::{self, PoolKeys};
use crate::confirm::{self, Confirmation};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::loss;
use crate::outcome::{Line, Outcome, follow};
use crate::output::{Output, properties, table};
use crate::scale::Scale;
use crate::tenant::destroyed_lines;
use crate::view::{by_state, counted, list};

/// Commands about pools.
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// List pools: all, or a tenant's
    List {
        /// Only this tenant's
        tenant: Option<TenantId>,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Build a pool's image anew, and the base that its machines begin from
    ///
    /// Machines that run or sleep keep the revision they have; the next start takes the new one.
    Build {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Go back to the revision that a pool had before
    Rollback {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Remove bases and revisions that nothing needs: no machine, no snapshot, no rollback
    Gc {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Show a pool: its image, resources, wanted instances, egress, policies
    Info {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    Scale(Scale),
    /// Create a pool, with its image and the instances that are wanted
    ///
    /// What is not said has the manifest's defaults.
    Create {
        /// Its name, as alice/workers
        pool: PoolAddress,
        /// What its machines are for: gateway, builder, worker, capability-imessage, capability-openclaw [default: worker]
        #[arg(long, value_name = "ROLE")]
        role: Option<String>,
        /// All else
        #[command(flatten)]
        keys: Box<PoolKeys>,
        /// Change nothing: show what would change, key by key
        #[arg(long)]
        dry_run: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Change what is wanted of a pool; what is not named stays
    ///
    /// Lists (--egress, --secret-scope) are replaced as a whole. What can be changed in place is; machines take other resources
    /// at their next cold start.
    ///
    /// With --image, machines that run, are paused or sleep are upgraded, one at a time: each is shut down, its data disk is
    /// copied, it is started with the new image and is as it was once it is ready. Where one does not get ready, it has its
    /// earlier image and data disk again, the pool its earlier image, and those after it are left as they are.
    Update {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// What changes
        #[command(flatten)]
        keys: Box<PoolKeys>,
        /// Restart its machines that run or sleep with another image or other resources, one at a time
        #[arg(long)]
        restart: bool,
        /// Upgrade no machine: each takes another image at its next cold start, without a way back
        #[arg(long, requires = "image")]
        later: bool,
        /// Change nothing: show what would change, key by key
        #[arg(long)]
        dry_run: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Destroy a pool: its machines, their data, and the ports and routes that lead to it
    Destroy {
        /// The pool, as alice/workers
        pool: PoolAddress,
        /// Whether to ask
        #[command(flatten)]
        confirmation: Confirmation,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
}

/// What a build came to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Built {
    /// The pool's address.
    pool: String,
    /// What is new.
    changed: Vec<Line>,
}

impl Built {
    fn text(&self) -> String {
        let Self { pool, changed } = self;
        if changed.is_empty() {
            return format!("nothing to do: the image of {pool} and its base are as its recipe says");
        }
        changed.iter().map(|Line { what, how }| format!("{what}: {how}")).collect::<Vec<_>>().join("\n")
    }
}

impl Pool {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        match self {
            Pool::List { tenant, output } => {
                let query = tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
                let pools: Vec<PoolSummary> =
                    connection.agent().await?.get(&format!("/v1/pools{query}")).await?;
                output.show(&pools, |pools| listing(pools))?;
            }
            Pool::Info { pool, output } => {
                let info: PoolInfo = connection.agent().await?.get(&pool.path()).await?;
                output.show(&info, details)?;
            }
            Pool::Build { pool, output } => {
                let client = connection.agent().await?;
                let path = format!("{}/build", pool.path());
                let outcome = follow(&client, &path, &(), Outcome::default()).await?;
                let whole = outcome.whole();
                let built = Built { pool: pool.to_string(), changed: outcome.changed };
                output.show(&built, Built::text)?;
                whole?;
            }
            Pool::Rollback { pool, output } => {
                let path = format!("{}/rollback", pool.path());
                let back: RolledBack = connection.agent().await?.post(&path).await?;
                output.show(&back, |RolledBack { from, to }| {
                    format!(
                        "{pool} has revision {} again, not {}: machines take it at their next start",
                        short(to),
                        short(from)
                    )
                })?;
            }
            Pool::Gc { pool, output } => {
                let path = format!("{}/gc", pool.path());
                let collected: Collected = connection.agent().await?.post(&path).await?;
                output.show(&collected, |Collected { bases, revisions }| {
                    if bases.is_empty() && revisions.is_empty() {
                        return format!("nothing to remove: all that {pool} has is of use");
                    }
                    let (bases, revisions) =
                        (counted(bases.len(), "base"), counted(revisions.len(), "revision"));
                    format!("{bases} and {revisions} removed")
                })?;
            }
            Pool::Scale(scale) => return scale.run(connection).await,
            Pool::Create { pool, role, keys, dry_run, output } => {
                let mut keys = keys.keys()?;
                keys.extend(role.map(|role| ("role".to_owned(), Some(role.into()))));
                let mode = DeployMode { dry_run, ..DeployMode::default() };
                change(connection, pool, Verb::Create, keys, mode, output).await?;
            }
            Pool::Update { pool, keys, restart, later, dry_run, output } => {
                let keys = keys.keys()?;
                if keys.is_empty() && !restart {
                    let message = "say what is to change: `mvm pool update --help` lists it";
                    return Err(Failure::Usage(message.to_owned()));
                }
                let upgrade = keys.contains_key("image") && !later;
                let mode = DeployMode { dry_run, restart, upgrade, ..DeployMode::default() };
                change(connection, pool, Verb::Update, keys, mode, output).await?;
            }
            Pool::Destroy { pool, confirmation, output } => {
                let asked = confirmation.is_needed("mvm pool destroy")?;
                let client = connection.agent().await?;
                if asked {
                    confirm::by_typing(&pool.to_string(), &loss::of_pool(&client, &pool).await?)?;
                }
                let destroyed: Destroyed = client.delete(&pool.path()).await?;
                output.show(&destroyed, destroyed_lines)?;
            }
        }
        Ok(0)
    }
}

async fn change(
    connection: &Connection,
    PoolAddress { tenant, pool }: PoolAddress,
    verb: Verb,
    keys: KeyChanges,
    mode: DeployMode,
    output: Output,
) -> Result<(), Failure> {
    let of = ChangeOf::Pool { verb, pool, keys };
    let outcome = change::send(&connection.agent().await?, &tenant, of, mode).await?;
    outcome.show(output, "this command")
}

/// A revision as far as people compare it.
pub fn short(revision: &str) -> String {
    revision.chars().take(12).collect()
}

fn listing(pools: &[PoolSummary]) -> String {
    let rows = pools.iter().map(|pool| {
        let PoolSummary { tenant, id, role, image, revision, instances } = pool;
        let revision = revision.as_deref().map_or("not built".to_owned(), short);
        [
            format!("{tenant}/{id}").into(),
            role.into(),
            image.into(),
            revision.into(),
            by_state(instances).into(),
        ]
    });
    table(["POOL", "ROLE", "IMAGE", "REVISION", "INSTANCES"], rows, "no pools")
}

fn details(info: &PoolInfo) -> String {
    let PoolInfo { summary, spec } = info;
    let (resources, desired, policy) = (&spec.resources, &spec.desired, &spec.runtime_policy);
    let scopes = spec.secret_scopes.as_ref().map_or("all of the tenant's".to_owned(), |scopes| {
        list(scopes.iter().flat_map(|s| s.keys.iter().map(move |key| format!("{}/{key}", s.integration))))
    });
    properties([
        ("pool", Some(format!("{}/{}", summary.tenant, summary.id))),
        ("role", Some(spec.role.to_string())),
        ("profile", Some(spec.profile.to_string())),
        ("image", Some(spec.image.clone())),
        ("revision", Some(summary.revision.clone().unwrap_or_else(|| "not built".to_owned()))),
        ("instances", Some(by_state(&summary.instances))),
        (
            "wanted",
            Some(format!(
                "{} ({} running, {} warm, {} sleeping at first)",
                desired.total(),
                desired.running,
                desired.warm,
                desired.sleeping
            )),
        ),
        ("vcpus", Some(resources.vcpus.to_string())),
        ("mem_mib", Some(resources.mem_mib.to_string())),
        ("data_disk_mib", Some(resources.data_disk_mib.to_string())),
        ("egress", Some(spec.egress.to_string())),
        ("secrets", Some(scopes)),
        ("asleep when idle", Some(asleep_when_idle(spec))),
        ("restart", Some(spec.restart.to_string())),
        (
            "policy",
            Some(format!(
                "runs at least {} s, warm at least {} s, drains up to {} s, shuts down within {} s",
                policy.min_running_seconds,
                policy.min_warm_seconds,
                policy.drain_timeout_seconds,
                policy.graceful_shutdown_seconds
            )),
        ),
    ])
}

fn asleep_when_idle(spec: &PoolSpec) -> String {
    match spec.sleep_after_seconds {
        _ if !spec.role.sleeps_when_idle() => format!("never: it is a {}", spec.role),
        0 => "never".to_owned(),
        seconds => format!("after {seconds} s"),
    }
}
