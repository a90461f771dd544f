//! From a deployment back to a manifest that asks for it, and how two of them differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::secrets::name_of_secret;
use super::{Deployment, Publish};
use crate::{Egress, Endpoints, PoolSpec, User};

/// Keys and their values, in the order in which they are written.
pub(super) type Section = Vec<(String, Value)>;

/// A manifest's sections. What it leaves to defaults is written out: another version may have others.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Document {
    pub(super) tenant: Section,
    pub(super) quotas: Section,
    pub(super) pools: Vec<Section>,
    pub(super) publish: Vec<Section>,
    pub(super) routes: Vec<Section>,
    pub(super) users: Vec<Section>,
    pub(super) endpoints: Section,
}

/// One key of a deployment that is another in the next one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Difference {
    /// What it is a key of: `alice`, `alice/workers`, `published port 127.0.0.1:8080`, `route echo`.
    pub what: String,
    /// The manifest's key.
    pub key: String,
    /// What it is, if anything.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Value"))]
    pub from: Option<Value>,
    /// What it will be, if anything.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Value"))]
    pub to: Option<Value>,
}

impl Deployment {
    /// The text of a manifest that asks for this. Secrets are in none: their names (`scope/KEY`) are told in a comment.
    pub fn to_manifest(&self, secrets: &[String]) -> String {
        let mut text = Document::of(self).text();
        text.push_str(&about_secrets(secrets));
        text
    }

    /// Every key in which `next` differs. A pool or user that `next` leaves out is not among them: a deployment keeps it.
    pub fn differences(&self, next: &Deployment) -> Vec<Difference> {
        let (before, after) = (Document::of(self).named(self), Document::of(next).named(next));
        let mut all = Vec::new();
        for (what, section) in &after {
            let old = before.iter().find(|(other, _)| other == what).map(|(_, section)| section);
            all.extend(compare(what, old, section));
        }
        let kept = |what: &String| {
            self.pools.iter().any(|pool| format!("{}/{}", self.tenant, pool.id) == *what)
                || self.users.iter().any(|user| format!("user {}", user.name) == *what)
        };
        for (what, section) in before.iter().filter(|(what, _)| !kept(what)) {
            if !after.iter().any(|(other, _)| other == what) {
                all.extend(compare(what, Some(section), &Section::new()));
            }
        }
        all
    }
}

impl Document {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let network = &deployment.network;
        let mut tenant = vec![("id".to_owned(), deployment.tenant.as_str().into())];
        push(&mut tenant, "net_id", network.net_id.and_then(value));
        push(&mut tenant, "subnet", network.subnet.and_then(value));
        Self {
            tenant,
            quotas: keys(&deployment.quotas),
            pools: deployment.pools.iter().map(pool).collect(),
            publish: deployment.publish.iter().map(keys).collect(),
            routes: deployment.routes.routes.iter().map(keys).collect(),
            users: deployment.users.iter().map(user).collect(),
            endpoints: endpoints(&deployment.endpoints),
        }
    }

    /// Each section with its name.
    fn named(self, deployment: &Deployment) -> Vec<(String, Section)> {
        let tenant = deployment.tenant.to_string();
        let quotas = self.quotas.into_iter().map(|(key, value)| (format!("quotas.{key}"), value));
        let mut all = vec![(tenant.clone(), self.tenant.into_iter().chain(quotas).collect())];
        let pools = deployment.pools.iter().map(|pool| format!("{tenant}/{}", pool.id));
        all.extend(pools.zip(self.pools));
        let port = |publish: &Publish| format!("published port {}:{}", publish.bind, publish.port);
        all.extend(deployment.publish.iter().map(port).zip(self.publish));
        let routes = deployment.routes.routes.iter().map(|route| format!("route {}", route.name));
        all.extend(routes.zip(self.routes));
        let users = deployment.users.iter().map(|user| format!("user {}", user.name));
        all.extend(users.zip(self.users));
        all.push(("endpoints".to_owned(), self.endpoints));
        all
    }

    /// As TOML.
    pub(super) fn text(&self) -> String {
        let mut text = section("[tenant]", &self.tenant);
        if !self.quotas.is_empty() {
            text.push_str(&format!("\n{}", section("[tenant.quotas]", &self.quotas)));
        }
        if !self.endpoints.is_empty() {
            text.push_str(&format!("\n{}", section("[endpoints]", &self.endpoints)));
        }
        let lists = [
            ("[[pools]]", &self.pools),
            ("[[publish]]", &self.publish),
            ("[[routes]]", &self.routes),
            ("[[users]]", &self.users),
        ];
        for (heading, sections) in lists {
            for one in sections {
                text.push_str(&format!("\n{}", section(heading, one)));
            }
        }
        text
    }
}

fn section(heading: &str, keys: &Section) -> String {
    let lines: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("{heading}\n{lines}")
}

