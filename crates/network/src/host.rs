//! The host's side: the other ends of the uplinks, the agent's nft table, forwarding. Every function here runs on a
//! thread in the host's namespace.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use ipnet::Ipv4Net;
use mvm_model::{Egress, NetId};
use serde_json::Value;

use crate::names::{LINK_PREFIX, TABLE_PREFIX, UPLINK_LINK};
use crate::namespace::Namespace;
use crate::netlink::{Link, Netlink};
use crate::rules::{self, HostPair};
use crate::uplink::overlap;
use crate::{Error, Expected, NodeTag, Result, TenantNetwork, nft, sysctl, tenant};

/// A network that the host uses, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) net: Ipv4Net,
    pub(crate) link: Option<String>,
    pub(crate) what: String,
}

/// The host's addresses and routes, without default routes.
pub(crate) fn taken() -> Result<Vec<Taken>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let entry = |net: Ipv4Net, kind: &str, link: Option<String>| {
        let what = link.as_ref().map_or_else(|| kind.to_owned(), |link| format!("{kind} on {link}"));
        Taken { net, link, what }
    };
    let addresses = netlink.addresses()?.into_iter().map(|(index, net)| entry(net, "address", name(index)));
    let routes = netlink
        .routes()?
        .into_iter()
        .filter(|route| route.net.prefix_len() > 0)
        .map(|route| entry(route.net, "route", route.links.first().and_then(|index| name(*index))));
    Ok(addresses.chain(routes).collect())
}

/// Whether the tenant's uplink overlaps something that is not its own link's.
pub(crate) fn uplink_conflict(tag: &NodeTag, network: &TenantNetwork) -> Result<Option<Taken>> {
    let own = Some(tag.host_link(network.net_id));
    let uplink = network.uplink.net();
    Ok(taken()?.into_iter().find(|taken| taken.link != own && overlap(taken.net, uplink)))
}

/// Refuses an uplink that has to be made (again) and would overlap something. Looked at before anything is made.
pub(crate) fn check_uplink(tag: &NodeTag, network: &TenantNetwork) -> Result<()> {
    if Netlink::open()?.link(&tag.host_link(network.net_id))?.is_some() {
        return Ok(());
    }
    match uplink_conflict(tag, network)? {
        Some(Taken { net, what, .. }) => Err(Error::UplinkTaken { uplink: network.uplink, net, what }),
        None => Ok(()),
    }
}

/// The host's address of a tenant's uplink.
pub(crate) fn host_address(network: &TenantNetwork) -> Ipv4Net {
    Ipv4Net::new_assert(network.uplink.host_ip(), 31)
}

/// Makes the table, the pair of links and forwarding; changes only what differs.
pub(crate) fn ensure(tag: &NodeTag, network: &TenantNetwork, inside: &Namespace) -> Result<()> {
    let pair = HostPair::of(tag, network);
    nft::load(&(rules::host_table(tag) + &rules::add_pair(tag, &pair)))?;
    let name = tag.host_link(network.net_id);
    let has_peer = inside.run(|| Ok(Netlink::open()?.link(UPLINK_LINK)?.is_some()))?;
    let mut netlink = Netlink::open()?;
    let link = match netlink.link(&name)? {
        Some(link) if has_peer => link,
        lone => {
            if let Some(link) = lone {
                netlink.delete_link(&link)?;
                check_uplink(tag, network)?;
            }
            remake_link(&mut netlink, tag, network, inside)?
        }
    };
    tenant::settle(&mut netlink, &link, host_address(network))?;
    let defaults = default_links(&mut netlink)?;
    switch_on(tag, &defaults)
}

