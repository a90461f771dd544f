//! What a tenant's namespace routes.

use super::{NEVER, SPECIAL, Script, rules};
use crate::TenantNetwork;
use crate::names::UPLINK_LINK;

/// The table (of family `ip`) in every tenant's namespace.
pub const TENANT_TABLE: &str = "mvm";

/// The routing filter and NAT of a tenant's namespace. Machines' own rules ([`super::admit`]) stay as they are.
pub fn tenant_table(network: &TenantNetwork) -> String {
    let bridge = network.net_id.bridge_name();
    let mut script = Script::new("ip", TENANT_TABLE);
    script.networks("never", &NEVER).networks("special", &SPECIAL).keep(
        "map",
        "egress",
        "ipv4_addr : verdict",
    );
    script.chain(
        "refuse",
        "",
        &rules(["meta l4proto tcp reject with tcp reset", "reject with icmp type admin-prohibited"]),
    );
    // Nothing listens here: only answers to what the agent asked from `.1` come in.
    script.chain(
        "input",
        "type filter hook input priority filter; policy drop;",
        &rules(["iifname lo accept", "ct state established,related accept", "goto refuse"]),
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
