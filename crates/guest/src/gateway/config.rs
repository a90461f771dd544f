//! Where a gateway's files are, and its limits.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use mvm_protocol::{HOST_STREAMS, MAX_GATEWAY_STREAMS};

use super::{GatewayError, OpenClawConfig, TrustedProxy};

/// What a gateway needs to know to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The routing table; read at start and at SIGHUP.
    pub routes: PathBuf,
    /// The Unix socket on which the agent takes requests for port 53.
    pub host_socket: PathBuf,
    /// Written when the ports are open, removed at the end.
    pub ready: PathBuf,
    /// The address to listen on.
    pub listen: Ipv4Addr,
    /// Whose PROXY headers are believed.
    pub trusted_proxy: TrustedProxy,
    /// How much and how long.
    pub limits: Limits,
    /// For a gateway of a tenant of OpenClaw.
    pub openclaw: OpenClawConfig,
}

/// How much a gateway takes on, and how long it waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, idle ones too. Further ones wait in the kernel's queue.
    pub connections: usize,
    /// Requests that hold a machine at once: the gateway's share of the streams to the host. One more is
    /// answered 503.
    pub holds: usize,
    /// How long a client may take for a PROXY header, for a request's head, and to begin its next request.
    pub head: Duration,
    /// How long the host may take to make a machine ready.
    pub hold: Duration,
    /// How long a machine that is ready may take to accept a connection.
    pub connect: Duration,
    /// How long a request may go on without a byte in either direction.
    pub silence: Duration,
    /// How long requests in flight may take at the end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            holds: MAX_GATEWAY_STREAMS - HOST_STREAMS,
            head: Duration::from_secs(75),
            hold: Duration::from_secs(25),
            connect: Duration::from_secs(2),
            silence: Duration::from_secs(300),
            drain: Duration::from_secs(10),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            routes: "/etc/mvm-config/routes.json".into(),
            host_socket: "/run/mvm/host.sock".into(),
            ready: "/run/mvm/gateway.ready".into(),
            listen: Ipv4Addr::UNSPECIFIED,
            trusted_proxy: TrustedProxy::DefaultRoute,
            limits: Limits::default(),
            openclaw: OpenClawConfig::default(),
        }
    }
}

impl Config {
    /// The defaults, changed by what `variable` finds: `MVM_GATEWAY_ROUTES`, `MVM_GATEWAY_HOST_SOCKET`, `MVM_GATEWAY_READY`
    /// `MVM_GATEWAY_CONFIG`, `MVM_GATEWAY_SECRETS`, `MVM_GATEWAY_DATA`, `SSL_CERT_FILE` (paths), `MVM_TRUSTED_PROXY` (an IPv4
    /// address), `MVM_GATEWAY_HOLD_SECONDS`, `MVM_GATEWAY_METRICS` (address and port).
    ///
    /// # Errors
    /// [`GatewayError::Variable`]
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Config, GatewayError> {
        let mut config = Config::default();
        for (name, path) in [
            ("MVM_GATEWAY_ROUTES", &mut config.routes),
            ("MVM_GATEWAY_HOST_SOCKET", &mut config.host_socket),
            ("MVM_GATEWAY_READY", &mut config.ready),
            ("MVM_GATEWAY_CONFIG", &mut config.openclaw.machine_config),
            ("MVM_GATEWAY_SECRETS", &mut config.openclaw.secrets),
            ("MVM_GATEWAY_DATA", &mut config.openclaw.data),
        ] {
            if let Some(value) = variable(name) {
                *path = value.into();
            }
        }
        config.openclaw.more_roots = variable("SSL_CERT_FILE").map(PathBuf::from);
        let name = "MVM_GATEWAY_METRICS";
        if let Some(value) = variable(name) {
            let Ok(address) = value.parse() else {
                return Err(GatewayError::Variable { name, value, expected: "an IPv4 address and a port" });
            };
            config.openclaw.metrics = address;
        }
        let name = "MVM_TRUSTED_PROXY";
        if let Some(value) = variable(name) {
            let Ok(address) = value.parse() else {
                return Err(GatewayError::Variable { name, value, expected: "an IPv4 address" });
            };
            config.trusted_proxy = TrustedProxy::Address(address);
        }
        let name = "MVM_GATEWAY_HOLD_SECONDS";
        if let Some(value) = variable(name) {
            let Ok(seconds) = value.parse() else {
                return Err(GatewayError::Variable { name, value, expected: "a number of seconds" });
            };
            config.limits.hold = Duration::from_secs(seconds);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_change_the_defaults_and_bad_ones_are_named() {
        let set = |name: &'static str, value: &'static str| {
            Config::from_variables(move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(set("MVM_GATEWAY_ROUTES", "/x").unwrap().routes, PathBuf::from("/x"));
        assert_eq!(set("MVM_GATEWAY_HOLD_SECONDS", "3").unwrap().limits.hold, Duration::from_secs(3));
        let trusted = set("MVM_TRUSTED_PROXY", "10.240.0.1").unwrap().trusted_proxy;
        assert_eq!(trusted.address(), Some(Ipv4Addr::new(10, 240, 0, 1)));
        let error = set("MVM_TRUSTED_PROXY", "bridge").unwrap_err().to_string();
        assert_eq!(error, "MVM_TRUSTED_PROXY=bridge: an IPv4 address is expected");
        assert!(set("MVM_GATEWAY_HOLD_SECONDS", "soon").is_err());
    }
}
