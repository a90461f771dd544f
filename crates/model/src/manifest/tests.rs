use proptest::prelude::*;

use super::*;
use crate::routes::{MatchRule, RouteLimits, Target};
use crate::{
    DesiredCounts, Egress, Endpoints, InstanceSelector, PoolSpec, Profile, Quotas, Resources, RestartPolicy,
    Role, Route, RoutingTable, RuntimePolicy, SecretScope, SnapshotCompression,
};

/// What the contract shows, with the pool and the secret that it names but does not show.
const GOOD: &str = r#"
[tenant]
id = "alice"            # net_id and subnet optional
[tenant.quotas]
max_running = 8
[[pools]]
id = "gateways"
role = "gateway"
profile = "minimal"     # default
image = "openclaw"
vcpus = 2               # default 2
mem_mib = 1024          # default 1024
data_disk_mib = 1024    # default 0
desired_running = 1
egress = ["192.0.2.0/24", "198.51.100.7:443"]
secret_scopes = [{ integration = "telegram", keys = ["TELEGRAM_BOT_TOKEN"] }]
runtime_policy = { min_running_seconds = 90 }
restart = "on-demand"
[[pools]]
id = "workers"
profile = "python"
desired_sleeping = 2
[[publish]]
port = 8080
pool = "gateways"
target_port = 8081
[[routes]]
name = "echo"
match_rule = { port = 8081, path_prefix = "/" }
target = { pool_id = "workers", instance_selector = "any", target_port = 8080 }
[secrets]
anthropic_key = { file = "./secrets/anthropic.key" }
telegram_token = { file = "/etc/telegram" }
my_token_2 = { file = "x" }
"#;

fn good() -> Manifest {
    Manifest::parse(GOOD).unwrap()
}

fn gateways() -> PoolSpec {
    PoolSpec {
        id: "gateways".parse().unwrap(),
        role: Role::Gateway,
        profile: Profile("minimal".to_owned()),
        image: "openclaw".to_owned(),
        resources: Resources { vcpus: 2, mem_mib: 1024, data_disk_mib: 1024 },
        desired: DesiredCounts { running: 1, warm: 0, sleeping: 0 },
        egress: Egress::Only(vec!["192.0.2.0/24".parse().unwrap(), "198.51.100.7:443".parse().unwrap()]),
        secret_scopes: Some(vec![SecretScope {
            integration: "telegram".to_owned(),
            keys: vec!["TELEGRAM_BOT_TOKEN".to_owned()],
        }]),
        runtime_policy: RuntimePolicy { min_running_seconds: 90, ..RuntimePolicy::default() },
        restart: RestartPolicy::OnDemand,
        sleep_after_seconds: 300,
        snapshot_compression: SnapshotCompression::None,
        spares: 1,
    }
}

fn workers() -> PoolSpec {
    PoolSpec {
        id: "workers".parse().unwrap(),
        role: Role::Worker,
        profile: Profile("python".to_owned()),
        image: "python".to_owned(),
        resources: Resources { vcpus: 2, mem_mib: 1024, data_disk_mib: 0 },
        desired: DesiredCounts { running: 0, warm: 0, sleeping: 2 },
        egress: Egress::None,
        secret_scopes: None,
        runtime_policy: RuntimePolicy::default(),
        restart: RestartPolicy::OnDemand,
        sleep_after_seconds: 300,
        snapshot_compression: SnapshotCompression::None,
        spares: 1,
    }
}

