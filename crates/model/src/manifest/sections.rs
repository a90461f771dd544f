//! `[tenant]`, `[[pools]]` and `[[publish]]`, read from the tree.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use toml::de::DeTable;

use super::check::{COUNT, DATA_DISK_MIB, MEM_MIB, PORT, SPARES, VCPUS};
use super::reader::{Keys, Table, Value};
use super::{Deployment, Problem, Publish, RequestedNetwork, SecretSource, routing, secrets};
use crate::{
    DesiredCounts, Egress, Endpoints, NetId, PoolId, PoolSpec, Profile, Quotas, Resources, RestartPolicy,
    Role, RoutingTable, RuntimePolicy, SecretScope, SnapshotCompression, TelegramId, TenantId, TenantSubnet,
    User,
};

/// A quota's range: as large as the type for what is counted, 2^40 for what is measured.
const COUNTED: RangeInclusive<u32> = 0..=u32::MAX;
const MEASURED: RangeInclusive<u64> = 0..=1 << 40;
/// Seconds of policies: up to a week.
const SECONDS: RangeInclusive<u32> = 0..=7 * 24 * 60 * 60;
/// What a user may spend in a month, in US dollars.
const MONTHLY_LIMIT: RangeInclusive<u32> = 0..=1_000_000;

/// Reads a whole document.
pub(super) fn document(root: &DeTable<'_>) -> Result<(Deployment, Option<Vec<SecretSource>>), Problem> {
    const ROOT: Keys = Keys {
        known: &["tenant", "pools", "publish", "routes", "users", "endpoints", "secrets"],
        later: &[("overrides", "overrides outside of `mvm new` are")],
    };
    let root = Table::new(String::new(), root, &ROOT)?;
    let (tenant, network, quotas) = root.required("tenant", read_tenant)?;
    let pools = root.list("pools", read_pool)?;
    let publish = root.list("publish", read_publish)?;
    let routes = RoutingTable { routes: root.list("routes", routing::read)? };
    let secrets = root.optional("secrets", secrets::read)?;
    let users = root.list("users", read_user)?;
    let endpoints = root.optional("endpoints", read_endpoints)?.unwrap_or_default();
    Ok((Deployment { tenant, network, quotas, pools, publish, routes, users, endpoints }, secrets))
}

pub(super) fn read_user(value: Value<'_, '_>) -> Result<User, Problem> {
    const USER: Keys = Keys {
        known: &["name", "telegram", "monthly_limit_usd"],
        later: &[("discord", "users of Discord are")],
    };
    let user = value.table(&USER)?;
    let telegram = user.optional("telegram", |value| {
        let id = value.integer(&(1..=TelegramId::MAX))?;
        TelegramId::new(id).ok_or_else(|| value.problem("must be a person's id"))
    })?;
    let monthly_limit_cents = user.optional("monthly_limit_usd", |value| value.hundredths(&MONTHLY_LIMIT))?;
    Ok(User { name: user.required("name", |value| value.parsed())?, telegram, monthly_limit_cents })
}

pub(super) fn read_endpoints(value: Value<'_, '_>) -> Result<Endpoints, Problem> {
    const ENDPOINTS: Keys =
        Keys { known: &["telegram", "anthropic"], later: &[("discord", "endpoints of Discord are")] };
    let endpoints = value.table(&ENDPOINTS)?;
    let public = Endpoints::default();
    Ok(Endpoints {
        telegram: endpoints.optional("telegram", |value| value.parsed())?.unwrap_or(public.telegram),
        anthropic: endpoints.optional("anthropic", |value| value.parsed())?.unwrap_or(public.anthropic),
    })
}

fn read_tenant(section: Value<'_, '_>) -> Result<(TenantId, RequestedNetwork, Quotas), Problem> {
    const TENANT: Keys = Keys { known: &["id", "net_id", "subnet", "quotas"], later: &[] };
    let tenant = section.table(&TENANT)?;
    let id = tenant.required("id", |id| id.parsed())?;
    let net_id = tenant.optional("net_id", |value| {
        let number = value.integer(&(0..=u64::from(NetId::MAX)))?;
        NetId::new(number).map_err(|error| value.problem(error.to_string()))
    })?;
    let subnet = tenant.optional("subnet", |value| {
        let net: Ipv4Net = value.parsed_as("a subnet: write one as 10.240.7.0/24")?;
        TenantSubnet::try_from(net).map_err(|error| value.problem(error.to_string()))
    })?;
    let quotas = tenant.optional("quotas", read_quotas)?.unwrap_or_default();
    Ok((id, RequestedNetwork { net_id, subnet }, quotas))
}

