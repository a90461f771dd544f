//! What commands may say about tenants and pools: a manifest's keys as flags.

use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use clap::Args;
use mvm_model::TenantId;
use mvm_model::manifest::{Change, ChangeOf, KeyChanges, PortChanges, Publish, RouteChanges};
use mvm_protocol::api::{ApiError, ChangeRequest, DeployMode};
use toml::{Table, Value};

use crate::client::Client;
use crate::failure::Failure;
use crate::outcome::{Outcome, follow};
use crate::sources;

/// A quota: a number, or `none` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<i64>);

impl FromStr for Limit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|number| Self(Some(number)))
                .map_err(|_| "write a number, or none".to_owned()),
        }
    }
}

/// What a tenant may use.
#[derive(Debug, Args)]
pub struct Quotas {
    /// vCPUs of its running machines together; none is no limit, here as below
    #[arg(long, value_name = "N")]
    max_vcpus: Option<Limit>,
    /// Memory of its running and paused machines together, in MiB
    #[arg(long, value_name = "N")]
    max_mem_mib: Option<Limit>,
    /// Machines that run at once
    #[arg(long, value_name = "N")]
    max_running: Option<Limit>,
    /// Machines that are paused at once
    #[arg(long, value_name = "N")]
    max_warm: Option<Limit>,
    /// Pools
    #[arg(long, value_name = "N")]
    max_pools: Option<Limit>,
    /// Instances of one pool, in any state
    #[arg(long, value_name = "N")]
    max_instances_per_pool: Option<Limit>,
    /// Data disks together, in GiB
    #[arg(long, value_name = "N")]
    max_disk_gib: Option<Limit>,
}

impl Quotas {
    /// As keys of `[tenant]`.
    pub fn keys(&self) -> KeyChanges {
        let limits = [
            ("max_vcpus", self.max_vcpus),
            ("max_mem_mib", self.max_mem_mib),
            ("max_running", self.max_running),
            ("max_warm", self.max_warm),
            ("max_pools", self.max_pools),
            ("max_instances_per_pool", self.max_instances_per_pool),
            ("max_disk_gib", self.max_disk_gib),
        ];
        let given = limits.into_iter().filter_map(|(name, limit)| Some((name, limit?)));
        given.map(|(name, Limit(limit))| (format!("quotas.{name}"), limit.map(Value::from))).collect()
    }
}

/// What leads to a tenant's machines.
#[derive(Debug, Args)]
pub struct Ways {
    /// Publish a port of the host (repeat for several); one that listens there leads to the new place
    #[arg(short, long, value_name = "[BIND:]PORT:POOL:TARGET_PORT", value_parser = published)]
    publish: Vec<Publish>,
    /// Publish a port no more
    #[arg(long, value_name = "[BIND:]PORT", value_parser = unpublished)]
    unpublish: Vec<(Option<Ipv4Addr>, u16)>,
    /// Give its gateways a route (repeat for several), as name=all,port=8080,path_prefix=/,pool=workers,target_port=8080;
    /// source_cidr=NET and instance=i-0000002a or an address narrow it; one with this name is replaced
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = route)]
    route: Vec<Table>,
    /// Take a route away
    #[arg(long, value_name = "NAME")]
    unroute: Vec<String>,
}

impl Ways {
    /// As changes.
    pub fn changes(self) -> (PortChanges, RouteChanges) {
        let Self { publish, unpublish, route, unroute } = self;
        (PortChanges { add: publish, remove: unpublish }, RouteChanges { add: route, remove: unroute })
    }
}

fn published(text: &str) -> Result<Publish, String> {
    let wrong = || "write [BIND:]PORT:POOL:TARGET_PORT, as 8080:gateways:8080".to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let (bind, [port, pool, target_port]) = match parts.as_slice() {
        [port, pool, target] => (Publish::DEFAULT_BIND, [port, pool, target]),
        [bind, port, pool, target] => (bind.parse().map_err(|_| wrong())?, [port, pool, target]),
        _ => return Err(wrong()),
    };
    let number = |text: &str| text.parse().map_err(|_| wrong());
    let pool = pool.parse().map_err(|error| format!("{error}"))?;
    Ok(Publish { bind, port: number(port)?, pool, target_port: number(target_port)? })
}

fn unpublished(text: &str) -> Result<(Option<Ipv4Addr>, u16), String> {
    let wrong = || "write [BIND:]PORT, as 8080 or 127.0.0.1:8080".to_owned();
    let (bind, port) = match text.rsplit_once(':') {
        Some((bind, port)) => (Some(bind.parse().map_err(|_| wrong())?), port),
        None => (None, text),
    };
    Ok((bind, port.parse().map_err(|_| wrong())?))
}

