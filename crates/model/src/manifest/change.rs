//! Changes that commands make to what is wanted of a tenant. They say what a manifest says, in its keys, and are read
//! and checked as one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::document::{Document, Section};
use super::{Deployment, Manifest, Problem, Publish};
use crate::{PoolId, TenantId};

/// Keys with their new values; none takes one away, so that its default holds. A key inside of another is dotted:
/// `quotas.max_running`.
pub type KeyChanges = BTreeMap<String, Option<Value>>;

/// What a command changes of what is wanted of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The tenant.
    pub tenant: TenantId,
    /// What of it.
    pub of: ChangeOf,
}

/// Whether something is made or was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// It is new.
    Create,
    /// It is there.
    Update,
}

/// What is changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOf {
    /// The tenant itself.
    Tenant {
        /// New or there.
        verb: Verb,
        /// Keys of `[tenant]`.
        keys: KeyChanges,
        /// Its published ports.
        #[serde(default)]
        ports: PortChanges,
        /// Its routes.
        #[serde(default)]
        routes: RouteChanges,
    },
    /// One of its pools.
    Pool {
        /// New or there.
        verb: Verb,
        /// Which.
        pool: PoolId,
        /// Keys of its `[[pools]]`.
        keys: KeyChanges,
    },
    /// One more instance is wanted.
    Instance {
        /// Of this pool.
        pool: PoolId,
        /// It begins asleep.
        asleep: bool,
    },
}

/// Published ports that come and go. One that comes takes the place of the one that listens where it does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortChanges {
    /// These come.
    pub add: Vec<Publish>,
    /// These go: the port, and the address where the port is published at several.
    pub remove: Vec<(Option<Ipv4Addr>, u16)>,
}

/// Routes that come and go. One that comes takes the place of the one with its name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteChanges {
    /// These come, each as in `[[routes]]`.
    pub add: Vec<Table>,
    /// These go, by name.
    pub remove: Vec<String>,
}

impl ChangeOf {
    /// What is wanted once this is done. `present` has the tenant, and the pool where it is not new; `have` is how many
    /// instances the pool has.
    ///
    /// # Errors
    /// The key of what cannot be, as [`Manifest::parse`] gives it.
    pub fn apply(&self, present: &Deployment, have: u32) -> Result<Deployment, Problem> {
        let mut document = Document::of(present);
        let index = |pool: &PoolId| present.pools.iter().position(|other| other.id == *pool);
        match self {
            ChangeOf::Tenant { keys, ports, routes, .. } => {
                change_tenant(&mut document, keys);
                change_ports(&mut document, present, ports)?;
                change_routes(&mut document, routes)?;
            }
            ChangeOf::Pool { pool, keys, .. } => {
                let index = index(pool).unwrap_or_else(|| {
                    document.pools.push(vec![("id".to_owned(), pool.as_str().into())]);
                    document.pools.len() - 1
                });
                change_pool(&mut document.pools[index], keys);
            }
            ChangeOf::Instance { pool, asleep } => {
                let mut wanted = present.clone();
                if let Some(index) = index(pool) {
                    let desired = &mut wanted.pools[index].desired;
                    // Those that are too many count as wanted from now on; one that is missing is the one to be made.
                    let more = (have + 1).saturating_sub(desired.total());
                    let count = if *asleep { &mut desired.sleeping } else { &mut desired.running };
                    *count = count.saturating_add(more);
                }
                return wanted.check().map(|()| wanted);
            }
        }
        let manifest = Manifest::parse(&document.text());
        manifest.map(|manifest| manifest.deployment).map_err(|error| Problem::new(error.key, error.message))
    }
}

fn change_tenant(document: &mut Document, keys: &KeyChanges) {
    for (key, value) in keys {
        match key.strip_prefix("quotas.") {
            Some(quota) => set(&mut document.quotas, quota, value.clone()),
            None => set(&mut document.tenant, key, value.clone()),
        }
    }
}