fn read_quotas(section: Value<'_, '_>) -> Result<Quotas, Problem> {
    const QUOTAS: Keys = Keys {
        known: &[
            "max_vcpus",
            "max_mem_mib",
            "max_running",
            "max_warm",
            "max_pools",
            "max_instances_per_pool",
            "max_disk_gib",
        ],
        later: &[],
    };
    let quotas = section.table(&QUOTAS)?;
    let counted = |name| quotas.optional(name, |value| value.integer(&COUNTED));
    let measured = |name| quotas.optional(name, |value| value.integer(&MEASURED));
    Ok(Quotas {
        max_vcpus: counted("max_vcpus")?,
        max_mem_mib: measured("max_mem_mib")?,
        max_running: counted("max_running")?,
        max_warm: counted("max_warm")?,
        max_pools: counted("max_pools")?,
        max_instances_per_pool: counted("max_instances_per_pool")?,
        max_disk_gib: measured("max_disk_gib")?,
    })
}

const POOL: Keys = Keys {
    known: &[
        "id",
        "role",
        "profile",
        "image",
        "vcpus",
        "mem_mib",
        "data_disk_mib",
        "desired_running",
        "desired_warm",
        "desired_sleeping",
        "egress",
        "secret_scopes",
        "runtime_policy",
        "restart",
        "sleep_after_seconds",
        "snapshot_compression",
        "spares",
    ],
    later: &[
        ("flake", "flake images are"),
        ("peer_traffic", "peer traffic is"),
        ("integrations", "integrations are"),
        ("pinned", "pinned pools are"),
        ("critical", "critical pools are"),
    ],
};

fn read_pool(section: Value<'_, '_>) -> Result<PoolSpec, Problem> {
    let pool = section.table(&POOL)?;
    let count = |name| Ok(pool.optional(name, |value| value.integer(&COUNT))?.unwrap_or_default());
    let role = pool.optional("role", |value| value.parsed::<Role>())?.unwrap_or_default();
    let profile = pool.optional("profile", read_profile)?.unwrap_or_default();
    // A profile's own recipe has its name.
    let image = pool.optional("image", read_image)?.unwrap_or_else(|| profile.0.clone());
    Ok(PoolSpec {
        id: pool.required("id", |value| value.parsed())?,
        role,
        profile,
        image,
        resources: read_resources(&pool)?,
        desired: DesiredCounts {
            running: count("desired_running")?,
            warm: count("desired_warm")?,
            sleeping: count("desired_sleeping")?,
        },
        egress: pool.optional("egress", read_egress)?.unwrap_or_default(),
        secret_scopes: pool.optional("secret_scopes", |value| value.list(read_scope))?,
        runtime_policy: pool.optional("runtime_policy", read_runtime_policy)?.unwrap_or_default(),
        restart: pool.optional("restart", read_restart)?.unwrap_or(RestartPolicy::default_for(role)),
        sleep_after_seconds: pool
            .optional("sleep_after_seconds", |value| value.integer(&SECONDS))?
            .unwrap_or(PoolSpec::default_sleep_after_seconds()),
        snapshot_compression: pool.optional("snapshot_compression", read_compression)?.unwrap_or_default(),
        spares: pool
            .optional("spares", |value| value.integer(&SPARES))?
            .unwrap_or(PoolSpec::default_spares()),
    })
}

fn read_resources(pool: &Table<'_, '_>) -> Result<Resources, Problem> {
    let default = Resources::default();
    // What is between 0 and the smallest disk is refused with the other checks.
    let disk = 0..=*DATA_DISK_MIB.end();
    Ok(Resources {
        vcpus: pool.optional("vcpus", |value| value.integer(&VCPUS))?.unwrap_or(default.vcpus),
        mem_mib: pool.optional("mem_mib", |value| value.integer(&MEM_MIB))?.unwrap_or(default.mem_mib),
        data_disk_mib: pool
            .optional("data_disk_mib", |value| value.integer(&disk))?
            .unwrap_or(default.data_disk_mib),
    })
}

