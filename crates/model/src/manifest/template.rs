//! `mvm new openclaw`: what a tenant of OpenClaw is made of, with what its `deploy.toml` says.

use toml::de::DeTable;

use super::check::{DATA_DISK_MIB, MEM_MIB, VCPUS};
use super::place::Places;
use super::reader::{Keys, Table, Value};
use super::sections::{read_endpoints, read_user};
use super::{Deployment, Manifest, NewMistake, Problem, RequestedNetwork, SecretSource, secrets};
use crate::quota::{QuotaExceeded, Usage};
use crate::{
    DesiredCounts, Egress, Endpoints, InvalidId, PoolId, PoolSpec, Profile, Quotas, Resources, RestartPolicy,
    Role, RoutingTable, RuntimePolicy, SecretScope, ServiceUrl, SnapshotCompression, TenantId, User,
    UserName, openclaw,
};

/// The pool of machines that receive everyone's messages.
pub(super) const GATEWAYS: &str = "gateways";
/// The pool of everyone's own machines.
pub(super) const WORKERS: &str = "workers";
/// Secrets without which there is no assistant to talk to.
const NEEDED: [(&str, &str); 2] =
    [("anthropic_key", "the key of Anthropic's API"), ("telegram_token", "the token of a Telegram bot")];

/// What is said of a new tenant outside of its file.
#[derive(Debug, Clone)]
pub struct NewOpenClaw {
    /// The tenant.
    pub tenant: TenantId,
    /// The network it asks for.
    pub network: RequestedNetwork,
    /// The image of its workers; the built-in one where absent.
    pub image: Option<String>,
}

impl Manifest {
    /// The manifest of a new tenant of OpenClaw, from the text of its `deploy.toml`. Its places are in that text.
    ///
    /// # Errors
    /// One mistake, and what said it.
    pub fn openclaw(text: &str, new: &NewOpenClaw) -> Result<Self, NewMistake> {
        let (places, tree) = Places::of(text).map_err(NewMistake::InFile)?;
        let read = || {
            let file = File::read(tree.get_ref())?;
            let deployment = file.deployment(new)?;
            deployment.check()?;
            Ok((deployment, file.secrets))
        };
        match read() {
            Ok((deployment, secrets)) => Ok(Self { deployment, secrets: Some(secrets), places }),
            Err(problem) => Err(new.told(&places, problem)),
        }
    }
}

/// What a `deploy.toml` says.
struct File {
    secrets: Vec<SecretSource>,
    gateways: Override,
    workers: Override,
    users: Vec<User>,
    endpoints: Endpoints,
}

/// What is another than the template has it.
#[derive(Debug, Default)]
struct Override {
    vcpus: Option<u32>,
    mem_mib: Option<u32>,
    data_disk_mib: Option<u64>,
    /// Of workers only.
    instances: Option<u32>,
}

impl File {
    fn read(root: &DeTable<'_>) -> Result<Self, Problem> {
        const ROOT: Keys = Keys { known: &["secrets", "overrides", "users", "endpoints"], later: &[] };
        let root = Table::new(String::new(), root, &ROOT)?;
        let secrets = root.required("secrets", secrets::read)?;
        for (name, what) in NEEDED {
            if !secrets.iter().any(|secret| secret.name == name) {
                let message = format!("{what} is missing: add `{name} = {{ file = \"…\" }}`");
                return Err(Problem::new("secrets", message));
            }
        }
        let [gateways, workers] = root.optional("overrides", read_overrides)?.unwrap_or_default();
        let users = root.list("users", read_user)?;
        let endpoints = root.optional("endpoints", read_endpoints)?.unwrap_or_default();
        Ok(Self { secrets, gateways, workers, users, endpoints })
    }

    fn deployment(&self, new: &NewOpenClaw) -> Result<Deployment, Problem> {
        let users = match self.users.as_slice() {
            [] => vec![only_user(&new.tenant)?],
            users => users.to_vec(),
        };
        let count = u32::try_from(users.len()).unwrap_or(u32::MAX);
        let pools = vec![self.gateways_pool()?, self.workers_pool(count, new.image.clone())?];
        self.check_quotas(&pools)?;
        Ok(Deployment {
            tenant: new.tenant.clone(),
            network: new.network,
            quotas: QUOTAS,
            pools,
            publish: Vec::new(),
            routes: RoutingTable::default(),
            users,
            endpoints: self.endpoints.clone(),
        })
    }

    /// A file cannot change the quotas: what would be more than they allow is told at the key that asks for it.
    fn check_quotas(&self, pools: &[PoolSpec]) -> Result<(), Problem> {
        QUOTAS.admit(&Usage::of_pools(pools)).map_err(|QuotaExceeded { limit, allowed, needed }| {
            let key = match limit {
                "max_vcpus" => "overrides.gateways.vcpus",
                "max_mem_mib" => "overrides.gateways.mem_mib",
                "max_disk_gib" if self.workers.data_disk_mib.is_none() => "overrides.gateways.data_disk_mib",
                "max_disk_gib" => "overrides.workers.data_disk_mib",
                _ if self.workers.instances.is_some() => "overrides.workers.instances",
                _ => "users",
            };
            let message = format!(
                "a new tenant of OpenClaw has the quota {limit} = {allowed}, and {needed} would be needed: ask for less, and raise it \
                 by `mvm tenant update` once the tenant is there"
            );
            Problem::new(key, message)
        })
    }