fn change_pool(pool: &mut Section, keys: &KeyChanges) {
    // A profile's own image has its name; it goes with its profile unless one of its own is named.
    let text = |pool: &Section, name: &str| {
        pool.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.as_str().map(str::to_owned))
    };
    if keys.contains_key("profile") && text(pool, "image") == text(pool, "profile") {
        set(pool, "image", None);
    }
    for (key, value) in keys {
        match key.split_once('.') {
            None => set(pool, key, value.clone()),
            Some((outer, inner)) => {
                let old = pool.iter().find(|(name, _)| name == outer).and_then(|(_, value)| value.as_table());
                let mut table = old.cloned().unwrap_or_default();
                match value {
                    Some(value) => table.insert(inner.to_owned(), value.clone()),
                    None => table.remove(inner),
                };
                set(pool, outer, Some(Value::Table(table)));
            }
        }
    }
}

fn change_ports(document: &mut Document, present: &Deployment, ports: &PortChanges) -> Result<(), Problem> {
    let mut all: Vec<&Publish> = present.publish.iter().collect();
    for (bind, port) in &ports.remove {
        let meant = |publish: &Publish| publish.port == *port && bind.is_none_or(|bind| bind == publish.bind);
        let address = |bind: Ipv4Addr| format!("{bind}:{port}");
        let found: Vec<String> =
            all.iter().filter(|publish| meant(publish)).map(|publish| address(publish.bind)).collect();
        match found.as_slice() {
            [] => {
                let what = bind.map_or_else(|| port.to_string(), address);
                let message = format!("{what} is not published by {}", present.tenant);
                return Err(Problem::new("unpublish", message));
            }
            [_] => all.retain(|publish| !meant(publish)),
            several => {
                let message = format!("{port} is ambiguous: say which of {}", several.join(", "));
                return Err(Problem::new("unpublish", message));
            }
        }
    }
    for publish in &ports.add {
        match all.iter_mut().find(|other| (other.bind, other.port) == (publish.bind, publish.port)) {
            Some(other) => *other = publish,
            None => all.push(publish),
        }
    }
    let publish = all.into_iter().cloned().collect();
    document.publish = Document::of(&Deployment { publish, ..present.clone() }).publish;
    Ok(())
}

fn change_routes(document: &mut Document, routes: &RouteChanges) -> Result<(), Problem> {
    let named = |route: &Section, name: Option<&Value>| {
        name.is_some() && route.iter().find(|(key, _)| key == "name").map(|(_, value)| value) == name
    };
    for name in &routes.remove {
        let before = document.routes.len();
        document.routes.retain(|route| !named(route, Some(&Value::String(name.clone()))));
        if document.routes.len() == before {
            return Err(Problem::new("unroute", format!("there is no route `{name}`")));
        }
    }
    for route in &routes.add {
        let section: Section = route.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        match document.routes.iter_mut().find(|other| named(other, route.get("name"))) {
            Some(other) => *other = section,
            None => document.routes.push(section),
        }
    }
    Ok(())
}

