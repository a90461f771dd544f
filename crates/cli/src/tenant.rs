//! `mvm tenant`

use clap::Subcommand;
use mvm_model::TenantId;
use mvm_model::manifest::{ChangeOf, PortChanges, RouteChanges, Verb};
use mvm_protocol::api::{DeployMode, Destroyed, TenantInfo, TenantSummary};
use toml::Value;

use crate::change::{self, Quotas, Ways};
use crate::clock;
use crate::confirm::{self, Confirmation};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::loss;
use crate::output::{self, ManifestFormat, Output, properties, table};
use crate::secrets::Secrets;
use crate::view::{by_state, list};

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
        /// How to write the result; toml is a manifest that asks for what there is
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
        output: ManifestFormat,
    },
    /// Create a tenant without pools
    Create {
        /// Its name
        tenant: TenantId,
        /// Its network number [default: the lowest that is free]
        #[arg(long, value_name = "N")]
        net_id: Option<i64>,
        /// Its subnet, inside of 10.240.0.0/12 [default: a /24 by its number]
        #[arg(long, value_name = "NET")]
        subnet: Option<String>,
        /// What it may use
        #[command(flatten)]
        quotas: Quotas,
        /// Change nothing: show what would change, key by key
        #[arg(long)]
        dry_run: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Change a tenant's limits, published ports and routes; what is not named stays
    Update {
        /// The tenant
        tenant: TenantId,
        /// What it may use
        #[command(flatten)]
        quotas: Quotas,
        /// What leads to its machines
        #[command(flatten)]
        ways: Ways,
        /// Change nothing: show what would change, key by key
        #[arg(long)]
        dry_run: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// List, set and rotate a tenant's secrets
    #[command(subcommand)]
    Secrets(Secrets),
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
            Tenant::Info { tenant, output: ManifestFormat::Toml } => {
                let manifest = format!("{}/manifest", path(&tenant));
                let mut text = connection.agent().await?.text(&manifest).await?;
                while let Some(piece) = text.piece().await? {
                    output::write(&piece)?;
                }
            }
            Tenant::Info { tenant, output } => {
                let info: TenantInfo = connection.agent().await?.get(&path(&tenant)).await?;
                Output::from(output).show(&info, details)?;
            }
            Tenant::Create { tenant, net_id, subnet, quotas, dry_run, output } => {
                let mut keys = quotas.keys();
                let own = [("net_id", net_id.map(Value::from)), ("subnet", subnet.map(Value::from))];
                keys.extend(own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Some(value?)))));
                let (ports, routes) = (PortChanges::default(), RouteChanges::default());
                let of = ChangeOf::Tenant { verb: Verb::Create, keys, ports, routes };
                change(connection, &tenant, of, dry_run, output).await?;
            }
            Tenant::Update { tenant, quotas, ways, dry_run, output } => {
                let (keys, (ports, routes)) = (quotas.keys(), ways.changes());
                if keys.is_empty() && ports == PortChanges::default() && routes == RouteChanges::default() {
                    let message = "say what is to change: `mvm tenant update --help` lists it";
                    return Err(Failure::Usage(message.to_owned()));
                }
                let of = ChangeOf::Tenant { verb: Verb::Update, keys, ports, routes };
                change(connection, &tenant, of, dry_run, output).await?;
            }
            Tenant::Secrets(secrets) => return secrets.run(connection).await,
            Tenant::Destroy { tenant, confirmation, output } => {
                let asked = confirmation.is_needed("mvm tenant destroy")?;
                let client = connection.agent().await?;
                if asked {
                    let info: TenantInfo = client.get(&path(&tenant)).await?;
                    confirm::by_typing(tenant.as_str(), &loss::of_tenant(&client, &info).await?)?;
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

async fn change(
    connection: &Connection,
    tenant: &TenantId,
    of: ChangeOf,
    dry_run: bool,
    output: Output,
) -> Result<(), Failure> {
    let mode = DeployMode { dry_run, ..DeployMode::default() };
    let outcome = change::send(&connection.agent().await?, tenant, of, mode).await?;
    outcome.show(output, "this command")
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
