//! What runs in a machine: written by an image's recipe, read by the guest from [`SERVICES_PATH`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where an image keeps its [`ServicesFile`], as JSON.
pub const SERVICES_PATH: &str = "/etc/mvm/services.json";

/// The services and service users of one image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServicesFile {
    /// Started in this order, once the machine has its config and secrets.
    pub services: Vec<Service>,
    /// Users that services run as; their homes are on the data disk.
    pub users: Vec<ServiceUser>,
}

/// A user that services run as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceUser {
    /// Its name; the home folder is `/data/home/<name>`.
    pub name: String,
    /// User and group id, fixed so that images are reproducible.
    pub uid: u32,
}

/// A supervised process of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique in its image.
    pub name: String,
    /// Program (absolute path) and arguments. `mvm-guest` is the guest binary itself.
    pub command: Vec<String>,
    /// Runs as this user; root where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its environment, beside PATH, HOME and USER.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The secret scopes whose files this service's user owns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_scopes: Vec<String>,
    /// `scope/KEY`: secrets that are put into the environment as `KEY` too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from_secrets: Vec<String>,
    /// When the service counts as ready; at once where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
}

/// When a service counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// An HTTP request on the loopback address that must be answered with 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A TCP port on the loopback address that must accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A command that must exit 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// How long the start may take, in seconds.
    #[serde(default = "default_ready_timeout")]
    pub timeout_seconds: u32,
}

fn default_ready_timeout() -> u32 {
    60
}

/// See [`Readiness::http`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// The port.
    pub port: u16,
    /// The path, `/` where absent.
    #[serde(default = "root_path")]
    pub path: String,
}

fn root_path() -> String {
    "/".to_owned()
}

/// See [`Readiness::tcp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {
    /// The port.
    pub port: u16,
}