#[test]
fn the_example_of_the_contract_is_read() {
    let expected = Deployment {
        users: Vec::new(),
        endpoints: Endpoints::default(),
        tenant: "alice".parse().unwrap(),
        network: RequestedNetwork::default(),
        quotas: Quotas { max_running: Some(8), ..Quotas::default() },
        pools: vec![gateways(), workers()],
        publish: vec![Publish {
            bind: [127, 0, 0, 1].into(),
            port: 8080,
            pool: "gateways".parse().unwrap(),
            target_port: 8081,
        }],
        routes: RoutingTable {
            routes: vec![Route {
                name: "echo".to_owned(),
                match_rule: MatchRule {
                    port: Some(8081),
                    path_prefix: Some("/".to_owned()),
                    source_cidr: None,
                },
                target: Target {
                    pool_id: "workers".parse().unwrap(),
                    instance_selector: InstanceSelector::Any,
                    target_port: 8080,
                },
                limits: RouteLimits::default(),
            }],
        },
    };
    assert_eq!(good().deployment, expected);
}

#[test]
fn a_route_has_the_limits_that_are_written() {
    let limits = "limits = { timeout_seconds = 20, idle_seconds = 60, max_body_mib = 5 }\n[secrets]";
    let manifest = Manifest::parse(&GOOD.replacen("[secrets]", limits, 1)).unwrap();
    let expected = RouteLimits { timeout_seconds: Some(20), idle_seconds: Some(60), max_body_mib: Some(5) };
    assert_eq!(manifest.deployment.routes.routes[0].limits, expected);
}

#[test]
fn a_deployment_survives_json() {
    let deployment = good().deployment;
    let json = serde_json::to_string(&deployment).unwrap();
    assert_eq!(serde_json::from_str::<Deployment>(&json).unwrap(), deployment);
}

#[test]
fn secrets_get_the_scopes_of_the_contract() {
    let secrets = good().secrets.unwrap();
    let found: Vec<String> =
        secrets.iter().map(|s| format!("{} {}/{} {}", s.name, s.scope, s.key, s.file)).collect();
    let expected = [
        "anthropic_key anthropic/ANTHROPIC_API_KEY ./secrets/anthropic.key",
        "my_token_2 default/MY_TOKEN_2 x",
        "telegram_token telegram/TELEGRAM_BOT_TOKEN /etc/telegram",
    ];
    assert_eq!(found, expected);
    let discord =
        Manifest::parse("tenant.id = 'a'\nsecrets.discord_token.file = 'x'").unwrap().secrets.unwrap();
    assert_eq!((&*discord[0].scope, &*discord[0].key), ("discord", "DISCORD_BOT_TOKEN"));
}

#[test]
fn what_the_caller_finds_is_put_in_its_place() {
    let manifest = good();
    let secret = manifest.secrets.iter().flatten().find(|s| s.name == "telegram_token").unwrap();
    let error = manifest.error_at(&secret.file_key(), "no such file");
    assert_eq!(error.to_string(), "line 33, key secrets.telegram_token.file: no such file");
    assert_eq!(
        error.in_file("deployment.toml"),
        "deployment.toml:33:20: secrets.telegram_token.file: no such file"
    );
    assert_eq!(&GOOD[error.place.span], "file");

    let taken = Problem::new("publish[0].port", "taken by nginx");
    assert_eq!(manifest.locate(taken).place.line, 24);
    // An absent key is where it would be written.
    assert_eq!(manifest.place("publish[0].bind").line, 23);
    assert_eq!(manifest.place("pools[1].image").line, 19);
    assert_eq!(manifest.place("tenant.subnet").line, 2);
    assert_eq!(manifest.place("nothing").line, 1);
}

#[test]
fn images_with_a_slash_or_a_leading_dot_are_folders() {
    let image = |image: &str| {
        let text = GOOD.replace("\"openclaw\"", &format!("{image:?}"));
        Manifest::parse(&text).unwrap().image_folders()
    };
    for folder in ["./image", "images/x", "/images/x", "..", "."] {
        assert_eq!(image(folder), [ImageFolder { pool: 0, folder: folder.to_owned() }]);
    }
    assert_eq!(image("open.claw"), []);
    assert_eq!(good().image_folders(), []);
}

