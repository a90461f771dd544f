//! What the host routes for its tenants: one table per agent.

use std::net::Ipv4Addr;

use mvm_model::NetId;

use super::{NEVER, Script, rules};
use crate::names::LINK_PREFIX;
use crate::{NodeTag, TenantNetwork};

/// The host's end of a tenant's uplink: where its packets come in, and the only source they may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPair {
    link: String,
    source: Ipv4Addr,
}

impl HostPair {
    /// The tenant's pair.
    pub fn of(tag: &NodeTag, network: &TenantNetwork) -> Self {
        Self { link: tag.host_link(network.net_id), source: network.uplink.tenant_ip() }
    }

    /// From what is in the kernel.
    pub(crate) fn found(tag: &NodeTag, net_id: NetId, source: Ipv4Addr) -> Self {
        Self { link: tag.host_link(net_id), source }
    }
}

/// The agent's table in the host's namespace, with whatever pairs and record it has.
pub fn host_table(tag: &NodeTag) -> String {
    let ours = format!("\"{LINK_PREFIX}{tag}-*\"");
    let any = format!("\"{LINK_PREFIX}*\"");
    let mut script = Script::new("inet", &tag.table());
    script.networks("never", &NEVER);
    script.keep("set", "pairs", "ifname . ipv4_addr").keep("set", "sources", "ipv4_addr");
    script.keep("set", "switched", "ifname");
    script.chain(
        "refuse",
        "",
        &rules([
            "meta nfproto ipv4 meta l4proto tcp reject with tcp reset",
            "meta nfproto ipv4 reject with icmp type admin-prohibited",
            "drop",
        ]),
    );
    script.chain(
        "input",
        "type filter hook input priority filter - 10; policy accept;",
        &[format!("iifname {ours} goto refuse")],
    );
    script.chain(
        "from_tenant",
        "",
        &[
            "meta nfproto != ipv4 drop".to_owned(),
            "iifname . ip saddr != @pairs drop".to_owned(),
            format!("oifname {any} goto refuse"),
            "ip daddr @never goto refuse".to_owned(),
            // A port of the host that others redirect, to a container for example, is the host's too.
            "ct state invalid drop".to_owned(),
            "ct status dnat goto refuse".to_owned(),
            "accept".to_owned(),
        ],
    );
    script.chain("to_tenant", "", &rules(["meta nfproto ipv4 ct state established,related accept", "drop"]));
    // Switching on the forwarding of an uplink must not make a router of the host for anybody else.
    script.chain(
        "forward",
        "type filter hook forward priority filter - 10; policy accept;",
        &[
            format!("iifname {ours} goto from_tenant"),
            format!("oifname {ours} goto to_tenant"),
            format!("iifname @switched oifname != {any} drop"),
        ],
    );
    script.chain(
        "postrouting",
        "type nat hook postrouting priority srcnat; policy accept;",
        &rules(["ip saddr @sources masquerade"]),
    );
    script.finish()
}

/// Lets a tenant's pair through. The table has to exist.
pub fn add_pair(tag: &NodeTag, pair: &HostPair) -> String {
    elements("add", tag, pair)
}

/// Takes a tenant's pair away. The table has to exist.
pub fn remove_pair(tag: &NodeTag, pair: &HostPair) -> String {
    // Added first, because deleting what is not there fails.
    elements("add", tag, pair) + &elements("delete", tag, pair)
}

fn elements(verb: &str, tag: &NodeTag, pair: &HostPair) -> String {
    let (table, HostPair { link, source }) = (tag.table(), pair);
    format!(
        "{verb} element inet {table} pairs {{ \"{link}\" . {source} }}\n{verb} element inet {table} sources {{ {source} }}\n"
    )
}

/// Records that the agent is about to switch on the forwarding of a link.
pub fn record_switched(tag: &NodeTag, link: &str) -> String {
    format!("add element inet {} switched {{ \"{link}\" }}\n", tag.table())
}

/// Forgets it.
pub fn unrecord_switched(tag: &NodeTag, link: &str) -> String {
    record_switched(tag, link) + &format!("delete element inet {} switched {{ \"{link}\" }}\n", tag.table())
}
