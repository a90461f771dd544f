//! The inside of a tenant's namespace. Every function here runs on a thread in it.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipnet::Ipv4Net;
use mvm_model::HostName;
use mvm_model::network::BRIDGE_OFFSET;

use crate::names::UPLINK_LINK;
use crate::netlink::{Link, Netlink, PortFlags};
use crate::rules::Checks;
use crate::{Error, PortSpec, Result, TenantNetwork, nft, rules, sysctl, tun};

/// The bridge's address with its prefix.
pub(crate) fn bridge_address(network: &TenantNetwork) -> Ipv4Net {
    Ipv4Net::new_assert(network.subnet.bridge_ip(), network.subnet.prefix_len())
}

/// The uplink's address on this side.
pub(crate) fn uplink_address(network: &TenantNetwork) -> Ipv4Net {
    Ipv4Net::new_assert(network.uplink.tenant_ip(), 31)
}

/// Filters first, then the bridge: at no moment does anything pass unfiltered.
pub(crate) fn ensure_inside(network: &TenantNetwork) -> Result<()> {
    sysctl::apply(&sysctl::of_tenant_namespace())?;
    nft::load(&rules::tenant_table(network))?;
    drop_spare_sets()?;
    let mut netlink = Netlink::open()?;
    if let Some(loopback) = netlink.link("lo")?.filter(|link| !link.up) {
        netlink.set_up(&loopback, true)?;
    }
    let name = network.net_id.bridge_name();
    let mac = network.net_id.mac(BRIDGE_OFFSET);
    let bridge = match netlink.link(&name)? {
        Some(bridge) => bridge,
        None => {
            netlink.create_bridge(&name, mac)?;
            existing(&mut netlink, &name)?
        }
    };
    if bridge.mac != Some(mac) {
        netlink.set_mac(&bridge, mac)?;
    }
    settle(&mut netlink, &bridge, bridge_address(network))
}

/// Removes the sets of names that no machine that runs may reach, once nothing is in them any more.
fn drop_spare_sets() -> Result<()> {
    let objects = nft::list(&["table", "ip", rules::TENANT_TABLE])?;
    let all_rules: String =
        objects.iter().filter_map(|object| object.get("rule")).map(|rule| rule.to_string()).collect();
    let empty = objects.iter().filter_map(|object| object.get("set")).filter(|set| set.get("elem").is_none());
    let names = empty.filter_map(|set| set.get("name")?.as_str());
    let spare =
        names.filter(|name| rules::is_set_of_name(name) && !all_rules.contains(&format!("\"@{name}\"")));
    let script: String = spare.map(rules::drop_set).collect();
    if script.is_empty() { Ok(()) } else { nft::load(&script) }
}

/// Addresses of a name, for machines that may reach it.
pub(crate) fn let_reach(name: &HostName, addresses: &[Ipv4Addr], lifetime: Duration) -> Result<()> {
    nft::load(&rules::let_reach(name, addresses, lifetime))
}

/// The tenant's end of the uplink, once the pair exists.
pub(crate) fn ensure_uplink(network: &TenantNetwork) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let link = existing(&mut netlink, UPLINK_LINK)?;
    settle(&mut netlink, &link, uplink_address(network))?;
    let gateway = network.uplink.host_ip();
    let routes = netlink.routes()?;
    let is_set = |route: &crate::netlink::Route| {
        route.net.prefix_len() == 0 && route.gateway == Some(gateway) && route.links == [link.index]
    };
    if routes.iter().any(is_set) { Ok(()) } else { netlink.set_default_route(gateway, &link) }
}

/// Gives a routing link its settings and exactly this address, and sets it up; changes only what differs.
pub(crate) fn settle(netlink: &mut Netlink, link: &Link, address: Ipv4Net) -> Result<()> {
    sysctl::apply(&sysctl::of_routing_link(&link.name))?;
    let addresses = netlink.addresses()?;
    let of_link: Vec<Ipv4Net> =
        addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, a)| *a).collect();
    for other in of_link.iter().filter(|found| **found != address) {
        netlink.delete_address(link, *other)?;
    }
    if !of_link.contains(&address) {
        netlink.add_address(link, address)?;
    }
    if link.up { Ok(()) } else { netlink.set_up(link, true) }
}

