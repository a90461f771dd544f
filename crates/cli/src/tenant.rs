//! `mvm tenant`

use clap::Subcommand;
use mvm_model::TenantId;
use mvm_protocol::api::{Destroyed, TenantInfo, TenantSummary};

use crate::clock;
use crate::confirm::{self, Confirmation};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{Output, properties, table};
use crate::view::{by_state, counted, list};

/// Commands about tenants.
#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// List all tenants
    List {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Show a tenant: its network, limits, pools, published ports, routes, names of its secrets
    Info {
        /// The tenant
        tenant: TenantId,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Destroy a tenant: its machines, their data, its network and secrets
    Destroy {
        /// The tenant
        tenant: TenantId,
        /// Whether to ask
        #[command(flatten)]
        confirmation: Confirmation,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
}

impl Tenant {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        match self {
            Tenant::List { output } => {
                let tenants: Vec<TenantSummary> = connection.agent().await?.get("/v1/tenants").await?;
                output.show(&tenants, |tenants| listing(tenants))?;
            }
            Tenant::Info { tenant, output } => {
                let info: TenantInfo = connection.agent().await?.get(&path(&tenant)).await?;
                output.show(&info, details)?;
            }
            Tenant::Destroy { tenant, confirmation, output } => {
                let asked = confirmation.is_needed("mvm tenant destroy")?;
                let client = connection.agent().await?;
                if asked {
                    let info: TenantInfo = client.get(&path(&tenant)).await?;
                    confirm::by_typing(tenant.as_str(), &loss(&info))?;
                }
                let destroyed: Destroyed = client.delete(&path(&tenant)).await?;
                output.show(&destroyed, destroyed_lines)?;
            }
        }
        Ok(0)
    }
}

fn path(tenant: &TenantId) -> String {
    format!("/v1/tenants/{tenant}")
}

fn loss(info: &TenantInfo) -> String {
    let TenantSummary { id, pools, instances, .. } = &info.summary;
    let pools = counted(*pools, "pool");
    format!("This destroys {id}: {pools}, instances: {}, their data disks, its secrets.", by_state(instances))
}

/// What was destroyed, a line each.
pub fn destroyed_lines(Destroyed { destroyed }: &Destroyed) -> String {
    let lines: Vec<_> = destroyed.iter().map(|what| format!("{what} is destroyed")).collect();
    lines.join("\n")
}

fn listing(tenants: &[TenantSummary]) -> String {
    let rows = tenants.iter().map(|tenant| {
        let TenantSummary { id, net_id, subnet, pools, instances } = tenant;
        [id.into(), net_id.into(), subnet.into(), pools.into(), by_state(instances).into()]
    });
    let nothing = "no tenants: `mvm deploy deployment.toml` makes one";
    table(["TENANT", "NET", "SUBNET", "POOLS", "INSTANCES"], rows, nothing)
}

fn details(info: &TenantInfo) -> String {
    let publish =
        info.publish.iter().map(|p| format!("{}:{} → {}:{}", p.bind, p.port, p.pool, p.target_port));
    let routes =
        info.routes.iter().map(|r| format!("{} → {}:{}", r.name, r.target.pool_id, r.target.target_port));
    properties([
        ("tenant", Some(info.summary.id.to_string())),
        ("net_id", Some(info.summary.net_id.to_string())),
        ("subnet", Some(info.summary.subnet.to_string())),
        ("pools", Some(list(&info.pool_ids))),
        ("instances", Some(by_state(&info.summary.instances))),
        ("quotas", Some(quotas(info))),
        ("published", Some(list(publish))),
        ("routes", Some(list(routes))),
        ("secrets", Some(list(&info.secrets))),
        ("created", Some(clock::utc(info.created_at))),
    ])
}

fn quotas(info: &TenantInfo) -> String {
    let q = &info.quotas;
    let limits = [
        ("max_vcpus", q.max_vcpus.map(u64::from)),
        ("max_mem_mib", q.max_mem_mib),
        ("max_running", q.max_running.map(u64::from)),
        ("max_warm", q.max_warm.map(u64::from)),
        ("max_pools", q.max_pools.map(u64::from)),
        ("max_instances_per_pool", q.max_instances_per_pool.map(u64::from)),
        ("max_disk_gib", q.max_disk_gib),
    ];
    list(limits.into_iter().filter_map(|(name, limit)| Some(format!("{name} {}", limit?))))
}