    fn gateways_pool(&self) -> Result<PoolSpec, Problem> {
        let scopes = ["anthropic", "telegram", "discord"].map(|scope| SecretScope {
            integration: scope.to_owned(),
            keys: self.secrets.iter().filter(|s| s.scope == scope).map(|s| s.key.clone()).collect(),
        });
        let own = scope(openclaw::SCOPE, openclaw::TOKEN_KEY);
        let mut pool = pool(GATEWAYS, Role::Gateway, "minimal", 1024, 1024)?;
        pool.secret_scopes =
            Some(scopes.into_iter().filter(|scope| !scope.keys.is_empty()).chain([own]).collect());
        pool.desired.running = 1;
        pool.egress = egress(&self.endpoints)?;
        self.gateways.apply(&mut pool);
        Ok(pool)
    }

    fn workers_pool(&self, users: u32, image: Option<String>) -> Result<PoolSpec, Problem> {
        let image = image.unwrap_or_else(|| "openclaw".to_owned());
        let mut pool = pool(WORKERS, Role::CapabilityOpenclaw, &image, 2048, 2048)?;
        pool.secret_scopes = Some(vec![scope(openclaw::SCOPE, openclaw::WORKER_TOKEN_KEY)]);
        pool.desired.sleeping = self.workers.instances.unwrap_or(users);
        self.workers.apply(&mut pool);
        Ok(pool)
    }
}

impl Override {
    fn apply(&self, pool: &mut PoolSpec) {
        let own = pool.resources;
        pool.resources = Resources {
            vcpus: self.vcpus.unwrap_or(own.vcpus),
            mem_mib: self.mem_mib.unwrap_or(own.mem_mib),
            data_disk_mib: self.data_disk_mib.unwrap_or(own.data_disk_mib),
        };
    }
}

/// A tenant of OpenClaw may use so much.
const QUOTAS: Quotas = Quotas {
    max_vcpus: Some(32),
    max_mem_mib: Some(65536),
    max_running: Some(16),
    max_warm: Some(8),
    max_pools: Some(10),
    max_instances_per_pool: Some(32),
    max_disk_gib: Some(500),
};

/// Without a list of them there is one user, with the tenant's name.
fn only_user(tenant: &TenantId) -> Result<User, Problem> {
    let name: UserName =
        tenant.as_str().parse().map_err(|error: InvalidId| Problem::new("users", error.to_string()))?;
    Ok(User { name, telegram: None, monthly_limit_cents: None })
}

fn pool(id: &str, role: Role, image: &str, mem_mib: u32, data_disk_mib: u64) -> Result<PoolSpec, Problem> {
    let id: PoolId = id.parse().map_err(|error: InvalidId| Problem::new("", error.to_string()))?;
    Ok(PoolSpec {
        sleep_after_seconds: PoolSpec::default_sleep_after_seconds(),
        id,
        role,
        profile: Profile::default(),
        image: image.to_owned(),
        resources: Resources { vcpus: 2, mem_mib, data_disk_mib },
        desired: DesiredCounts::default(),
        egress: Egress::None,
        secret_scopes: None,
        runtime_policy: RuntimePolicy::default(),
        restart: RestartPolicy::default_for(role),
        snapshot_compression: SnapshotCompression::default(),
        spares: PoolSpec::default_spares(),
    })
}

fn scope(integration: &str, key: &str) -> SecretScope {
    SecretScope { integration: integration.to_owned(), keys: vec![key.to_owned()] }
}

/// A gateway reaches the services outside, and nothing else.
fn egress(endpoints: &Endpoints) -> Result<Egress, Problem> {
    let rule = |(name, url): (&str, &ServiceUrl)| {
        let (host, port) = url.host_and_port();
        let rule = format!("{host}:{port}").parse();
        rule.map_err(|error: crate::egress::InvalidEgress| {
            Problem::new(format!("endpoints.{name}"), error.to_string())
        })
    };
    let of = [("telegram", &endpoints.telegram), ("anthropic", &endpoints.anthropic)];
    let mut rules = of.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    rules.dedup();
    Ok(Egress::Only(rules))
}

fn read_overrides(section: Value<'_, '_>) -> Result<[Override; 2], Problem> {
    const OVERRIDES: Keys = Keys { known: &[GATEWAYS, WORKERS], later: &[("flake", "flake images are")] };
    let overrides = section.table(&OVERRIDES)?;
    let of = |name, keys| {
        let read = |section: Value<'_, '_>| read_override(&section.table(keys)?);
        Ok(overrides.optional(name, read)?.unwrap_or_default())
    };
    Ok([of(GATEWAYS, &OF_GATEWAYS)?, of(WORKERS, &OF_WORKERS)?])
}

