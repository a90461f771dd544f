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
    /// What runs before machines are cloned from one. Not written where absent, so that images without keep their digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<Prewarm>,
}

impl ServicesFile {
    /// How long the services may take to be ready, in seconds. They start together, so it is the most that one is allowed.
    pub fn start_seconds(&self) -> u32 {
        let ready = self.services.iter().filter_map(|service| service.ready.as_ref());
        ready.map(|ready| ready.timeout_seconds).max().unwrap_or(0)
    }
}

/// A command that warms up the machine from which others are cloned: it runs once, before that machine is anyone's,
/// without network, /data, config and secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prewarm {
    /// Program (absolute path) and arguments. It has to end by itself.
    pub command: Vec<String>,
    /// Runs as this user; root where absent. The user's home, on /data, is not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How long it may take, in seconds.
    #[serde(default = "a_minute")]
    pub timeout_seconds: u32,
    /// What tells the processes that it leaves running to draw fresh randomness. Without one they are killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reseed_signal: Option<ReseedSignal>,
}

/// A signal that a program may give a meaning of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReseedSignal {
    /// Number 1.
    #[serde(rename = "SIGHUP")]
    Hup,
    /// Number 10.
    #[serde(rename = "SIGUSR1")]
    Usr1,
    /// Number 12.
    #[serde(rename = "SIGUSR2")]
    Usr2,
    /// Number 28.
    #[serde(rename = "SIGWINCH")]
    Winch,
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
    /// What the guest speaks with it beside starting it. Not written where absent, so that images without keep their digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
}

/// A program whose own ways of being configured, asked and suspended the guest knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Adapter {
    /// `openclaw gateway run`: its config file is made from the machine's, at `OPENCLAW_CONFIG_PATH` of its environment.
    OpenClaw,
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
    #[serde(default = "a_minute")]
    pub timeout_seconds: u32,
}

fn a_minute() -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_older_images_are_read_and_written_as_they_were() {
        let older = r#"{"services":[],"users":[{"name":"web","uid":1000}]}"#;
        let file: ServicesFile = serde_json::from_str(older).unwrap();
        assert_eq!(file.prewarm, None);
        assert_eq!(serde_json::to_string(&file).unwrap(), older);
    }

    #[test]
    fn services_may_take_as_long_to_start_as_the_slowest_of_them() {
        let of = |services: &str| {
            let file: ServicesFile =
                serde_json::from_str(&format!(r#"{{"services":[{services}],"users":[]}}"#)).unwrap();
            file.start_seconds()
        };
        assert_eq!(of(""), 0);
        assert_eq!(of(r#"{"name":"a","command":["/a"]}"#), 0, "ready at once");
        let slow = r#"{"name":"b","command":["/b"],"ready":{"tcp":{"port":1},"timeout_seconds":900}}"#;
        let usual = r#"{"name":"c","command":["/c"],"ready":{"tcp":{"port":2}}}"#;
        assert_eq!(of(&format!("{slow},{usual}")), 900);
        assert_eq!(of(usual), 60);
    }

    #[test]
    fn a_prewarm_has_a_minute_and_leaves_nothing_running_unless_it_says_so() {
        let prewarm: Prewarm = serde_json::from_str(r#"{"command":["/bin/true"]}"#).unwrap();
        assert_eq!((prewarm.timeout_seconds, prewarm.reseed_signal, prewarm.user), (60, None, None));
        for (signal, known) in [("SIGUSR1", true), ("SIGHUP", true), ("SIGKILL", false), ("USR1", false)] {
            let text = format!(r#"{{"command":["/bin/true"],"reseed_signal":"{signal}"}}"#);
            assert_eq!(serde_json::from_str::<Prewarm>(&text).is_ok(), known, "{signal}");
        }
    }
}