#[test]
fn every_other_form_is_read() {
    let text = GOOD
        .replace("id = \"alice\"", "id = 'alice'\nnet_id = 0x10\nsubnet = '10.255.0.0/16'")
        .replace("[\"192.0.2.0/24\", \"198.51.100.7:443\"]", "'any'")
        .replace("instance_selector = \"any\"", "instance_selector = { by_ip = '10.255.0.3' }");
    let deployment = Manifest::parse(&text).unwrap().deployment;
    assert_eq!(deployment.network.net_id.map(|id| id.get()), Some(16));
    assert_eq!(deployment.network.subnet.map(|s| s.prefix_len()), Some(16));
    assert_eq!(deployment.pools[0].egress, Egress::Any);
    let selector = &deployment.routes.routes[0].target.instance_selector;
    assert_eq!(*selector, InstanceSelector::ByIp([10, 255, 0, 3].into()));
    for none in ["'none'", "[]"] {
        let text = GOOD.replace("[\"192.0.2.0/24\", \"198.51.100.7:443\"]", none);
        assert_eq!(Manifest::parse(&text).unwrap().deployment.pools[0].egress, Egress::None);
    }
    assert_eq!(Manifest::parse("[tenant]\nid = 'a'").unwrap().deployment.pools, []);
}

/// Replaces the first `from` of the good manifest: what stands then, the line of the mistake, its key, its gist.
type Mistake = (&'static str, &'static str, usize, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    // Not TOML.
    ("vcpus = 2", "vcpus = ", 11, "pools[0].vcpus", ""),
    ("vcpus = 2", "vcpus = 2\nvcpus = 3", 12, "pools[0].vcpus", "duplicate key"),
    ("[secrets]", "[tenant]", 31, "tenant", "duplicate key"),
    ("[[publish]]", "[publish", 23, "", "unclosed"),
    // Keys.
    ("[tenant]", "[tenent]", 2, "tenent", "did you mean `tenant`?"),
    ("max_running", "max_runing", 5, "tenant.quotas.max_runing", "did you mean `max_running`?"),
    ("vcpus", "cpus", 11, "pools[0].cpus", "did you mean `vcpus`?"),
    ("mem_mib", "colour", 12, "pools[0].colour", "unknown key: known here are id, role,"),
    ("mem_mib", "\"a.b\"", 12, "pools[0].\"a.b\"", "unknown key"),
    ("target_port = 8081", "target = 8081", 26, "publish[0].target", "did you mean `target_port`?"),
    ("path_prefix", "path", 29, "routes[0].match_rule.path", "did you mean `path_prefix`?"),
    ("keys", "key", 16, "pools[0].secret_scopes[0].key", "did you mean `keys`?"),
    ("min_running", "min_runing", 17, "pools[0].runtime_policy.min_runing_seconds", "did you mean"),
    ("id = \"workers\"", "", 19, "pools[1].id", "is missing"),
    ("id = \"alice\"", "", 2, "tenant.id", "is missing"),
    ("port = 8080", "", 23, "publish[0].port", "is missing"),
    ("name = \"echo\"", "", 27, "routes[0].name", "is missing"),
    // Types.
    ("vcpus = 2", "vcpus = '2'", 11, "pools[0].vcpus", "must be a whole number, 1 to 32, not a text"),
    ("vcpus = 2", "vcpus = 2.5", 11, "pools[0].vcpus", "not a number with a fraction"),
    ("vcpus = 2", "vcpus = {}", 11, "pools[0].vcpus", "not a table"),
    ("\"alice\"", "7", 3, "tenant.id", "must be a text in quotes, not a whole number"),
    ("\"alice\"", "true", 3, "tenant.id", "not true or false"),
    ("[[publish]]", "[publish]", 23, "publish", "must be a list, not a table"),
    ("[tenant.quotas]\nmax_running = 8", "quotas = [8]", 4, "tenant.quotas", "must be a table, not a list"),
    ("{ min_running_seconds = 90 }", "1979-05-27", 17, "pools[0].runtime_policy", "not a date"),
    // Names and ranges.
    ("\"alice\"", "\"Alice\"", 3, "tenant.id", "`Alice` is not a valid name"),
    ("\"workers\"", "\"-\"", 20, "pools[1].id", "`-` is not a valid name"),
    ("\"gateway\"", "\"doorman\"", 8, "pools[0].role", "`doorman` is not a role: use gateway"),
    ("\"python\"", "\"a/b\"", 21, "pools[1].profile", "not a valid name"),
    ("\"openclaw\"", "\"\"", 10, "pools[0].image", "must not be empty"),
    ("vcpus = 2", "vcpus = 0", 11, "pools[0].vcpus", "must be 1 to 32, not 0"),
    ("vcpus = 2", "vcpus = -2", 11, "pools[0].vcpus", "must be 1 to 32, not -2"),
    ("mem_mib = 1024", "mem_mib = 64", 12, "pools[0].mem_mib", "must be 128 to 1048576, not 64"),
    ("mem_mib = 1024", "mem_mib = 99999999999999999999", 12, "pools[0].mem_mib", "not 99999999999999999999"),
    ("data_disk_mib = 1024", "data_disk_mib = 1", 13, "pools[0].data_disk_mib", "must be 16 to 16777216, not 1; 0 is no"),
    ("desired_running = 1", "desired_running = -1", 14, "pools[0].desired_running", "must be 0 to 65535"),
    ("\"on-demand\"", "\"always\"", 18, "pools[0].restart", "use on-failure, on-demand or never"),
    ("= 90", "= -1", 17, "pools[0].runtime_policy.min_running_seconds", "must be 0 to 604800"),
    ("id = \"alice\"", "id = \"a\"\nnet_id = 4096", 4, "tenant.net_id", "must be 0 to 4095"),
    ("id = \"alice\"", "id = \"a\"\nsubnet = \"10.0.0.0/24\"", 4, "tenant.subnet", "must lie in 10.240.0.0/12"),
    ("id = \"alice\"", "id = \"a\"\nsubnet = \"10.240.0.0\"", 4, "tenant.subnet", "write one as 10.240.7.0/24"),
    ("port = 8080", "port = 0", 24, "publish[0].port", "must be 1 to 65535"),
    ("port = 8080", "port = 8080\nbind = '::1'", 25, "publish[0].bind", "`::1` is not an IPv4 address"),
    ("\"echo\"", "\"\"", 28, "routes[0].name", "must not be empty"),
    // Networks.
    ("192.0.2.0/24", "192.0.2.0/33", 15, "pools[0].egress[0]", "`192.0.2.0/33` is not an egress rule"),
    ("198.51.100.7:443", "192.0.2.9/24", 15, "pools[0].egress[1]", "did you mean 192.0.2.0/24?"),
    ("[\"192.0.2.0/24\", ", "[\n  \"192.0.2.0/24\",\n  7,\n", 17, "pools[0].egress[1]", "must be a text"),
    ("192.0.2.0/24", "any", 15, "pools[0].egress[0]", "\"any\" stands alone"),
    ("[\"192.0.2.0/24\", \"198.51.100.7:443\"]", "\"all\"", 15, "pools[0].egress", "or \"any\" or \"none\""),
    ("port = 8081,", "source_cidr = '1.2.3.4/8',", 29, "routes[0].match_rule.source_cidr", "did you mean 1.0.0.0/8?"),
    ("port = 8081,", "source_cidr = 'here',", 29, "routes[0].match_rule.source_cidr", "`here` is not a network"),
    // Parts that do not fit together.
    ("\"workers\"", "\"gateways\"", 20, "pools[1].id", "there is another pool `gateways`"),
    ("pool = \"gateways\"", "pool = \"gate\"", 25, "publish[0].pool", "no pool `gate`; defined here: gateways, workers"),
    ("pool_id = \"workers\"", "pool_id = \"w\"", 30, "routes[0].target.pool_id", "there is no pool `w`"),
    ("[[routes]]", "[[publish]]\nport = 8080\npool = 'workers'\ntarget_port = 1\nbind = '0.0.0.0'\n[[routes]]",
        28, "publish[1].port", "0.0.0.0:8080 is taken already by 127.0.0.1:8080"),
    ("port = 8081, path_prefix = \"/\"", "", 29, "routes[0].match_rule", "matches everything"),
    ("[secrets]", "limits = { idle_seconds = 0 }\n[secrets]", 31, "routes[0].limits.idle_seconds", "1 to 86400"),
    ("[secrets]", "limits = { idle_second = 1 }\n[secrets]", 31, "routes[0].limits.idle_second",
        "did you mean `idle_seconds`?"),
    ("[secrets]", "limits = { max_body_mib = '1' }\n[secrets]", 31, "routes[0].limits.max_body_mib", "a whole number"),
    ("path_prefix = \"/\"", "path_prefix = \"a\"", 29, "routes[0].match_rule.path_prefix", "must start with `/`"),
    ("[secrets]", "[[routes]]\nname = 'b'\nmatch_rule = { port = 8081, path_prefix = '/' }\n\
        target = { pool_id = 'workers', instance_selector = 'any', target_port = 1 }\n[secrets]",
        33, "routes[1].match_rule", "routes `echo` and `b` match the same"),
    ("[secrets]", "[[routes]]\nname = 'echo'\nmatch_rule = { port = 1 }\n\
        target = { pool_id = 'workers', instance_selector = 'any', target_port = 1 }\n[secrets]",
        32, "routes[1].name", "named twice"),
    ("desired_sleeping = 2", "desired_sleeping = 252", 2, "tenant.subnet", "addresses for 252 instances and 253 are wanted"),
    // Quotas.
    ("max_running = 8", "max_running = 0", 5, "tenant.quotas.max_running", "too small: 1 needed"),
    ("max_running = 8", "max_vcpus = 1", 5, "tenant.quotas.max_vcpus", "too small: 2 needed"),
    ("max_running = 8", "max_mem_mib = 1023", 5, "tenant.quotas.max_mem_mib", "too small: 1024 needed"),
    ("max_running = 8", "max_pools = 1", 5, "tenant.quotas.max_pools", "too small: 2 needed"),
    ("max_running = 8", "max_instances_per_pool = 1", 5, "tenant.quotas.max_instances_per_pool", "2 needed"),
    ("max_running = 8", "max_disk_gib = 0", 5, "tenant.quotas.max_disk_gib", "too small: 1 needed"),
    ("max_running = 8", "max_running = -8", 5, "tenant.quotas.max_running", "must be 0 to 4294967295"),
    // Secrets.
    ("\"TELEGRAM_BOT_TOKEN\"", "\"TELEGRAM\"", 16, "pools[0].secret_scopes[0].keys[0]", "no name there gives it"),
    ("\"telegram\"", "\"default\"", 16, "pools[0].secret_scopes[0].keys[0]", "add `telegram_bot_token = { file"),
    ("telegram_token = { file = \"/etc/telegram\" }", "", 16, "pools[0].secret_scopes[0].keys[0]", "add `telegram_token = "),
    ("role = \"gateway\"", "role = \"builder\"", 16, "pools[0].secret_scopes", "role builder are never given secrets"),
    ("{ file = \"x\" }", "\"sk-live\"", 34, "secrets.my_token_2", "secrets are not written here"),
    ("{ file = \"x\" }", "{}", 34, "secrets.my_token_2.file", "is missing"),
    ("{ file = \"x\" }", "{ file = '' }", 34, "secrets.my_token_2.file", "must not be empty"),
    ("{ file = \"x\" }", "{ env = 'X' }", 34, "secrets.my_token_2.env", "known here are file"),
    ("my_token_2", "My-Token", 34, "secrets.My-Token", "1 to 64 of a-z, 0-9 and _"),
    ("\"telegram\", keys = [\"TELEGRAM_BOT_TOKEN\"]", "\"openclaw\", keys = [\"OPENCLAW_TOKEN_KEY\"]", 16, "pools[0].secret_scopes[0].keys[0]", "add `openclaw_token = "),
    // What later versions bring.
    ("image = \"openclaw\"", "flake = \"github:org/app\"", 10, "pools[0].flake", "flake images are not supported by this version"),
    ("\"openclaw\"", "\"oci:debian\"", 10, "pools[0].image", "OCI images are not supported by this version"),
    ("vcpus = 2", "sleep_after_seconds = -1", 11, "pools[0].sleep_after_seconds", "must be 0 to 604800"),
    ("vcpus = 2", "desired_warm = 1", 11, "pools[0].desired_warm", "not supported by this version"),
    ("vcpus = 2", "peer_traffic = true", 11, "pools[0].peer_traffic", "not supported by this version"),
    ("vcpus = 2", "integrations = []", 11, "pools[0].integrations", "not supported by this version"),
    ("vcpus = 2", "pinned = true", 11, "pools[0].pinned", "not supported by this version"),
    ("vcpus = 2", "critical = true", 11, "pools[0].critical", "not supported by this version"),
    ("vcpus = 2", "snapshot_compression = 'gzip'", 11, "pools[0].snapshot_compression", "use none, lz4 or zstd"),
    ("vcpus = 2", "spares = 65", 11, "pools[0].spares", "must be 0 to 64"),
    ("192.0.2.0/24", "*.telegram.org:443", 15, "pools[0].egress[0]", "a name has no wildcard"),
    ("192.0.2.0/24", "api.telegram.org.", 15, "pools[0].egress[0]", "without the dot at its end"),
    ("\"any\"", "{ by_user = 'Bob' }", 30, "routes[0].target.instance_selector.by_user", "not a valid name"),
    ("\"any\"", "'least_connections'", 30, "routes[0].target.instance_selector", "not supported by this version"),
    ("\"any\"", "'best'", 30, "routes[0].target.instance_selector", "`best` selects nothing"),
    ("\"any\"", "{}", 30, "routes[0].target.instance_selector", "exactly one of"),
    ("[secrets]", "[[users]]\n[secrets]", 31, "users[0].name", "is missing"),
    ("[secrets]", "[[users]]\nname = 'bob'\n[secrets]", 31, "users", "needs a worker, of the one pool with role"),
    ("[secrets]", "[endpoints]\nslack = 'x'\n[secrets]", 32, "endpoints.slack", "known here are telegram, anthropic"),
    ("[secrets]", "[overrides]\n[secrets]", 31, "overrides", "outside of `mvm new` are not supported"),
];