const OF_GATEWAYS: Keys = Keys { known: &["vcpus", "mem_mib", "data_disk_mib"], later: &[] };
const OF_WORKERS: Keys = Keys { known: &["vcpus", "mem_mib", "data_disk_mib", "instances"], later: &[] };

fn read_override(of: &Table<'_, '_>) -> Result<Override, Problem> {
    Ok(Override {
        vcpus: of.optional("vcpus", |value| value.integer(&VCPUS))?,
        mem_mib: of.optional("mem_mib", |value| value.integer(&MEM_MIB))?,
        data_disk_mib: of.optional("data_disk_mib", |value| value.integer(&DATA_DISK_MIB))?,
        instances: of.optional("instances", |value| value.integer(&(1..=1000)))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ManifestError;

    const FILE: &str = "[secrets]\nanthropic_key = { file = 'a' }\ntelegram_token = { file = 't' }\n\
        [endpoints]\ntelegram = 'http://192.0.2.1:81'\nanthropic = 'http://192.0.2.1:82'\n";

    fn new(text: &str) -> Result<Manifest, ManifestError> {
        let tenant = "alice".parse().unwrap();
        let new = NewOpenClaw { tenant, network: RequestedNetwork::default(), image: None };
        Manifest::openclaw(text, &new).map_err(|mistake| match mistake {
            NewMistake::InFile(error) => error,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_file_with_two_secrets_makes_one_assistant() {
        let manifest = new(FILE).unwrap();
        let Deployment { pools, users, quotas, .. } = &manifest.deployment;
        assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["alice"]);
        assert_eq!(quotas.max_instances_per_pool, Some(32));
        let [gateways, workers] = pools.as_slice() else { panic!("{pools:?}") };
        assert_eq!((gateways.desired.running, workers.desired.sleeping), (1, 1));
        assert_eq!((gateways.resources.mem_mib, workers.resources.mem_mib), (1024, 2048));
        let Egress::Only(rules) = &gateways.egress else { panic!("{:?}", gateways.egress) };
        assert_eq!(
            rules.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1/32:81", "192.0.2.1/32:82"]
        );
        assert_eq!(workers.egress, Egress::None);
        // It is a manifest like any other.
        let again = Manifest::parse(&manifest.deployment.to_manifest(&[])).unwrap();
        assert_eq!(again.deployment, manifest.deployment);
    }

    #[test]
    fn no_worker_is_given_a_key_of_a_service_outside() {
        let manifest = new(FILE).unwrap();
        let workers = &manifest.deployment.pools[1];
        for secret in manifest.secrets.as_ref().unwrap() {
            assert!(!workers.is_given(&secret.scope, &secret.key), "{}", secret.name);
        }
    }

    #[test]
    fn mistakes_have_their_place() {
        let at = |text: &str| {
            let error = new(text).unwrap_err();
            (error.key, error.place.line)
        };
        assert_eq!(at(""), ("secrets".to_owned(), 1));
        assert_eq!(at(&FILE.replace("telegram_token = { file = 't' }", "")), ("secrets".to_owned(), 1));
        assert_eq!(
            at(&FILE.replace("'http://192.0.2.1:81'", "'nowhere'")),
            ("endpoints.telegram".to_owned(), 5)
        );
        for (more, key) in [
            ("[overrides]\nflake = 'github:org/app'", "overrides.flake"),
            ("[overrides.workers]\nmem_mib = 1", "overrides.workers.mem_mib"),
            ("[[users]]\nname = 'a'\n[[users]]\nname = 'a'", "users[1].name"),
            ("[[users]]\nname = 'a'\ntelegram = -1", "users[0].telegram"),
            ("[[users]]\nname = 'a'\nmonthly_limit_usd = 1.005", "users[0].monthly_limit_usd"),
            ("[[pools]]\nid = 'x'", "pools"),
            ("[overrides.workers]\ninstances = 33", "overrides.workers.instances"),
            ("[overrides.workers]\ndata_disk_mib = 600000", "overrides.workers.data_disk_mib"),
            ("[overrides.gateways]\nmem_mib = 70000\ndata_disk_mib = 600000", "overrides.gateways.mem_mib"),
            ("[overrides.gateways]\ndata_disk_mib = 600000", "overrides.gateways.data_disk_mib"),
        ] {
            assert_eq!(at(&format!("{FILE}{more}\n")).0, key);
        }
        let two = format!(
            "{FILE}[overrides.workers]\ninstances = 1\n[[users]]\nname = 'a'\n[[users]]\nname = 'b'\n"
        );
        assert_eq!(at(&two).0, "users");
        let many: String = (0..33).map(|n| format!("[[users]]\nname = 'u{n}'\n")).collect();
        assert_eq!(at(&format!("{FILE}{many}")), ("users".to_owned(), 7));
    }
}
