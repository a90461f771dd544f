//! `mvm pool`

use clap::Subcommand;
use mvm_model::TenantId;
use mvm_protocol::api::{PoolInfo, PoolSummary};

use crate::address::PoolAddress;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{Output, properties, table};
use crate::scale::Scale;
use crate::view::{by_state, list};

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
