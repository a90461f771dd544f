//! Whether this host can have tenant networks at all.

use std::process::Command;

use mvm_model::network::CLUSTER_RANGE;
use mvm_model::{Egress, NetId};
use serde::{Deserialize, Serialize};

use crate::namespace::Namespace;
use crate::netlink::{Netlink, PortFlags};
use crate::rules::Checks;
use crate::uplink::overlap;
use crate::{Error, NodeTag, PortSpec, Result, TenantNetwork, Uplink, choose_uplink, host, nft, rules, tun};

/// Something that keeps mvm from making networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// Tries everything a tenant network needs in a namespace that is thrown away, and looks at the host's addresses.
pub(crate) fn check(tag: &NodeTag, host: &Namespace) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    if let Err(error) = Command::new("ip").arg("-Version").output() {
        problems.push(Problem::new(format!("cannot run `ip`: {error}"), "install the package iproute2"));
    }
    match Namespace::scratch(|| Ok(try_parts(tag))) {
        Ok(found) => problems.extend(found),
        Err(error) => problems.push(Problem::new(
            error.to_string(),
            "run the agent as root on a kernel with network namespaces (CONFIG_NET_NS), outside of a container or \
             in one with CAP_SYS_ADMIN",
        )),
    }
    let taken = host.run(host::taken)?;
    for taken in taken.iter().filter(|taken| overlap(taken.net, CLUSTER_RANGE)) {
        problems.push(Problem::new(
            format!(
                "{CLUSTER_RANGE}, the range of tenants' addresses, overlaps {} ({})",
                taken.net, taken.what
            ),
            format!(
                "remove {} from the host, or run mvm on a host that does not use {CLUSTER_RANGE}",
                taken.net
            ),
        ));
    }
    let nets: Vec<_> = taken.iter().map(|taken| taken.net).collect();
    if let Err(error) = choose_uplink(&nets) {
        problems.push(Problem::new(error.to_string(), "remove the route that covers 169.254.64.0/18"));
    }
    Ok(problems)
}

fn try_parts(tag: &NodeTag) -> Vec<Problem> {
    let Some((network, port)) = sample() else { return Vec::new() };
    let tap = network.net_id.tap_name(port.offset);
    let _held = match tun::open_tap(&tap) {
        Ok(fd) => fd,
        Err(error) => {
            let what = format!("cannot make a tap by /dev/net/tun: {error}");
            return vec![Problem::new(
                what,
                "load the kernel module: modprobe tun; in a container, give it /dev/net/tun",
            )];
        }
    };
    let mut problems = Vec::new();
    if let Err(error) = try_bridge(&network, &port) {
        let remedy = "use a kernel with bridges and virtual links: modprobe bridge veth";
        problems.push(Problem::new(format!("bridges with isolated ports do not work: {error}"), remedy));
    }
    let script =
        rules::tenant_table(&network) + &rules::admit(&network, &port, Checks::New) + &rules::host_table(tag);
    match nft::load(&script) {
        Ok(()) => {}
        Err(error @ Error::ToolMissing { .. }) => {
            problems.push(Problem::new(error.to_string(), "install the package nftables"));
        }
        Err(error) => problems.push(Problem::new(
            format!("the kernel does not take the filters: {error}"),
            "use a kernel with nf_tables for inet, ip and netdev, with nat, reject and conntrack: \
             modprobe nf_tables nft_ct nft_nat nft_reject_inet",
        )),
    }
    problems
}

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