/// As a table of `[[routes]]`; what is wrong with it beyond its form is found where manifests are read.
fn route(text: &str) -> Result<Table, String> {
    const KEYS: [&str; 7] = ["name", "port", "path_prefix", "source_cidr", "pool", "instance", "target_port"];
    let mut given: Vec<(&str, String)> = Vec::new();
    for piece in text.split(',') {
        match piece.split_once('=').filter(|(key, _)| KEYS.contains(key)) {
            Some((key, _)) if given.iter().any(|(other, _)| *other == key) => {
                return Err(format!("{key} is there twice"));
            }
            Some((key, value)) => given.push((key, value.to_owned())),
            // A path may have commas.
            None => match given.last_mut() {
                Some(("path_prefix", path)) => path.push_str(&format!(",{piece}")),
                _ => return Err(format!("`{piece}` is none of {}=…", KEYS.join("=…, "))),
            },
        }
    }
    let number = |text: &str| text.parse::<i64>().map_or_else(|_| text.into(), Value::from);
    let (mut route, mut rule, mut target) = (Table::new(), Table::new(), Table::new());
    target.insert("instance_selector".into(), "any".into());
    for (key, value) in given {
        match key {
            "name" => drop(route.insert(key.into(), value.into())),
            "port" => drop(rule.insert(key.into(), number(&value))),
            "target_port" => drop(target.insert(key.into(), number(&value))),
            "pool" => drop(target.insert("pool_id".into(), value.into())),
            "instance" => drop(target.insert("instance_selector".into(), selector(&value))),
            _ => drop(rule.insert(key.into(), value.into())),
        }
    }
    route.insert("match_rule".into(), rule.into());
    route.insert("target".into(), target.into());
    Ok(route)
}

fn selector(text: &str) -> Value {
    let by = |name: &str| Value::Table([(name.to_owned(), text.into())].into_iter().collect());
    match text {
        _ if text.starts_with("i-") => by("by_instance"),
        _ if text.parse::<Ipv4Addr>().is_ok() => by("by_ip"),
        other => other.into(),
    }
}

/// What may be said of a pool, new or not.
#[derive(Debug, Args)]
pub struct PoolKeys {
    /// Which packages its image holds: minimal, python
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Its image: a recipe's folder, or a built-in recipe's name; that of the profile where it is not said
    #[arg(long, value_name = "RECIPE")]
    image: Option<String>,
    /// Virtual CPUs of a machine
    #[arg(long, value_name = "N")]
    vcpus: Option<i64>,
    /// Memory of a machine in MiB
    #[arg(long, value_name = "N")]
    mem_mib: Option<i64>,
    /// Data disk of a machine in MiB; 0 is none, and it only grows
    #[arg(long, value_name = "N")]
    data_disk_mib: Option<i64>,
    /// So many instances begin running
    #[arg(long, value_name = "N")]
    running: Option<i64>,
    /// So many instances begin asleep
    #[arg(long, value_name = "N")]
    sleeping: Option<i64>,
    /// What machines may reach: a name or a network with an optional port, as api.example.org:443 or 192.0.2.0/24 (repeat for several), any, or none
    #[arg(long, value_name = "RULE")]
    egress: Vec<String>,
    /// Secrets they are given, as telegram=TELEGRAM_BOT_TOKEN,… (repeat for several scopes), all, or none
    #[arg(long, value_name = "SCOPE=KEY,…")]
    secret_scope: Vec<String>,
    /// No policy puts a machine to sleep that ran for less
    #[arg(long, value_name = "N")]
    min_running_seconds: Option<i64>,
    /// No policy puts a paused machine to sleep before
    #[arg(long, value_name = "N")]
    min_warm_seconds: Option<i64>,
    /// How long a guest may take to finish its work before it sleeps
    #[arg(long, value_name = "N")]
    drain_timeout_seconds: Option<i64>,
    /// How long a guest may take to shut down
    #[arg(long, value_name = "N")]
    graceful_shutdown_seconds: Option<i64>,
    /// What follows a failure: on-failure, on-demand, never
    #[arg(long, value_name = "POLICY")]
    restart_policy: Option<String>,
    /// How long a machine is idle before it is put to sleep; 0 is never
    #[arg(long, value_name = "N")]
    sleep_after_seconds: Option<i64>,
    /// How the memory of sleepers is compressed: none, lz4, zstd
    #[arg(long, value_name = "HOW")]
    snapshot_compression: Option<String>,
    /// VMMs started ahead at most
    #[arg(long, value_name = "N")]
    spares: Option<i64>,
}

