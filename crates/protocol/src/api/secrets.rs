//! A tenant's secrets, one by one.

use serde::{Deserialize, Serialize};

use super::SecretValue;

/// A line of `tenant secrets list`: what is known of a secret, and nothing of its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SecretInfo {
    /// As in `/run/secrets/<scope>/<KEY>`.
    pub secret: String,
    /// Its name in a manifest's `[secrets]`, where one gives it.
    pub name: Option<String>,
    /// When its value was last another, in seconds since 1970; not known of what an earlier version set.
    pub set_at: Option<u64>,
    /// The file that it was read from, where it was one that is known.
    pub file: Option<String>,
    /// How many bytes it has.
    pub bytes: usize,
}

/// Secrets that are to have these values; the others stay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretsRequest {
    /// These.
    pub secrets: Vec<SecretValue>,
}

/// `tenant secrets set` and `rotate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SecretsSet {
    /// Those that have another value than before, as `scope/KEY`.
    pub changed: Vec<String>,
    /// Machines whose pools are given any of those that were asked for.
    pub machines: Vec<SecretTaker>,
}

/// A machine that is given secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SecretTaker {
    /// Its address.
    pub instance: String,
    /// Whether it has taken them.
    pub delivery: Delivery,
    /// Why it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Whether a machine has taken what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It has.
    Taken,
    /// It does not run: it takes them when it does.
    Later,
    /// It runs and could not: it goes on with what it had.
    Failed,
}
