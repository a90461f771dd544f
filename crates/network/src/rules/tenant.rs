//! What a tenant's namespace routes.

use super::{NEVER, SPECIAL, Script, rules};
use crate::TenantNetwork;
use crate::names::UPLINK_LINK;
use crate::resolver::PORT;

/// The table (of family `ip`) in every tenant's namespace.
pub const TENANT_TABLE: &str = "mvm";

/// How often one machine may ask the resolver: far more than programs do.
const QUESTIONS: &str = "200/second burst 400 packets";

/// The routing filter and NAT of a tenant's namespace. Machines' own rules ([`super::admit`]) stay as they are.
pub fn tenant_table(network: &TenantNetwork) -> String {
    let bridge = network.net_id.bridge_name();
    let mut script = Script::new("ip", TENANT_TABLE);
    script.networks("never", &NEVER).networks("special", &SPECIAL);
    script.keep("map", "egress", "ipv4_addr : verdict").keep("set", "asking", "ipv4_addr");
    script.line(&format!(
        "add set ip {TENANT_TABLE} askers {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s; }}"
    ));
    script.chain(
        "refuse",
        "",
        &rules(["meta l4proto tcp reject with tcp reset", "reject with icmp type admin-prohibited"]),
    );
    // Only answers to what the agent asked from `.1` come in and, from machines that reach something by name, questions to the
    // resolver there. Questions are judged packet by packet, as what leaves is.
    let to_resolver = format!("meta l4proto {{ tcp, udp }} th dport {PORT}");
    let asks = format!("iifname {bridge} ip saddr @asking ip daddr {}", network.subnet.bridge_ip());
    script.chain(
        "input",
        "type filter hook input priority filter; policy drop;",
        &[
            "iifname lo accept".to_owned(),
            format!("{asks} udp dport {PORT} update @askers {{ ip saddr limit rate over {QUESTIONS} }} drop"),
            format!("{asks} {to_resolver} accept"),
            format!("{to_resolver} goto refuse"),
            "ct state established,related accept".to_owned(),
            "goto refuse".to_owned(),
        ],
    );
    // What leaves is judged packet by packet, not by its connection, so a rule taken away ends what it allowed.
    script.chain(
        "leaving",
        "",
        &rules([
            "ip daddr @never goto refuse",
            "meta l4proto icmp ct state related accept",
            "ip saddr vmap @egress",
        ]),
    );
    script.chain(
        "forward",
        "type filter hook forward priority filter; policy drop;",
        &[
            format!("iifname {bridge} oifname {bridge} goto refuse"),
            format!("iifname {UPLINK_LINK} oifname {bridge} ct state established,related accept"),
            format!("iifname {bridge} oifname {UPLINK_LINK} jump leaving"),
            "goto refuse".to_owned(),
        ],
    );
    script.chain(
        "postrouting",
        "type nat hook postrouting priority srcnat; policy accept;",
        &[format!("oifname {UPLINK_LINK} snat to {}", network.uplink.tenant_ip())],
    );
    script.finish()
}
