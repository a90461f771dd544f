//! A pool's desired shape, as a manifest says it and the agent keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::role::Need;
use crate::{Egress, PoolId, RestartPolicy, Role, RuntimePolicy, openclaw};

/// Which packages the image holds: a built-in profile's or one's own name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Profile(pub String);

impl Default for Profile {
    fn default() -> Self {
        Self("minimal".to_owned())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What one machine of a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Data disk in MiB; 0 means no /data.
    pub data_disk_mib: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { vcpus: 2, mem_mib: 1024, data_disk_mib: 0 }
    }
}

/// How many instances a pool has, by the state in which new ones begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DesiredCounts {
    /// Begin running.
    pub running: u32,
    /// Begin paused.
    pub warm: u32,
    /// Begin asleep.
    pub sleeping: u32,
}

impl DesiredCounts {
    /// The number of instances.
    pub const fn total(&self) -> u32 {
        self.running + self.warm + self.sleeping
    }
}

/// Secrets that a pool's machines are given: one integration's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SecretScope {
    /// The scope, as in `/run/secrets/<scope>/<KEY>`.
    pub integration: String,
    /// The keys of it.
    pub keys: Vec<String>,
}

/// How the memory that a sleeping machine wrote is compressed on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SnapshotCompression {
    /// Not at all: the fastest wake.
    #[default]
    None,
    /// LZ4: fast.
    Lz4,
    /// Zstandard at its lowest level: small.
    Zstd,
}

impl SnapshotCompression {
    /// Every one there is.
    pub const ALL: [Self; 3] = [Self::None, Self::Lz4, Self::Zstd];

    /// The name in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Everything a tenant wants of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolSpec {
    /// Its name.
    pub id: PoolId,
    /// What its machines are for.
    pub role: Role,
    /// Which packages their image holds.
    pub profile: Profile,
    /// A built-in recipe's name, or the absolute path of a recipe's folder.
    pub image: String,
    /// What each machine has.
    pub resources: Resources,
    /// How many instances, and how new ones begin.
    pub desired: DesiredCounts,
    /// What machines may reach.
    pub egress: Egress,
    /// Which secrets they are given; every scope where absent.
    pub secret_scopes: Option<Vec<SecretScope>>,
    /// How long they may or must run.
    pub runtime_policy: RuntimePolicy,
    /// What follows a failure.
    pub restart: RestartPolicy,
    /// How long a machine of it is idle and unheld before policy puts it to sleep, in seconds; 0 is never.
    #[serde(default = "PoolSpec::default_sleep_after_seconds")]
    pub sleep_after_seconds: u32,
    /// How the memory of its sleeping machines is compressed.
    #[serde(default)]
    pub snapshot_compression: SnapshotCompression,
    /// How many VMMs at most are started ahead for it, while it has been in demand.
    #[serde(default = "PoolSpec::default_spares")]
    pub spares: u32,
}

impl PoolSpec {
    /// The most VMMs that are started ahead for a pool, unless its manifest says otherwise.
    pub const fn default_spares() -> u32 {
        1
    }

    /// How long a machine is idle before it is put to sleep, unless its pool's manifest says otherwise, in seconds.
    pub const fn default_sleep_after_seconds() -> u32 {
        300
    }

    /// Whether its machines are given a token of their own where a gateway has OpenClaw's, of which it is made: all that may
    /// have secrets of its scope, but for gateways.
    pub fn is_given_worker_token(&self) -> bool {
        let names_scope = |scopes: &Vec<SecretScope>| scopes.iter().any(|s| s.integration == openclaw::SCOPE);
        !self.role.is_gateway()
            && self.role.secrets() != Need::No
            && self.secret_scopes.as_ref().is_none_or(names_scope)
    }

    /// Whether its machines have something of a secret: it, or what is made of it for each.
    pub fn depends_on(&self, scope: &str, key: &str) -> bool {
        let is_token = (scope, key) == (openclaw::SCOPE, openclaw::TOKEN_KEY);
        self.is_given(scope, key) || is_token && self.is_given_worker_token()
    }

    /// Whether a secret belongs to this pool's machines.
    pub fn is_given(&self, scope: &str, key: &str) -> bool {
        let may_be = match (scope, key) {
            // Whoever has it can speak for every worker.
            (openclaw::SCOPE, openclaw::TOKEN_KEY) => self.role.is_gateway(),
            _ => self.role.secrets() != Need::No,
        };
        if !may_be {
            return false;
        }
        self.secret_scopes.as_ref().is_none_or(|scopes| {
            scopes.iter().any(|s| s.integration == scope && s.keys.iter().any(|k| k == key))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pools() -> impl Strategy<Value = PoolSpec> {
        let scope = (
            0..3usize,
            prop::sample::subsequence(vec!["OPENCLAW_TOKEN_KEY", "OPENCLAW_GATEWAY_TOKEN"], 0..=2),
        )
            .prop_map(|(scope, keys)| SecretScope {
                integration: ["openclaw", "default", "telegram"][scope].to_owned(),
                keys: keys.into_iter().map(str::to_owned).collect(),
            });
        let scopes = prop::option::of(prop::collection::vec(scope, 0..4));
        (0..Role::ALL.len(), scopes).prop_map(|(role, secret_scopes)| PoolSpec {
            id: "p".parse().unwrap(),
            role: Role::ALL[role],
            profile: Profile::default(),
            image: "minimal".to_owned(),
            resources: Resources::default(),
            desired: DesiredCounts::default(),
            egress: Egress::None,
            secret_scopes,
            runtime_policy: RuntimePolicy::default(),
            restart: RestartPolicy::OnDemand,
            sleep_after_seconds: 0,
            snapshot_compression: SnapshotCompression::None,
            spares: 0,
        })
    }

    proptest! {
        #[test]
        fn only_gateways_have_the_token_and_nobody_has_both(pool in pools()) {
            let has_token = pool.is_given(openclaw::SCOPE, openclaw::TOKEN_KEY);
            prop_assert!(!has_token || pool.role == Role::Gateway);
            prop_assert!(!(has_token && pool.is_given_worker_token()));
            if pool.role.secrets() == Need::No {
                prop_assert!(!pool.is_given_worker_token() && !pool.is_given("default", "X"));
            }
        }
    }

    #[test]
    fn a_worker_has_its_own_where_its_scopes_name_openclaw_or_are_all() {
        let worker = |scopes: &str| -> PoolSpec {
            let text =
                format!("tenant.id = 'a'\n[[pools]]\nid = 'p'\nrole = 'capability-openclaw'\n{scopes}");
            crate::manifest::Manifest::parse(&text).unwrap().deployment.pools.remove(0)
        };
        let of = |integration: &str, key: &str| {
            worker(&format!("secret_scopes = [{{ integration = '{integration}', keys = ['{key}'] }}]"))
        };
        assert!(worker("").is_given_worker_token());
        assert!(of("openclaw", "OPENCLAW_GATEWAY_TOKEN").is_given_worker_token());
        assert!(!of("telegram", "TELEGRAM_BOT_TOKEN").is_given_worker_token());
        assert!(!worker("secret_scopes = []").is_given_worker_token());
    }
}