fn set(section: &mut Section, key: &str, value: Option<Value>) {
    let place = section.iter().position(|(name, _)| name == key);
    match (place, value) {
        (Some(place), Some(value)) => section[place].1 = value,
        (Some(place), None) => drop(section.remove(place)),
        (None, Some(value)) => section.push((key.to_owned(), value)),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DesiredCounts, Egress, RestartPolicy, Role};

    const PRESENT: &str = r#"
[tenant]
id = "alice"
quotas = { max_running = 3, max_vcpus = 20 }
[[pools]]
id = "gateways"
role = "gateway"
desired_running = 1
[[pools]]
id = "workers"
desired_running = 1
runtime_policy = { drain_timeout_seconds = 7 }
[[publish]]
port = 8080
pool = "gateways"
target_port = 80
[[routes]]
name = "all"
match_rule = { port = 80 }
target = { pool_id = "workers", instance_selector = "any", target_port = 80 }
"#;

    fn present() -> Deployment {
        Manifest::parse(PRESENT).unwrap().deployment
    }

    fn keys<const N: usize>(keys: [(&str, Option<Value>); N]) -> KeyChanges {
        keys.map(|(key, value)| (key.to_owned(), value)).into()
    }

    fn pool<const N: usize>(pool: &str, changes: [(&str, Option<Value>); N]) -> ChangeOf {
        ChangeOf::Pool { verb: Verb::Update, pool: pool.parse().unwrap(), keys: keys(changes) }
    }

    fn tenant(ports: PortChanges, routes: RouteChanges) -> ChangeOf {
        ChangeOf::Tenant { verb: Verb::Update, keys: KeyChanges::new(), ports, routes }
    }

    fn to(change: &ChangeOf) -> Deployment {
        change.apply(&present(), 1).unwrap()
    }

    fn refused(change: &ChangeOf) -> String {
        change.apply(&present(), 1).unwrap_err().to_string()
    }

    #[test]
    fn a_change_of_nothing_changes_nothing() {
        assert_eq!(to(&pool("workers", [])), present());
        assert_eq!(to(&tenant(PortChanges::default(), RouteChanges::default())), present());
    }

    #[test]
    fn only_the_keys_that_are_named_change() {
        let change = pool(
            "workers",
            [
                ("mem_mib", Some(256.into())),
                ("egress", Some("any".into())),
                ("runtime_policy.min_running_seconds", Some(5.into())),
                ("restart", Some("never".into())),
            ],
        );
        let mut expected = present();
        let workers = &mut expected.pools[1];
        workers.resources.mem_mib = 256;
        workers.egress = Egress::Any;
        workers.runtime_policy.min_running_seconds = 5;
        workers.restart = RestartPolicy::Never;
        assert_eq!(to(&change), expected);
        // And back to the defaults.
        let back =
            ["mem_mib", "egress", "runtime_policy.min_running_seconds", "restart"].map(|key| (key, None));
        assert_eq!(pool("workers", back).apply(&expected, 1).unwrap(), present());

        let quotas = keys([("quotas.max_running", Some(4.into())), ("quotas.max_vcpus", None)]);
        let (ports, routes) = (PortChanges::default(), RouteChanges::default());
        let changed = to(&ChangeOf::Tenant { verb: Verb::Update, keys: quotas, ports, routes });
        assert_eq!((changed.quotas.max_running, changed.quotas.max_vcpus), (Some(4), None));
    }

    #[test]
    fn a_new_pool_has_the_defaults_of_its_role_and_a_profile_brings_its_image() {
        let new = to(&pool("second", [("role", Some("gateway".into()))]));
        assert_eq!(new.pools[2].role, Role::Gateway);
        assert_eq!(
            (new.pools[2].restart, new.pools[2].image.as_str()),
            (RestartPolicy::OnFailure, "minimal")
        );
        assert_eq!(to(&pool("workers", [("profile", Some("python".into()))])).pools[1].image, "python");
        let own = pool("workers", [("image", Some("/own".into()))]).apply(&present(), 1).unwrap();
        let kept = pool("workers", [("profile", Some("python".into()))]).apply(&own, 1).unwrap();
        assert_eq!(kept.pools[1].image, "/own");
    }

    #[test]
    fn one_more_instance_is_one_more_than_there_are() {
        let workers = || "workers".parse().unwrap();
        let wanted = |have: u32, asleep: bool| {
            let change = ChangeOf::Instance { pool: workers(), asleep };
            let DesiredCounts { running, sleeping, .. } =
                change.apply(&present(), have).unwrap().pools[1].desired;
            (running, sleeping)
        };
        assert_eq!(wanted(1, false), (2, 0));
        assert_eq!(wanted(1, true), (1, 1));
        assert_eq!(wanted(0, false), (1, 0), "the one that is missing");
        assert_eq!(wanted(3, true), (1, 3), "those that were too many stay");
        let full = ChangeOf::Instance { pool: workers(), asleep: true }.apply(&present(), 300).unwrap_err();
        assert!(full.message.contains("has addresses for 252 instances"), "{full}");
        let quota = ChangeOf::Instance { pool: workers(), asleep: false }.apply(&present(), 3).unwrap_err();
        assert_eq!(quota.key, "tenant.quotas.max_running");
    }

    #[test]
    fn ports_and_routes_come_and_go_by_address_and_name() {
        let port = |port, target_port| Publish {
            bind: Publish::DEFAULT_BIND,
            port,
            pool: "gateways".parse().unwrap(),
            target_port,
        };
        let none = RouteChanges::default;
        let changed =
            to(&tenant(PortChanges { add: vec![port(8080, 81), port(9090, 90)], remove: vec![] }, none()));
        assert_eq!(changed.publish, [port(8080, 81), port(9090, 90)]);
        let moved = tenant(PortChanges { add: vec![port(9090, 90)], remove: vec![(None, 8080)] }, none());
        assert_eq!(to(&moved).publish, [port(9090, 90)]);
        let elsewhere = (Some("0.0.0.0".parse().unwrap()), 8080);
        let gone = tenant(PortChanges { add: vec![], remove: vec![elsewhere] }, none());
        assert_eq!(refused(&gone), "unpublish: 0.0.0.0:8080 is not published by alice");
        let mut twice = present();
        twice.publish.push(Publish { bind: [127, 0, 0, 2].into(), ..port(8080, 80) });
        let unpublish = |bind: Option<Ipv4Addr>| {
            let ports = PortChanges { add: vec![], remove: vec![(bind, 8080)] };
            tenant(ports, none()).apply(&twice, 1).map(|wanted| wanted.publish)
        };
        assert_eq!(
            unpublish(None).unwrap_err().to_string(),
            "unpublish: 8080 is ambiguous: say which of 127.0.0.1:8080, 127.0.0.2:8080"
        );
        assert_eq!(unpublish(Some(Publish::DEFAULT_BIND)).unwrap(), twice.publish[1..]);

        let route = |text: &str| text.parse::<Table>().unwrap();
        let target = "target = { pool_id = 'workers', instance_selector = 'any', target_port = 80 }";
        let other = route(&format!("name = 'all'\nmatch_rule = {{ path_prefix = '/x' }}\n{target}"));
        let changed = to(&tenant(PortChanges::default(), RouteChanges { add: vec![other], remove: vec![] }));
        assert_eq!(changed.routes.routes.len(), 1);
        assert_eq!(changed.routes.routes[0].match_rule.path_prefix.as_deref(), Some("/x"));
        let remove = RouteChanges { add: vec![], remove: vec!["all".to_owned()] };
        assert_eq!(to(&tenant(PortChanges::default(), remove)).routes.routes, []);
    }

    #[test]
    fn mistakes_are_those_of_a_manifest() {
        assert_eq!(
            refused(&pool("workers", [("vcpus", Some(0.into()))])),
            "pools[1].vcpus: must be 1 to 32, not 0"
        );
        let scope = pool("workers", [("egress", Some(Value::Array(vec!["x".into()])))]);
        assert!(refused(&scope).starts_with("pools[1].egress[0]: `x` is not an egress rule"));
        let port =
            Publish { bind: Publish::DEFAULT_BIND, port: 1, pool: "none".parse().unwrap(), target_port: 1 };
        let nowhere = tenant(PortChanges { add: vec![port], remove: vec![] }, RouteChanges::default());
        assert!(refused(&nowhere).starts_with("publish[1].pool: there is no pool `none`"));
    }

    #[test]
    fn a_change_survives_the_wire() {
        let change = Change {
            tenant: "alice".parse().unwrap(),
            of: pool("w", [("vcpus", Some(2.into())), ("image", None)]),
        };
        let wire = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<Change>(&wire).unwrap(), change, "{wire}");
    }
}