fn read_profile(value: Value<'_, '_>) -> Result<Profile, Problem> {
    // Named as pools are: it is part of paths.
    let name: PoolId = value.parsed()?;
    Ok(Profile(name.into()))
}

fn read_image(value: Value<'_, '_>) -> Result<String, Problem> {
    let image = value.filled_text()?;
    if image.starts_with("oci:") {
        return Err(value.problem("OCI images are not supported by this version"));
    }
    Ok(image)
}

fn read_egress(value: Value<'_, '_>) -> Result<Egress, Problem> {
    match value.as_text() {
        Some("any") => return Ok(Egress::Any),
        Some("none") => return Ok(Egress::None),
        Some(_) => {
            return Err(value.problem("must be a list, as [\"api.example.org:443\"], or \"any\" or \"none\""));
        }
        None => {}
    }
    let rules = value.list(|rule| match rule.text()? {
        "any" => Err(rule.problem("\"any\" stands alone: write egress = \"any\"")),
        _ => rule.parsed(),
    })?;
    Ok(if rules.is_empty() { Egress::None } else { Egress::Only(rules) })
}

fn read_scope(value: Value<'_, '_>) -> Result<SecretScope, Problem> {
    const SCOPE: Keys = Keys { known: &["integration", "keys"], later: &[] };
    let scope = value.table(&SCOPE)?;
    Ok(SecretScope {
        integration: scope.required("integration", |value| value.filled_text())?,
        keys: scope.required("keys", |value| value.list(|key| key.filled_text()))?,
    })
}

fn read_runtime_policy(value: Value<'_, '_>) -> Result<RuntimePolicy, Problem> {
    const POLICY: Keys = Keys {
        known: &[
            "min_running_seconds",
            "min_warm_seconds",
            "drain_timeout_seconds",
            "graceful_shutdown_seconds",
        ],
        later: &[],
    };
    let policy = value.table(&POLICY)?;
    let default = RuntimePolicy::default();
    let seconds =
        |name, default| Ok(policy.optional(name, |value| value.integer(&SECONDS))?.unwrap_or(default));
    Ok(RuntimePolicy {
        min_running_seconds: seconds("min_running_seconds", default.min_running_seconds)?,
        min_warm_seconds: seconds("min_warm_seconds", default.min_warm_seconds)?,
        drain_timeout_seconds: seconds("drain_timeout_seconds", default.drain_timeout_seconds)?,
        graceful_shutdown_seconds: seconds("graceful_shutdown_seconds", default.graceful_shutdown_seconds)?,
    })
}

fn read_restart(value: Value<'_, '_>) -> Result<RestartPolicy, Problem> {
    let text = value.text()?;
    let all = [RestartPolicy::OnFailure, RestartPolicy::OnDemand, RestartPolicy::Never];
    all.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
        value.problem(format!("`{text}` is not a restart policy: use on-failure, on-demand or never"))
    })
}

fn read_compression(value: Value<'_, '_>) -> Result<SnapshotCompression, Problem> {
    let text = value.text()?;
    SnapshotCompression::ALL
        .into_iter()
        .find(|compression| compression.as_str() == text)
        .ok_or_else(|| value.problem(format!("`{text}` is not a compression: use none, lz4 or zstd")))
}

fn read_publish(value: Value<'_, '_>) -> Result<Publish, Problem> {
    const PUBLISH: Keys = Keys { known: &["bind", "port", "pool", "target_port"], later: &[] };
    let publish = value.table(&PUBLISH)?;
    Ok(Publish {
        bind: publish
            .optional("bind", |value| value.parsed_as::<Ipv4Addr>("an IPv4 address, as 127.0.0.1"))?
            .unwrap_or(Publish::DEFAULT_BIND),
        port: publish.required("port", |value| value.integer(&PORT))?,
        pool: publish.required("pool", |value| value.parsed())?,
        target_port: publish.required("target_port", |value| value.integer(&PORT))?,
    })
}
