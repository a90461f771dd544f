//! Kernel settings below /proc/sys/net, of the calling thread's namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::{Error, Result};

/// A setting and the value it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Below /proc/sys/net, as `ipv4/conf/eth0/forwarding`.
    pub(crate) key: String,
    /// Its value.
    pub(crate) value: &'static str,
    /// Whether a kernel without it is as good: the feature that it switches off is not there.
    pub(crate) optional: bool,
}

impl Setting {
    fn required(key: String, value: &'static str) -> Self {
        Self { key, value, optional: false }
    }

    fn optional(key: String, value: &'static str) -> Self {
        Self { key, value, optional: true }
    }
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// The value; `None` where the kernel has no such setting.
pub(crate) fn read(key: &str) -> Result<Option<String>> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Kernel { action: format!("read setting {key}"), source }),
    }
}

/// Writes a value.
pub(crate) fn write(key: &str, value: &str) -> Result<()> {
    fs::write(path(key), value).map_err(Error::kernel(format!("set {key} to {value}")))
}

/// Sets what differs.
pub(crate) fn apply(settings: &[Setting]) -> Result<()> {
    for setting in settings {
        match read(&setting.key)? {
            None if setting.optional => {}
            Some(value) if value == setting.value => {}
            _ => write(&setting.key, setting.value)?,
        }
    }
    Ok(())
}

/// The settings that differ, each with the value found.
pub(crate) fn differing(settings: &[Setting]) -> Result<Vec<(Setting, Option<String>)>> {
    let mut found = Vec::new();
    for setting in settings {
        let value = read(&setting.key)?;
        let fits = match &value {
            None => setting.optional,
            Some(value) => value == setting.value,
        };
        if !fits {
            found.push((setting.clone(), value));
        }
    }
    Ok(found)
}

/// The key of an interface's IPv4 forwarding.
pub(crate) fn forwarding_key(link: &str) -> String {
    format!("ipv4/conf/{link}/forwarding")
}

/// What holds for a whole tenant namespace.
pub(crate) fn of_tenant_namespace() -> Vec<Setting> {
    let mut settings = Vec::new();
    for scope in ["all", "default"] {
        settings.extend(strict_ipv4(scope));
        settings.push(Setting::optional(format!("ipv6/conf/{scope}/disable_ipv6"), "1"));
    }
    // Else a burst of denied connections is answered once a second, and the rest looks like a hang.
    settings.push(Setting::required("ipv4/icmp_ratelimit".to_owned(), "0"));
    // Frames between two ports are the bridge's business: they must not pass the filters of routed packets.
    for family in ["iptables", "ip6tables", "arptables"] {
        settings.push(Setting::optional(format!("bridge/bridge-nf-call-{family}"), "0"));
    }
    settings
}

/// What holds for a link that routes a tenant's packets, on either side.
pub(crate) fn of_routing_link(link: &str) -> Vec<Setting> {
    let mut settings = strict_ipv4(link).to_vec();
    settings.push(Setting::required(forwarding_key(link), "1"));
    settings.push(Setting::optional(format!("ipv6/conf/{link}/disable_ipv6"), "1"));
    settings
}

fn strict_ipv4(scope: &str) -> [Setting; 5] {
    [
        ("send_redirects", "0"),
        ("accept_redirects", "0"),
        ("accept_source_route", "0"),
        ("rp_filter", "1"),
        ("arp_ignore", "1"),
    ]
    .map(|(key, value)| Setting::required(format!("ipv4/conf/{scope}/{key}"), value))
}