fn pool(pool: &PoolSpec) -> Section {
    let (resources, desired) = (&pool.resources, &pool.desired);
    let mut keys = vec![
        ("id".to_owned(), pool.id.as_str().into()),
        ("role".to_owned(), pool.role.as_str().into()),
        ("profile".to_owned(), pool.profile.0.as_str().into()),
        ("image".to_owned(), pool.image.as_str().into()),
    ];
    push(&mut keys, "vcpus", value(resources.vcpus));
    push(&mut keys, "mem_mib", value(resources.mem_mib));
    push(&mut keys, "data_disk_mib", value(resources.data_disk_mib));
    push(&mut keys, "desired_running", value(desired.running));
    push(&mut keys, "desired_warm", value(desired.warm).filter(|_| desired.warm > 0));
    push(&mut keys, "desired_sleeping", value(desired.sleeping));
    let egress = match &pool.egress {
        Egress::None => Some("none".into()),
        Egress::Any => Some("any".into()),
        Egress::Only(rules) => value(rules),
    };
    push(&mut keys, "egress", egress);
    push(&mut keys, "secret_scopes", pool.secret_scopes.as_ref().and_then(value));
    push(&mut keys, "runtime_policy", value(&pool.runtime_policy));
    push(&mut keys, "restart", value(pool.restart));
    push(&mut keys, "sleep_after_seconds", value(pool.sleep_after_seconds));
    push(&mut keys, "snapshot_compression", value(pool.snapshot_compression));
    push(&mut keys, "spares", value(pool.spares));
    keys
}

fn user(user: &User) -> Section {
    let mut keys = vec![("name".to_owned(), user.name.as_str().into())];
    push(&mut keys, "telegram", user.telegram.and_then(value));
    // Cents of a limit that was read are fewer than a float's exact integers.
    push(
        &mut keys,
        "monthly_limit_usd",
        user.monthly_limit_cents.and_then(|cents| value(cents as f64 / 100.0)),
    );
    keys
}

/// Those that are not the public ones.
fn endpoints(endpoints: &Endpoints) -> Section {
    let public = Endpoints::default();
    let mut keys = Section::new();
    push(&mut keys, "telegram", value(&endpoints.telegram).filter(|_| endpoints.telegram != public.telegram));
    push(
        &mut keys,
        "anthropic",
        value(&endpoints.anthropic).filter(|_| endpoints.anthropic != public.anthropic),
    );
    keys
}

fn push(keys: &mut Section, name: &str, value: Option<Value>) {
    keys.extend(value.map(|value| (name.to_owned(), value)));
}

/// Anything of a deployment as a value; it has none of what TOML cannot say.
fn value(thing: impl Serialize) -> Option<Value> {
    Value::try_from(thing).ok()
}

/// A thing whose fields are the keys.
fn keys(thing: &impl Serialize) -> Section {
    match value(thing) {
        Some(Value::Table(table)) => table.into_iter().collect(),
        _ => Section::new(),
    }
}

/// Values are never written; how to write where they are is.
fn about_secrets(secrets: &[String]) -> String {
    if secrets.is_empty() {
        return String::new();
    }
    let mut text =
        "\n# Secrets there are, which stay as they are while there is no [secrets] here:\n".to_owned();
    let mut unnamed = Vec::new();
    let mut example = String::new();
    for secret in secrets {
        let name = secret.split_once('/').and_then(|(scope, key)| name_of_secret(scope, key));
        match name {
            Some(name) => example.push_str(&format!("# {name} = {{ file = \"…\" }}   # {secret}\n")),
            None => unnamed.push(secret.as_str()),
        }
    }
    text.push_str(&format!(
        "#   {}\n# With one, it is the list of all of them:\n# [secrets]\n{example}",
        secrets.join(", ")
    ));
    if !unnamed.is_empty() {
        text.push_str(&format!("# No name there gives {}.\n", unnamed.join(", ")));
    }
    text
}

