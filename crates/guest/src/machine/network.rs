//! The machine's one network interface.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::net::Ipv4Addr;
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

/// No IPv6, and nobody is believed who says that there is a better way.
fn quiet(name: &str) {
    let settings = [
        (format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1"),
        (format!("/proc/sys/net/ipv4/conf/{name}/accept_redirects"), "0"),
        ("/proc/sys/net/ipv4/conf/all/accept_redirects".to_owned(), "0"),
    ];
    for (path, value) in settings.iter().filter(|(path, _)| Path::new(path).exists()) {
        if let Err(error) = fs::write(path, value) {
            say(format_args!("writing {path}: {error}"));
        }
    }
}

/// The kernel's table of neighbours. Kept open: a wake looks up no path.
#[derive(Debug)]
pub(super) struct Neighbours(File);

impl Neighbours {
    pub(super) fn open() -> Result<Self> {
        File::open("/proc/net/arp").map(Self).doing("opening the neighbours")
    }

    /// Forgets whose Ethernet address is which: after a sleep the neighbours may be others.
    pub(super) fn forget(&self) -> Result<()> {
        let mut table = String::new();
        let read = (&self.0).rewind().and_then(|()| (&self.0).read_to_string(&mut table));
        read.doing("reading the neighbours")?;
        for (address, device) in neighbours(&table) {
            let forgotten = Interface::new(device).and_then(|interface| interface.forget_neighbour(address));
            if let Err(error) = forgotten {
                // It may have gone by itself.
                say(format_args!("forgetting neighbour {address}: {error}"));
            }
        }
        Ok(())
    }
}

/// Address and device of each line of /proc/net/arp.
fn neighbours(table: &str) -> impl Iterator<Item = (Ipv4Addr, &str)> {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        Some((columns.next()?.parse().ok()?, columns.last()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_as_the_kernel_writes_them() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.240.0.1       0x1         0x2         02:00:00:00:00:01     *        eth0\n";
        let found: Vec<_> = neighbours(table).collect();
        assert_eq!(found, [(Ipv4Addr::new(10, 240, 0, 1), "eth0")]);
        assert_eq!(neighbours("").count(), 0);
    }
}