impl PoolKeys {
    /// As keys of `[[pools]]`.
    ///
    /// # Errors
    /// A recipe that is not there, scopes that cannot be read.
    pub fn keys(&self) -> Result<KeyChanges, Failure> {
        let numbers = [
            ("vcpus", self.vcpus),
            ("mem_mib", self.mem_mib),
            ("data_disk_mib", self.data_disk_mib),
            ("desired_running", self.running),
            ("desired_sleeping", self.sleeping),
            ("runtime_policy.min_running_seconds", self.min_running_seconds),
            ("runtime_policy.min_warm_seconds", self.min_warm_seconds),
            ("runtime_policy.drain_timeout_seconds", self.drain_timeout_seconds),
            ("runtime_policy.graceful_shutdown_seconds", self.graceful_shutdown_seconds),
            ("sleep_after_seconds", self.sleep_after_seconds),
            ("spares", self.spares),
        ];
        let texts = [
            ("profile", &self.profile),
            ("restart", &self.restart_policy),
            ("snapshot_compression", &self.snapshot_compression),
        ];
        let numbers = numbers.into_iter().filter_map(|(key, number)| Some((key, Value::from(number?))));
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text.as_deref()?.into())));
        let mut keys: KeyChanges =
            numbers.chain(texts).map(|(key, value)| (key.to_owned(), Some(value))).collect();
        if let Some(image) = &self.image {
            let image = sources::image(image, Path::new("")).map_err(|why| at_flag("image", &why))?;
            keys.insert("image".to_owned(), Some(image.into()));
        }
        if !self.egress.is_empty() {
            keys.insert("egress".to_owned(), Some(egress(&self.egress)));
        }
        if !self.secret_scope.is_empty() {
            let scopes = scopes(&self.secret_scope).map_err(|why| at_flag("secret-scope", &why))?;
            keys.insert("secret_scopes".to_owned(), scopes);
        }
        Ok(keys)
    }
}

fn egress(rules: &[String]) -> Value {
    match rules {
        [one] if one == "any" || one == "none" => one.as_str().into(),
        several => Value::Array(several.iter().map(|rule| rule.as_str().into()).collect()),
    }
}

fn scopes(all: &[String]) -> Result<Option<Value>, String> {
    match all {
        [one] if one == "all" => return Ok(None),
        [one] if one == "none" => return Ok(Some(Value::Array(Vec::new()))),
        _ => {}
    }
    let scope = |text: &String| {
        let (integration, keys) = text
            .split_once('=')
            .ok_or("write SCOPE=KEY,…, as telegram=TELEGRAM_BOT_TOKEN; or all, or none")?;
        let keys = keys.split(',').map(Value::from).collect();
        let parts = [("integration", Value::from(integration)), ("keys", Value::Array(keys))];
        Ok(Value::Table(parts.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()))
    };
    all.iter().map(scope).collect::<Result<_, String>>().map(|scopes| Some(Value::Array(scopes)))
}

/// Sends a change and shows how it goes. What the agent says about a key is told at its flag.
pub async fn send(
    client: &Client,
    tenant: &TenantId,
    of: ChangeOf,
    mode: DeployMode,
) -> Result<Outcome, Failure> {
    let request = ChangeRequest { change: Change { tenant: tenant.clone(), of }, mode };
    let outcome = Outcome::new(tenant, mode);
    follow(client, "/v1/change", &request, outcome).await.map_err(|failure| match failure {
        Failure::Refused(ApiError { key: Some(key), message, .. }) => {
            told(&request.change.of, &key, &message)
        }
        other => other,
    })
}

fn at_flag(flag: &str, message: &str) -> Failure {
    Failure::NotDone(format!("--{flag}: {message}"))
}

/// A problem of a key, at the flag that gave it. One of a tenant's other keys says by itself what it is about; what is wrong
/// with other pools, ports and routes comes with their names.
fn told(of: &ChangeOf, key: &str, message: &str) -> Failure {
    match flag(of, key) {
        Some(flag) => at_flag(&flag, message),
        None if key.starts_with("tenant.") => Failure::NotDone(message.to_owned()),
        None => Failure::NotDone(format!("{key}: {message}")),
    }
}