fn existing(netlink: &mut Netlink, name: &str) -> Result<Link> {
    netlink.link(name)?.ok_or_else(|| Error::Kernel {
        action: format!("find link {name}"),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Makes a machine's tap: down, of no bridge. A leftover that nobody holds is replaced.
pub(crate) fn open_tap(network: &TenantNetwork, offset: u16, namespace: &str) -> Result<OwnedFd> {
    open_named_tap(network.net_id.tap_name(offset), namespace)
}

/// Makes a tap of any name: down, of no bridge.
pub(crate) fn open_named_tap(tap: String, namespace: &str) -> Result<OwnedFd> {
    let busy = || Error::TapBusy { tap: tap.clone(), namespace: namespace.to_owned() };
    match tun::open_tap(&tap) {
        Ok(fd) => Ok(fd),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Err(busy()),
        Err(source) => Err(Error::Kernel { action: format!("create tap {tap}"), source }),
    }
}

/// Makes a tap that was made ahead the one of a machine. Whoever holds its descriptor holds it on.
pub(crate) fn assign_tap(network: &TenantNetwork, tap: &str, offset: u16, namespace: &str) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let no_tap = || Error::NoTap { tap: tap.to_owned(), namespace: namespace.to_owned() };
    let link = netlink.link(tap)?.ok_or_else(no_tap)?;
    netlink.rename(&link, &network.net_id.tap_name(offset))
}

/// How a machine's port is set.
pub(crate) fn port_flags(port: &PortSpec) -> PortFlags {
    PortFlags {
        isolated: port.isolated,
        learning: false,
        flood: false,
        multicast_flood: false,
        hairpin: false,
    }
}

/// Puts a machine's tap on the bridge, its source checks and egress before it.
pub(crate) fn admit(network: &TenantNetwork, port: &PortSpec, namespace: &str) -> Result<()> {
    let name = network.net_id.tap_name(port.offset);
    let mut netlink = Netlink::open()?;
    let no_tap = || Error::NoTap { tap: name.clone(), namespace: namespace.to_owned() };
    let tap = netlink.link(&name)?.ok_or_else(no_tap)?;
    let bridge = existing(&mut netlink, &network.net_id.bridge_name())?;
    let on_bridge = tap.bridge == Some(bridge.index);
    load_checks(network, port, on_bridge)?;
    if !on_bridge {
        netlink.join_bridge(&tap, &bridge)?;
    }
    let flags = port_flags(port);
    if !on_bridge || tap.port != flags {
        netlink.set_port(&tap, flags)?;
    }
    netlink.pin_mac(&tap, port.mac)?;
    if tap.up { Ok(()) } else { netlink.set_up(&tap, true) }
}

/// A tap that is on no bridge is probably new; if not, an earlier machine's checks are still there.
fn load_checks(network: &TenantNetwork, port: &PortSpec, on_bridge: bool) -> Result<()> {
    let script = |found| rules::admit(network, port, found);
    match if on_bridge { None } else { Some(nft::load(&script(Checks::New))) } {
        None | Some(Err(Error::Tool { .. })) => nft::load(&script(Checks::Replaced)),
        Some(loaded) => loaded,
    }
}

/// Takes a machine's tap and rules away, or what is left of them.
pub(crate) fn detach(network: &TenantNetwork, port: &PortSpec) -> Result<()> {
    let mut netlink = Netlink::open()?;
    if let Some(tap) = netlink.link(&network.net_id.tap_name(port.offset))? {
        netlink.delete_link(&tap)?;
    }
    nft::load(&rules::expel(network, port))
}

/// Deletes every link but the loopback: a tap that a machine still holds would keep the namespace alive with it.
pub(crate) fn delete_links() -> Result<()> {
    let mut netlink = Netlink::open()?;
    for link in netlink.links()?.iter().filter(|link| link.name != "lo") {
        // A veth's other end, or a tap whose machine ends just now, may have gone in between.
        if netlink.link(&link.name)?.is_some()
            && let Err(error) = netlink.delete_link(link)
            && netlink.link(&link.name)?.is_some()
        {
            return Err(error);
        }
    }
    Ok(())
}