fn compare(what: &str, before: Option<&Section>, after: &Section) -> Vec<Difference> {
    let before: BTreeMap<&String, &Value> = before.into_iter().flatten().map(|(k, v)| (k, v)).collect();
    let mut all: Vec<Difference> = after
        .iter()
        .filter(|(key, value)| before.get(key) != Some(&value))
        .map(|(key, value)| {
            let from = before.get(key).map(|value| (*value).clone());
            Difference { what: what.to_owned(), key: key.clone(), from, to: Some(value.clone()) }
        })
        .collect();
    let gone = before.iter().filter(|(key, _)| !after.iter().any(|(other, _)| other == **key));
    all.extend(gone.map(|(key, value)| Difference {
        what: what.to_owned(),
        key: (*key).clone(),
        from: Some((*value).clone()),
        to: None,
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    /// Every key that there is, and values that need quotes.
    const EVERY_KEY: &str = r#"
[tenant]
id = "alice"
net_id = 7
subnet = "10.255.0.0/16"
[tenant.quotas]
max_vcpus = 8
max_mem_mib = 8192
max_running = 8
max_warm = 0
max_pools = 4
max_instances_per_pool = 16
max_disk_gib = 50
[[pools]]
id = "gateways"
role = "gateway"
image = "/srv/a \"quoted\" \\ recipe/ü"
egress = "any"
desired_running = 1
[[pools]]
id = "workers"
role = "capability-openclaw"
profile = "python"
image = "python"
vcpus = 1
mem_mib = 256
data_disk_mib = 64
desired_running = 1
desired_sleeping = 2
egress = ["192.0.2.0/24:443", "198.51.100.7/32", "api.example.org:443", "example.org"]
secret_scopes = [{ integration = "default", keys = ["API_KEY"] }]
runtime_policy = { min_running_seconds = 1, min_warm_seconds = 2, drain_timeout_seconds = 3, graceful_shutdown_seconds = 4 }
restart = "never"
sleep_after_seconds = 9
snapshot_compression = "zstd"
spares = 0
[[pools]]
id = "bare"
secret_scopes = []
[[publish]]
bind = "0.0.0.0"
port = 8080
pool = "gateways"
target_port = 80
[[routes]]
name = "a 'name'"
match_rule = { port = 80, path_prefix = "/\"x\",", source_cidr = "203.0.113.0/24" }
target = { pool_id = "workers", instance_selector = { by_instance = "i-0000002a" }, target_port = 8080 }
[[routes]]
name = "b"
match_rule = { port = 81 }
target = { pool_id = "workers", instance_selector = { by_ip = "10.255.0.4" }, target_port = 8080 }
[[users]]
name = "ann"
telegram = 777
monthly_limit_usd = 12.5
[[users]]
name = "bob"
monthly_limit_usd = 20
[endpoints]
telegram = "http://192.0.2.1:8081"
"#;

    fn parsed(text: &str) -> Deployment {
        Manifest::parse(text).unwrap_or_else(|error| panic!("{}\n{text}", error.in_file(""))).deployment
    }

    #[test]
    fn what_is_written_asks_for_the_same() {
        for text in [EVERY_KEY, "tenant.id = 'a'", "tenant.id = 'a'\n[[pools]]\nid = 'p'\nrole = 'builder'\n"]
        {
            let deployment = parsed(text);
            let written = deployment.to_manifest(&["default/API_KEY".to_owned()]);
            assert_eq!(parsed(&written), deployment, "{written}");
            assert_eq!(deployment.differences(&parsed(&written)), []);
        }
    }

    #[test]
    fn secrets_are_told_in_a_comment_that_can_be_made_a_section() {
        let secrets = ["default/API_KEY", "telegram/TELEGRAM_BOT_TOKEN", "other/x"].map(str::to_owned);
        let written = parsed(EVERY_KEY).to_manifest(&secrets);
        assert_eq!(Manifest::parse(&written).unwrap().secrets, None);
        let (before, comment) = written.split_once("# [secrets]\n").unwrap();
        let section: String = comment
            .lines()
            .filter(|line| line.contains(" = {"))
            .map(|line| format!("{}\n", &line[2..]))
            .collect();
        let manifest = Manifest::parse(&format!("{before}[secrets]\n{section}")).unwrap();
        let given: Vec<_> =
            manifest.secrets.unwrap().into_iter().map(|s| format!("{}/{}", s.scope, s.key)).collect();
        assert_eq!(given, secrets[..2]);
        assert!(written.contains("No name there gives other/x"), "{written}");
    }

    #[test]
    fn every_key_that_changes_is_told_once() {
        let before = parsed(EVERY_KEY);
        let text = EVERY_KEY
            .replace("mem_mib = 256", "mem_mib = 512")
            .replace("max_warm = 0\n", "")
            .replace("port = 8080\npool", "port = 8081\npool")
            .replace("id = \"bare\"", "id = \"new\"")
            .replace("port = 81 }", "port = 82 }");
        let told: Vec<String> = before
            .differences(&parsed(&text))
            .into_iter()
            .filter(|difference| difference.what != "alice/new")
            .map(|Difference { what, key, from, to }| {
                let shown = |value: Option<Value>| value.map_or("-".to_owned(), |value| value.to_string());
                format!("{what}: {key}: {} > {}", shown(from), shown(to))
            })
            .collect();
        let expected = [
            "alice: quotas.max_warm: 0 > -",
            "alice/workers: mem_mib: 256 > 512",
            "published port 0.0.0.0:8081: bind: - > \"0.0.0.0\"",
            "published port 0.0.0.0:8081: pool: - > \"gateways\"",
            "published port 0.0.0.0:8081: port: - > 8081",
            "published port 0.0.0.0:8081: target_port: - > 80",
            "route b: match_rule: { port = 81 } > { port = 82 }",
            "published port 0.0.0.0:8080: bind: \"0.0.0.0\" > -",
            "published port 0.0.0.0:8080: pool: \"gateways\" > -",
            "published port 0.0.0.0:8080: port: 8080 > -",
            "published port 0.0.0.0:8080: target_port: 80 > -",
        ];
        assert_eq!(told, expected);
    }
}
