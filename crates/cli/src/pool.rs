//! `mvm pool`

use clap::Subcommand;
use mvm_model::TenantId;
use mvm_protocol::api::{Collected, PoolInfo, PoolSummary, RolledBack};
use serde::Serialize;

use crate::address::PoolAddress;
use crate::connection::Connection;
use crate::deploy::{Line, Outcome, follow};
use crate::failure::Failure;
use crate::output::{Output, properties, table};
use crate::scale::Scale;
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
}

/// What a build came to.
#[derive(Debug, Serialize)]
struct Built {
    pool: String,
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
                let built = Built { pool: pool.to_string(), changed: outcome.changed };
                output.show(&built, Built::text)?;
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
        }
        Ok(0)
    }
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