#[test]
fn how_a_pool_sleeps_and_waits_can_be_said() {
    let text = GOOD.replacen(
        "desired_sleeping = 2",
        "snapshot_compression = \"zstd\"\nspares = 3\nsleep_after_seconds = 0",
        1,
    );
    let pool = &Manifest::parse(&text).unwrap().deployment.pools[1];
    assert_eq!((pool.snapshot_compression, pool.spares), (SnapshotCompression::Zstd, 3));
    assert_eq!(pool.sleep_after_seconds, 0);
}

#[test]
fn every_mistake_is_named_with_its_line_and_key() {
    let mut wrong = Vec::new();
    for (from, to, line, key, gist) in MISTAKES {
        assert!(GOOD.contains(from), "{from}");
        let found = Manifest::parse(&GOOD.replacen(from, to, 1));
        let as_expected =
            found.as_ref().is_err_and(|e| e.place.line == *line && e.key == *key && e.message.contains(gist));
        if !as_expected {
            let found = found.map_or_else(|e| e.in_file(""), |_| "taken".to_owned());
            wrong.push(format!("{to:?}: expected :{line}: {key}: …{gist}…, found {found}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_agent_finds_by_itself_what_a_deployment_must_not_be() {
    let key_of = |change: fn(&mut Deployment)| {
        let mut deployment = good().deployment;
        change(&mut deployment);
        deployment.check().unwrap_err().key
    };
    assert_eq!(key_of(|d| d.pools[0].resources.vcpus = 0), "pools[0].vcpus");
    assert_eq!(key_of(|d| d.pools[1].resources.mem_mib = 1), "pools[1].mem_mib");
    assert_eq!(key_of(|d| d.pools[1].desired.sleeping = u32::MAX), "pools[1].desired_sleeping");
    assert_eq!(key_of(|d| d.publish[0].port = 0), "publish[0].port");
    assert_eq!(key_of(|d| d.routes.routes[0].match_rule.port = Some(0)), "routes[0].match_rule.port");
    assert_eq!(key_of(|d| d.routes.routes[0].target.target_port = 0), "routes[0].target.target_port");
    assert_eq!(key_of(|d| d.routes.routes[0].limits.max_body_mib = Some(0)), "routes[0].limits.max_body_mib");
    assert_eq!(good().deployment.check(), Ok(()));
}

#[test]
fn a_secret_written_in_the_manifest_is_not_repeated() {
    for secret in ["\"sk-live\"", "[\"sk-live\"]", "{ value = \"sk-live\" }", "sk-live", "\"sk-live"] {
        let text = GOOD.replace("{ file = \"x\" }", secret);
        let error = Manifest::parse(&text).unwrap_err();
        assert!(!error.in_file("x").contains("sk-live"), "{error}");
    }
}

#[test]
fn columns_count_characters() {
    let error = Manifest::parse("tenant = { \"ü\" = 1 }").unwrap_err();
    assert_eq!((error.place.line, error.place.column), (1, 12));
    let error = Manifest::parse("[tenant]\nid = { a = 'üü', b = ").unwrap_err();
    assert_eq!(error.place.line, 2);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Manifest::parse(&text);
    }

    #[test]
    fn no_text_of_toml_like_pieces_panics(pieces in prop::collection::vec(prop::sample::select(vec![
        "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", "'", "\"", "#", " ", "tenant", "id", "pools", "quotas",
        "publish", "routes", "secrets", "vcpus", "egress", "ü", "'''", "\\u", "-1", "0x", "1e9", "true", "'any'", "\r\n",
    ]), 0..60)) {
        let _ = Manifest::parse(&pieces.concat());
    }

    #[test]
    fn a_damaged_manifest_is_taken_or_has_its_mistake_in_the_text(
        at in 0..GOOD.len(), length in 0usize..20, insert in "[\\[\\]{}=\"'a0.,\n-]{0,3}",
    ) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + length).min(GOOD.len()), &insert);
        if let Err(error) = Manifest::parse(&text) {
            let Place { line, span, .. } = error.place;
            prop_assert!(text.get(span.clone()).is_some());
            prop_assert_eq!(line, text[..span.start].matches('\n').count() + 1);
            prop_assert!(!error.message.is_empty());
        }
    }
}

#[test]
fn without_a_section_secrets_stay_as_they_are_and_pools_may_name_what_a_name_can_give() {
    let without = GOOD[..GOOD.find("[secrets]").unwrap()].to_owned();
    assert_eq!(Manifest::parse(&without).unwrap().secrets, None);
    assert_eq!(Manifest::parse(&without.replace("secret_scopes", "#")).unwrap().secrets, None);
    assert_eq!(Manifest::parse("tenant.id = 'a'\n[secrets]").unwrap().secrets, Some(Vec::new()));
    let error = Manifest::parse(&without.replace("TELEGRAM_BOT_TOKEN", "TELEGRAM")).unwrap_err();
    assert!(error.message.contains("no name there gives it"), "{error}");
}
