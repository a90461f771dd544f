//! The machine's one network interface.

use std::fs;
use std::path::Path;

use mvm_protocol::control::Identity;

use crate::console::say;
use crate::error::{Doing as _, Failure, Result};
use crate::sys::Interface;

const INTERFACES: &str = "/sys/class/net";

/// The first interface that is a device; lo is none.
fn name() -> Result<String> {
    let entries = fs::read_dir(INTERFACES).doing("listing network interfaces")?;
    let mut names = entries
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.next().ok_or_else(|| Failure::new("finding the network interface", "the machine has none"))
}

/// The interfaces that are up, but for lo.
///
/// # Errors
/// The kernel does not say.
pub(super) fn up() -> Result<Vec<String>> {
    const IFF_UP: u32 = 1;
    let entries = fs::read_dir(INTERFACES).doing("listing network interfaces")?;
    let is_up = |path: &Path| {
        let flags = fs::read_to_string(path.join("flags")).unwrap_or_default();
        u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).is_ok_and(|flags| flags & IFF_UP != 0)
    };
    let up = entries.flatten().filter(|entry| entry.file_name() != "lo" && is_up(&entry.path()));
    Ok(up.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Looks up the interface and makes it quiet, which can be done before the machine is anyone's.
///
/// # Errors
/// There is none.
pub(super) fn prepare() -> Result<String> {
    let name = name()?;
    quiet(&name);
    Ok(name)
}

/// Takes the machine's addresses. The same ones are left alone, and with them every open connection.
pub(super) fn apply(prepared: Option<&str>, new: &Identity, old: Option<&Identity>) -> Result<()> {
    let same = |old: &Identity| {
        (old.mac, old.ip, old.prefix_len, old.gateway) == (new.mac, new.ip, new.prefix_len, new.gateway)
    };
    if old.is_some_and(same) {
        return Ok(());
    }
    let name = prepared.map_or_else(prepare, |name| Ok(name.to_owned()))?;
    let interface = Interface::new(&name).doing(format_args!("opening {name}"))?;
    interface.set_up(false).doing(format_args!("taking {name} down"))?;
    interface.set_mac(new.mac.0).doing(format_args!("setting the Ethernet address of {name}"))?;
    interface.set_up(true).doing(format_args!("taking {name} up"))?;
    interface.set_address(new.ip, new.prefix_len).doing(format_args!("setting the address of {name}"))?;
    interface.add_default_route(new.gateway).doing("setting the default route")
}

/// No IPv6, and nobody is believed who says that there is a better way. Neighbours are kept while the link is down, as it is
/// when the machine sleeps: an address of a tenant's network always has the same Ethernet address.
fn quiet(name: &str) {
    let settings = [
        (format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1"),
        (format!("/proc/sys/net/ipv4/conf/{name}/accept_redirects"), "0"),
        ("/proc/sys/net/ipv4/conf/all/accept_redirects".to_owned(), "0"),
        (format!("/proc/sys/net/ipv4/conf/{name}/arp_evict_nocarrier"), "0"),
    ];
    for (path, value) in settings.iter().filter(|(path, _)| Path::new(path).exists()) {
        if let Err(error) = fs::write(path, value) {
            say(format_args!("writing {path}: {error}"));
        }
    }
}
