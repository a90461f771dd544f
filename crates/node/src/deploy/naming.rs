//! What is wrong with what a command wants, by name: it is no manifest in which things have places.

use mvm_model::manifest::{ChangeOf, Deployment};
use mvm_protocol::api::ApiError;

/// A problem of what the command did not say itself, told by the name of the thing. One of what it said stays at its key,
/// for the flag that said it.
pub(super) fn by_name(of: &ChangeOf, wanted: &Deployment, error: ApiError) -> ApiError {
    match error.key.as_deref().and_then(|key| named(of, wanted, key)) {
        Some(name) => ApiError { key: None, message: format!("{name}: {}", error.message), ..error },
        None => error,
    }
}

fn named(of: &ChangeOf, wanted: &Deployment, key: &str) -> Option<String> {
    let (section, rest) = key.split_once('[')?;
    let (index, rest) = rest.split_once(']')?;
    let (index, rest) = (index.parse::<usize>().ok()?, rest.trim_start_matches('.'));
    let (thing, is_said) = match section {
        "pools" => {
            let id = &wanted.pools.get(index)?.id;
            (
                format!("pool {id}"),
                matches!(of, ChangeOf::Pool { pool, keys, .. } if pool == id && says(keys.keys(), rest)),
            )
        }
        "publish" => {
            let publish = wanted.publish.get(index)?;
            let is_said = matches!(of, ChangeOf::Tenant { ports, .. } if ports.add.contains(publish));
            (format!("published port {}:{}", publish.bind, publish.port), is_said)
        }
        "routes" => {
            let name = &wanted.routes.routes.get(index)?.name;
            let is_said = matches!(of, ChangeOf::Tenant { routes, .. } if routes.add.iter().any(|route| {
                route.get("name").and_then(|other| other.as_str()) == Some(name)
            }));
            (format!("route `{name}`"), is_said)
        }
        _ => return None,
    };
    let name = if rest.is_empty() { thing } else { format!("{thing}: {rest}") };
    (!is_said).then_some(name)
}

/// Whether one of these keys is what another is about: `secret_scopes` of `secret_scopes[0].keys`.
fn says<'a>(mut keys: impl Iterator<Item = &'a String>, about: &str) -> bool {
    keys.any(|key| {
        about.strip_prefix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[cfg(test)]
mod tests {
    use mvm_model::manifest::{Manifest, PortChanges, Publish, RouteChanges, Verb};

    use super::*;
    use crate::deploy::invalid;

    const WANTED: &str = r#"
[tenant]
id = "alice"
[[pools]]
id = "gateways"
role = "gateway"
[[pools]]
id = "workers"
[[publish]]
port = 8080
pool = "gateways"
target_port = 80
[[routes]]
name = "all"
match_rule = { port = 80 }
target = { pool_id = "workers", instance_selector = "any", target_port = 80 }
"#;

    fn told(of: &ChangeOf, key: &str) -> (Option<String>, String) {
        let wanted = Manifest::parse(WANTED).unwrap().deployment;
        let ApiError { key, message, .. } = by_name(of, &wanted, invalid(key, "why"));
        (key, message)
    }

    fn by_its_name(message: &str) -> (Option<String>, String) {
        (None, message.to_owned())
    }

    fn stays(key: &str) -> (Option<String>, String) {
        (Some(key.to_owned()), "why".to_owned())
    }

    #[test]
    fn what_a_command_did_not_say_is_told_by_name() {
        let keys = ["vcpus", "secret_scopes"].map(|key| (key.to_owned(), None)).into();
        let pool = ChangeOf::Pool { verb: Verb::Update, pool: "workers".parse().unwrap(), keys };
        for key in ["pools[1].vcpus", "pools[1].secret_scopes[0].keys[1]", "pools[2].vcpus", "tenant.subnet"]
        {
            assert_eq!(told(&pool, key), stays(key));
        }
        assert_eq!(told(&pool, "pools[0].vcpus"), by_its_name("pool gateways: vcpus: why"));
        assert_eq!(told(&pool, "pools[1].image"), by_its_name("pool workers: image: why"));
        assert_eq!(told(&pool, "publish[0].port"), by_its_name("published port 127.0.0.1:8080: port: why"));
        assert_eq!(told(&pool, "routes[0]"), by_its_name("route `all`: why"));
        let one_more = ChangeOf::Instance { pool: "workers".parse().unwrap(), asleep: false };
        assert_eq!(told(&one_more, "pools[1].vcpus"), by_its_name("pool workers: vcpus: why"));
    }

    #[test]
    fn what_a_command_said_stays_at_its_key() {
        let pool = "gateways".parse().unwrap();
        let add = vec![Publish { bind: Publish::DEFAULT_BIND, port: 8080, pool, target_port: 80 }];
        let tenant = |ports, routes| ChangeOf::Tenant { verb: Verb::Update, keys: [].into(), ports, routes };
        let port = tenant(PortChanges { add, remove: vec![] }, RouteChanges::default());
        assert_eq!(told(&port, "publish[0].port"), stays("publish[0].port"));
        let add = vec!["name = 'all'".parse().unwrap()];
        let route = tenant(PortChanges::default(), RouteChanges { add, remove: vec![] });
        assert_eq!(told(&route, "routes[0].match_rule"), stays("routes[0].match_rule"));
        assert_eq!(told(&route, "publish[0].pool"), by_its_name("published port 127.0.0.1:8080: pool: why"));
    }
}