fn flag(of: &ChangeOf, key: &str) -> Option<String> {
    // `pools[1].secret_scopes[0].keys[1]` is about `secret_scopes`.
    let bare: Vec<&str> = key.split('.').map(|part| part.split('[').next().unwrap_or_default()).collect();
    let keys = match of {
        ChangeOf::Tenant { ports, routes, .. }
            if matches!(bare[0], "publish" | "routes" | "unpublish" | "unroute") =>
        {
            let (flag, given) = match bare[0] {
                "publish" => ("publish", !ports.add.is_empty()),
                "routes" => ("route", !routes.add.is_empty()),
                other => (other, true),
            };
            return given.then(|| flag.to_owned());
        }
        ChangeOf::Tenant { keys, .. } | ChangeOf::Pool { keys, .. } => keys,
        ChangeOf::Instance { .. } => return None,
    };
    let name = bare.get(1..)?;
    let given = keys.keys().find(|given| {
        let parts: Vec<&str> = given.split('.').collect();
        name.starts_with(&parts)
    })?;
    let flag = match given.rsplit('.').next()? {
        "desired_running" => "running",
        "desired_sleeping" => "sleeping",
        "secret_scopes" => "secret-scope",
        "restart" => "restart-policy",
        other => other,
    };
    Some(flag.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use mvm_model::manifest::Verb;

    use super::*;

    #[test]
    fn ports_are_written_as_one_writes_them_elsewhere() {
        let publish = published("8080:gateways:80").unwrap();
        assert_eq!((publish.bind, publish.port, publish.target_port), (Publish::DEFAULT_BIND, 8080, 80));
        assert_eq!(published("0.0.0.0:1:g:2").unwrap().bind, Ipv4Addr::UNSPECIFIED);
        assert_eq!(unpublished("127.0.0.1:80"), Ok((Some(Ipv4Addr::LOCALHOST), 80)));
        assert_eq!(unpublished("80"), Ok((None, 80)));
        for bad in ["", "8080", "8080:g", "x:g:1", "1:G:2", "a:1:g:2", "1:g:70000", "0:1:2:3:4"] {
            assert!(published(bad).is_err(), "{bad}");
        }
        assert!(unpublished("x").is_err());
    }

    #[test]
    fn a_route_is_a_table_of_the_manifest() {
        let text = "name=a,port=80,path_prefix=/x,y,source_cidr=192.0.2.0/24,pool=w,instance=i-0000002a,target_port=90";
        let expected: Table = r#"
            name = "a"
            match_rule = { port = 80, path_prefix = "/x,y", source_cidr = "192.0.2.0/24" }
            target = { pool_id = "w", instance_selector = { by_instance = "i-0000002a" }, target_port = 90 }
        "#
        .parse()
        .unwrap();
        assert_eq!(route(text).unwrap(), expected);
        assert_eq!(route("name=a,pool=w").unwrap()["target"]["instance_selector"], "any".into());
        assert_eq!(selector("10.240.0.4").to_string(), "{ by_ip = \"10.240.0.4\" }");
        for bad in ["", "name=a,b", "colour=red", "name=a,name=b"] {
            assert!(route(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn scopes_are_all_none_or_named() {
        let scopes = |all: &[&str]| scopes(&all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(scopes(&["all"]), Ok(None));
        assert_eq!(scopes(&["none"]), Ok(Some(Value::Array(Vec::new()))));
        let named = scopes(&["a=X,Y", "b=Z"]).unwrap().unwrap().to_string();
        assert_eq!(
            named,
            r#"[{ integration = "a", keys = ["X", "Y"] }, { integration = "b", keys = ["Z"] }]"#
        );
        assert!(scopes(&["a"]).is_err());
    }

    #[test]
    fn a_problem_is_told_at_the_flag_that_gave_it() {
        let keys = |all: &[&str]| all.iter().map(|key| ((*key).to_owned(), None)).collect();
        let pool = ChangeOf::Pool {
            verb: Verb::Update,
            pool: "w".parse().unwrap(),
            keys: keys(&[
                "vcpus",
                "desired_running",
                "secret_scopes",
                "restart",
                "runtime_policy.min_warm_seconds",
            ]),
        };
        let told = |key: &str| flag(&pool, key);
        assert_eq!(told("pools[1].vcpus").as_deref(), Some("vcpus"));
        assert_eq!(told("pools[1].secret_scopes[0].keys[1]").as_deref(), Some("secret-scope"));
        assert_eq!(told("pools[1].restart").as_deref(), Some("restart-policy"));
        assert_eq!(told("pools[1].runtime_policy.min_warm_seconds").as_deref(), Some("min-warm-seconds"));
        assert_eq!(told("pools[1].mem_mib"), None);
        assert_eq!(told("tenant.quotas.max_running"), None);
        let tenant = ChangeOf::Tenant {
            verb: Verb::Update,
            keys: keys(&["quotas.max_running"]),
            ports: PortChanges { add: vec![published("1:g:2").unwrap()], remove: Vec::new() },
            routes: RouteChanges::default(),
        };
        assert_eq!(flag(&tenant, "tenant.quotas.max_running").as_deref(), Some("max-running"));
        assert_eq!(flag(&tenant, "publish[3].pool").as_deref(), Some("publish"));
        assert_eq!(flag(&tenant, "routes[0].name"), None);
        assert_eq!(flag(&tenant, "unpublish").as_deref(), Some("unpublish"));
    }
}