fn remake_link(
    netlink: &mut Netlink,
    tag: &NodeTag,
    network: &TenantNetwork,
    inside: &Namespace,
) -> Result<Link> {
    inside.run(|| {
        let mut netlink = Netlink::open()?;
        netlink.link(UPLINK_LINK)?.map_or(Ok(()), |link| netlink.delete_link(&link))
    })?;
    let name = tag.host_link(network.net_id);
    netlink.create_veth(&name, UPLINK_LINK, inside.fd().as_fd())?;
    netlink.link(&name)?.ok_or_else(|| Error::Kernel {
        action: format!("find link {name} after making it"),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// The links of the host's default routes.
fn default_links(netlink: &mut Netlink) -> Result<BTreeSet<String>> {
    let links = netlink.links()?;
    let routes = netlink.routes()?;
    let indices = routes.iter().filter(|route| route.net.prefix_len() == 0).flat_map(|route| &route.links);
    Ok(indices
        .filter_map(|index| links.iter().find(|link| link.index == *index))
        .map(|l| l.name.clone())
        .collect())
}

/// The links besides the default ones by which what a machine may reach is reached.
pub(crate) fn links_towards(egress: &Egress) -> Result<BTreeSet<String>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let routes = netlink.routes()?;
    let reachable =
        routes.iter().filter(|route| route.net.prefix_len() > 0 && rules::may_reach(egress, route.net));
    let indices: BTreeSet<u32> = reachable.flat_map(|route| route.links.iter().copied()).collect();
    let named = links.iter().filter(|link| indices.contains(&link.index));
    let foreign = named.filter(|link| !link.name.starts_with(LINK_PREFIX) && link.name != "lo");
    let towards: BTreeSet<String> = foreign.map(|link| link.name.clone()).collect();
    Ok(&towards - &default_links(&mut netlink)?)
}

/// Whether the forwarding of all of these is on.
pub(crate) fn all_forward(links: &BTreeSet<String>) -> Result<bool> {
    for link in links {
        if sysctl::read(&sysctl::forwarding_key(link))?.as_deref() != Some("1") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every link whose forwarding these tenants need.
pub(crate) fn needed_links(expected: &[Expected]) -> Result<BTreeSet<String>> {
    let mut links = default_links(&mut Netlink::open()?)?;
    for port in expected.iter().flat_map(|tenant| &tenant.ports) {
        links.extend(links_towards(&port.egress)?);
    }
    Ok(links)
}

/// Which links' forwarding each agent on this host switched on, by table.
fn records() -> Result<Vec<(String, BTreeSet<String>)>> {
    let sets = nft::list(&["sets", "inet"])?;
    Ok(sets
        .iter()
        .filter_map(|object| {
            let set = object.get("set")?;
            let table = set.get("table")?.as_str()?;
            let ours = table.starts_with(TABLE_PREFIX) && set.get("name")?.as_str()? == "switched";
            let elements = set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let names = elements.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            ours.then(|| (table.to_owned(), names))
        })
        .collect())
}

/// Whether the host forwards in general, because somebody else wants it to.
fn forwards_generally() -> Result<bool> {
    Ok(sysctl::read("ipv4/ip_forward")?.as_deref() == Some("1"))
}

/// Switches on the forwarding of these links where it is off, recording that first. A link that another agent
/// switched on is recorded too, so that whoever goes last switches it off.
pub(crate) fn switch_on(tag: &NodeTag, links: &BTreeSet<String>) -> Result<()> {
    let records = records()?;
    let own_table = tag.table();
    let (own, others): (Vec<_>, Vec<_>) = records.iter().partition(|(table, _)| *table == own_table);
    let recorded =
        |side: &[&(String, BTreeSet<String>)], link: &str| side.iter().any(|(_, set)| set.contains(link));
    if forwards_generally()? {
        // The host is a router by somebody else's wish: nothing to undo, and nothing of theirs to hold back.
        let stale: String =
            own.iter().flat_map(|(_, set)| set).map(|link| rules::unrecord_switched(tag, link)).collect();
        if !stale.is_empty() {
            nft::load(&stale)?;
        }
    }
    for link in links {
        let key = sysctl::forwarding_key(link);
        let off = sysctl::read(&key)?.as_deref() == Some("0");
        let inherited = !forwards_generally()? && recorded(&others, link);
        if (off || inherited) && !recorded(&own, link) {
            nft::load(&rules::record_switched(tag, link))?;
        }
        if off {
            sysctl::write(&key, "1")?;
        }
    }
    Ok(())
}

/// Switches off what this agent alone still needs.
fn switch_off(tag: &NodeTag) -> Result<()> {
    if forwards_generally()? {
        return Ok(());
    }
    let own_table = tag.table();
    let records = records()?;
    let others: BTreeSet<&String> =
        records.iter().filter(|(table, _)| *table != own_table).flat_map(|(_, set)| set).collect();
    let own = records.iter().filter(|(table, _)| *table == own_table).flat_map(|(_, set)| set);
    for link in own.filter(|link| !others.contains(link)) {
        let key = sysctl::forwarding_key(link);
        if sysctl::read(&key)?.is_some() {
            sysctl::write(&key, "0")?;
        }
    }
    Ok(())
}

/// What the host's namespace has of this agent's.
#[derive(Debug, Default)]
pub(crate) struct Present {
    pub(crate) links: BTreeSet<NetId>,
    pub(crate) pairs: Vec<(NetId, HostPair)>,
    pub(crate) table: bool,
}

/// Looks for what this agent made.
pub(crate) fn present(tag: &NodeTag) -> Result<Present> {
    let links = Netlink::open()?.links()?.iter().filter_map(|link| tag.net_id_of_link(&link.name)).collect();
    let table = tag.table();
    let sets = nft::list(&["sets", "inet"])?;
    let own: Vec<&Value> = sets
        .iter()
        .filter_map(|object| object.get("set"))
        .filter(|set| set.get("table").and_then(Value::as_str) == Some(&table))
        .collect();
    let pairs = own
        .iter()
        .filter(|set| set.get("name").and_then(Value::as_str) == Some("pairs"))
        .filter_map(|set| set.get("elem")?.as_array())
        .flatten()
        .filter_map(|element| pair_of(tag, element))
        .collect();
    Ok(Present { links, pairs, table: !own.is_empty() })
}

fn pair_of(tag: &NodeTag, element: &Value) -> Option<(NetId, HostPair)> {
    let [link, source] = element.get("concat")?.as_array()?.as_slice() else { return None };
    let net_id = tag.net_id_of_link(link.as_str()?)?;
    Some((net_id, HostPair::found(tag, net_id, source.as_str()?.parse().ok()?)))
}

/// Removes a tenant's end and, with the last one, everything of this agent.
pub(crate) fn remove(tag: &NodeTag, net_id: NetId) -> Result<()> {
    let mut netlink = Netlink::open()?;
    if let Some(link) = netlink.link(&tag.host_link(net_id))? {
        netlink.delete_link(&link)?;
    }
    let present = present(tag)?;
    let gone = present.pairs.iter().filter(|(id, _)| *id == net_id);
    let script: String = gone.map(|(_, pair)| rules::remove_pair(tag, pair)).collect();
    if !script.is_empty() {
        nft::load(&script)?;
    }
    remove_unused_table(tag)
}

/// Without tenants the agent has no table, and forwarding is as it was before the first.
pub(crate) fn remove_unused_table(tag: &NodeTag) -> Result<()> {
    let present = present(tag)?;
    if !present.table || !present.pairs.is_empty() {
        return Ok(());
    }
    switch_off(tag)?;
    nft::load(&format!("delete table inet {}\n", tag.table()))
}
