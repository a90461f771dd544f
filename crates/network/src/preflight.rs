//! Whether this host can have tenant networks at all.

use std::process::Command;

use mvm_model::network::CLUSTER_RANGE;
use mvm_model::{Egress, NetId, Requirement};

use crate::namespace::Namespace;
use crate::netlink::{Netlink, PortFlags};
use crate::rules::Checks;
use crate::uplink::overlap;
use crate::{Error, NodeTag, PortSpec, Result, TenantNetwork, Uplink, choose_uplink, host, nft, rules, tun};

const IPROUTE2: &str = "iproute2";
const NAMESPACES: &str = "namespaces";
const TUN: &str = "tun";
const BRIDGES: &str = "bridges";
const NFTABLES: &str = "nftables";
const RANGE: &str = "address range";
const UPLINKS: &str = "uplink addresses";

/// Tries everything a tenant network needs in a namespace that is thrown away, and looks at the host's addresses.
pub(crate) fn check(tag: &NodeTag, host: &Namespace) -> Vec<Requirement> {
    let mut found = vec![iproute2()];
    match Namespace::scratch(|| Ok(try_parts(tag))) {
        Ok(parts) => {
            found.push(Requirement::ok(NAMESPACES, "network namespaces can be made"));
            found.extend(parts);
        }
        Err(error) => {
            found.push(if rustix::process::geteuid().is_root() {
                Requirement::missing(
                    NAMESPACES,
                    error,
                    "use a kernel with network namespaces (CONFIG_NET_NS), outside of a container or in one with \
                     CAP_SYS_ADMIN",
                )
            } else {
                Requirement::unknown(NAMESPACES, "only root can try it")
            });
            let untried = |name| Requirement::unknown(name, "only tried where a namespace can be made");
            found.extend([untried(TUN), untried(BRIDGES), nft_itself().unwrap_or_else(|missing| missing)]);
        }
    }
    match host.run(host::taken) {
        Ok(taken) => found.extend([range(&taken), uplinks(&taken)]),
        Err(error) => found.extend([RANGE, UPLINKS].map(|name| Requirement::unknown(name, &error))),
    }
    found
}

fn iproute2() -> Requirement {
    match Command::new("ip").arg("-Version").output() {
        Ok(output) => {
            Requirement::ok(IPROUTE2, String::from_utf8_lossy(&output.stdout).trim().trim_end_matches(", "))
        }
        Err(error) => {
            let found = format!("cannot run `ip`: {error}");
            Requirement::missing(IPROUTE2, found, "install the package iproute2").by_package("iproute2")
        }
    }
}

/// Whether the tool is there, whatever the kernel says.
fn nft_itself() -> std::result::Result<Requirement, Requirement> {
    match nft::version() {
        Ok(version) => Ok(Requirement::unknown(
            NFTABLES,
            format!("{version}; what the kernel takes is only tried where a namespace can be made"),
        )),
        Err(Error::ToolMissing { tool, package, source }) => {
            let (found, remedy) =
                (format!("cannot run `{tool}`: {source}"), format!("install the package {package}"));
            Err(Requirement::missing(NFTABLES, found, remedy).by_package(package))
        }
        Err(error) => Err(Requirement::unknown(NFTABLES, error)),
    }
}

fn range(taken: &[host::Taken]) -> Requirement {
    let in_the_way: Vec<_> = taken.iter().filter(|taken| overlap(taken.net, CLUSTER_RANGE)).collect();
    if in_the_way.is_empty() {
        return Requirement::ok(RANGE, format!("nothing on this host overlaps {CLUSTER_RANGE}"));
    }
    let named = |say: &dyn Fn(&host::Taken) -> String| {
        in_the_way.iter().map(|taken| say(taken)).collect::<Vec<_>>().join(", ")
    };
    let found = named(&|taken| format!("{} ({})", taken.net, taken.what));
    Requirement::missing(
        RANGE,
        format!("{CLUSTER_RANGE}, the range of tenants' addresses, overlaps {found}"),
        format!(
            "remove {} from the host, or run mvm on a host that does not use {CLUSTER_RANGE}",
            named(&|taken| taken.net.to_string())
        ),
    )
}

fn uplinks(taken: &[host::Taken]) -> Requirement {
    let nets: Vec<_> = taken.iter().map(|taken| taken.net).collect();
    match choose_uplink(&nets) {
        Ok(uplink) => Requirement::ok(UPLINKS, format!("{} is free", uplink.net())),
        Err(error) => Requirement::missing(UPLINKS, error, "remove the route that covers 169.254.64.0/18"),
    }
}

/// Tap, bridge and filters.
fn try_parts(tag: &NodeTag) -> Vec<Requirement> {
    let Some(sample) = sample() else { return Vec::new() };
    let tap = tun::open_tap(&sample.0.net_id.tap_name(sample.1.offset));
    let tun = match &tap {
        Ok(_) => Requirement::ok(TUN, "taps can be made"),
        Err(error) => Requirement::missing(
            TUN,
            format!("cannot make a tap by /dev/net/tun: {error}"),
            "load the kernel module; in a container, give it /dev/net/tun",
        )
        .by_command(&["modprobe", "tun"]),
    };
    vec![tun, bridges(&sample), filters(tag, &sample, tap.is_ok())]
}

fn bridges((network, port): &(TenantNetwork, PortSpec)) -> Requirement {
    match try_bridge(network, port) {
        Ok(()) => Requirement::ok(BRIDGES, "bridges with isolated ports can be made"),
        Err(error) => Requirement::missing(
            BRIDGES,
            format!("bridges with isolated ports do not work: {error}"),
            "use a kernel with bridges and virtual links",
        )
        .by_command(&["modprobe", "-a", "bridge", "veth"]),
    }
}

/// A filter of a machine's tap needs the tap.
fn filters(tag: &NodeTag, (network, port): &(TenantNetwork, PortSpec), has_tap: bool) -> Requirement {
    if let Err(missing) = nft_itself() {
        return missing;
    }
    let of_port = if has_tap { rules::admit(network, port, Checks::New) } else { String::new() };
    match nft::load(&(rules::tenant_table(network) + &of_port + &rules::host_table(tag))) {
        Ok(()) => Requirement::ok(NFTABLES, "the kernel takes every filter"),
        Err(error) => Requirement::missing(
            NFTABLES,
            format!("the kernel does not take the filters: {error}"),
            "use a kernel with nf_tables for inet, ip and netdev, with nat, reject and conntrack",
        )
        .by_command(&["modprobe", "-a", "nf_tables", "nft_ct", "nft_nat", "nft_reject_inet"]),
    }
}

/// The lowest there can be of everything: it is only made in a namespace that is thrown away.
fn sample() -> Option<(TenantNetwork, PortSpec)> {
    let net_id = NetId::all().next()?;
    let (subnet, offset) = (net_id.default_subnet(), 3);
    let network = TenantNetwork { net_id, subnet, uplink: Uplink::all().next()? };
    let ip = subnet.machine_ip(offset)?;
    Some((network, PortSpec { offset, mac: net_id.mac(offset), ip, isolated: true, egress: Egress::Any }))
}

fn try_bridge(network: &TenantNetwork, port: &PortSpec) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let name = network.net_id.bridge_name();
    netlink.create_bridge(&name, network.net_id.mac(1))?;
    if let (Some(bridge), Some(tap)) =
        (netlink.link(&name)?, netlink.link(&network.net_id.tap_name(port.offset))?)
    {
        netlink.join_bridge(&tap, &bridge)?;
        netlink.set_port(&tap, PortFlags { isolated: true, ..PortFlags::default() })?;
    }
    Ok(())
}
