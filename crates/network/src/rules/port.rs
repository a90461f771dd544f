//! What one machine may send.

use ipnet::Ipv4Net;
use mvm_model::{Destination, Egress, EgressRule};

use super::{NEVER, SPECIAL, Script, TENANT_TABLE, named, rules};
use crate::uplink::overlap;
use crate::{PortSpec, TenantNetwork};

/// Whether a tap may have source checks already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// It must not, else the script fails as a whole. Some 10 ms faster: the kernel waits for what is deleted.
    New,
    /// They are replaced, without a moment in which there are none.
    Replaced,
}

/// The source checks at a machine's tap, which has to exist, and the machine's egress.
pub fn admit(network: &TenantNetwork, port: &PortSpec, found: Checks) -> String {
    let tap = network.net_id.tap_name(port.offset);
    // A table of its own, so that replacing and removing it never depends on what is left of it: kernels before
    // 6.16 delete a netdev chain together with its tap.
    let mut checks = match found {
        Checks::New => Script::create("netdev", &tap),
        Checks::Replaced => Script::new("netdev", &tap),
    };
    if found == Checks::Replaced {
        checks.line(&format!("delete table netdev {tap}")).line(&format!("add table netdev {tap}"));
    }
    checks.chain(
        "ingress",
        &format!("type filter hook ingress device {tap} priority filter; policy drop;"),
        &source_checks(port),
    );
    let chain = chain_name(port.offset);
    let mut egress = Script::new("ip", TENANT_TABLE);
    named::declare(&mut egress, &port.egress);
    egress.chain(&chain, "", &egress_rules(&port.egress));
    egress.line(&format!("add element ip {TENANT_TABLE} egress {{ {} : jump {chain} }}", port.ip));
    may_ask(&mut egress, port, port.egress.names().next().is_some());
    checks.finish() + &egress.finish()
}

/// Takes away what [`admit`] made, or what is left of it.
pub fn expel(network: &TenantNetwork, port: &PortSpec) -> String {
    let tap = network.net_id.tap_name(port.offset);
    let chain = chain_name(port.offset);
    let element = format!("ip {TENANT_TABLE} egress {{ {} : jump {chain} }}", port.ip);
    let mut script = Script::new("netdev", &tap);
    script.line(&format!("delete table netdev {tap}"));
    // Added first, because deleting what is not there fails.
    script.line(&format!("add chain ip {TENANT_TABLE} {chain}"));
    may_ask(&mut script, port, false);
    script.line(&format!("add element {element}")).line(&format!("delete element {element}"));
    script.line(&format!("flush chain ip {TENANT_TABLE} {chain}"));
    script.line(&format!("delete chain ip {TENANT_TABLE} {chain}"));
    script.finish()
}

/// Whether the machine may ask the resolver.
fn may_ask(script: &mut Script, port: &PortSpec, may: bool) {
    let element = format!("element ip {TENANT_TABLE} asking {{ {} }}", port.ip);
    // Added first, because deleting what is not there fails.
    script.line(&format!("add {element}"));
    if !may {
        script.line(&format!("delete {element}"));
    }
}

fn chain_name(offset: u16) -> String {
    format!("machine_{offset}")
}

/// Only the machine's own ARP and IPv4 pass. `ether type` is compared in the frame, so a VLAN tag does not pass either.
fn source_checks(port: &PortSpec) -> Vec<String> {
    let (mac, ip) = (port.mac, port.ip);
    vec![
        format!("ether saddr != {mac} drop"),
        format!(
            "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether {mac} arp saddr ip {ip} accept"
        ),
        format!("ether type ip ip saddr {ip} udp dport {{ 67, 68 }} drop"),
        format!("ether type ip ip saddr {ip} accept"),
    ]
}

fn egress_rules(egress: &Egress) -> Vec<String> {
    match egress {
        Egress::None => Vec::new(),
        Egress::Any => rules(["ip daddr != @special accept"]),
        Egress::Only(allowed) => allowed.iter().flat_map(allow).collect(),
    }
}

fn allow(rule: &EgressRule) -> Vec<String> {
    let port =
        rule.port.map(|port| format!(" meta l4proto {{ tcp, udp }} th dport {port}")).unwrap_or_default();
    match &rule.to {
        Destination::Net(net) => {
            let special = if names_special(*net) { "" } else { " ip daddr != @special" };
            vec![format!("ip daddr {net}{special}{port} accept")]
        }
        Destination::Name(name) => named::allow(name, &port).into(),
    }
}

/// Whether something in this network, which the host knows a way to, can be reached.
pub(crate) fn may_reach(egress: &Egress, net: Ipv4Net) -> bool {
    let within = |ranges: &[Ipv4Net]| ranges.iter().any(|range| range.contains(&net));
    let opens = |rule: &EgressRule| match rule.to {
        Destination::Net(named) => overlap(named, net) && (names_special(named) || !within(&SPECIAL)),
        // Any public address may be that of a name.
        Destination::Name(_) => !within(&SPECIAL),
    };
    !within(&NEVER)
        && match egress {
            Egress::None => false,
            Egress::Any => !within(&SPECIAL),
            Egress::Only(allowed) => allowed.iter().any(opens),
        }
}

/// Whether a rule for this network means a range that is not public. One that merely covers such a range does not:
/// who writes 0.0.0.0/0 wants the internet, not the metadata service.
fn names_special(net: Ipv4Net) -> bool {
    SPECIAL.iter().any(|special| special.contains(&net))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wide_rule_does_not_open_private_ranges_and_a_narrow_one_does() {
        for wide in ["0.0.0.0/0", "8.0.0.0/5", "192.0.0.0/8", "169.252.0.0/14", "1.1.1.0/24"] {
            assert!(!names_special(wide.parse().unwrap()), "{wide}");
        }
        for named in ["10.0.0.0/8", "10.1.2.3/32", "169.254.169.254/32", "192.168.7.0/24", "168.63.129.16/32"]
        {
            assert!(names_special(named.parse().unwrap()), "{named}");
        }
    }

    #[test]
    fn each_kind_of_egress_has_its_rules() {
        assert!(egress_rules(&Egress::None).is_empty());
        assert_eq!(egress_rules(&Egress::Any), ["ip daddr != @special accept"]);
        let only = Egress::Only(vec!["192.0.2.0/24:443".parse().unwrap(), "10.1.0.0/16".parse().unwrap()]);
        assert_eq!(
            egress_rules(&only),
            [
                "ip daddr 192.0.2.0/24 ip daddr != @special meta l4proto { tcp, udp } th dport 443 accept",
                "ip daddr 10.1.0.0/16 accept",
            ]
        );
    }

    #[test]
    fn a_network_of_the_host_is_reached_if_a_rule_opens_some_of_it() {
        let reaches = |egress: &Egress, net: &str| may_reach(egress, net.parse().unwrap());
        let only = |rule: &str| Egress::Only(vec![rule.parse().unwrap()]);
        assert!(!reaches(&Egress::None, "198.51.100.0/24"));
        assert!(reaches(&Egress::Any, "198.51.100.0/24") && !reaches(&Egress::Any, "172.17.0.0/16"));
        assert!(reaches(&only("198.51.100.7/32:443"), "198.51.100.0/24"));
        assert!(reaches(&only("198.51.0.0/16"), "198.51.100.0/24"));
        assert!(!reaches(&only("198.51.0.0/16"), "198.52.0.0/24"));
        assert!(
            reaches(&only("172.16.0.0/12"), "172.17.0.0/16") && !reaches(&only("0.0.0.0/0"), "172.17.0.0/16")
        );
        assert!(reaches(&only("a.example.org:443"), "198.51.100.0/24"), "a name's address");
        assert!(!reaches(&only("a.example.org"), "172.17.0.0/16"));
        assert!(!reaches(&only("169.254.64.0/31"), "169.254.64.0/31"), "another's uplink");
    }

    proptest! {
        /// An address that is not public is reached only by a rule all of whose addresses are not public.
        #[test]
        fn a_special_address_is_open_only_to_a_rule_within_its_range(bits: u32, len in 0u8..=32) {
            let net = Ipv4Net::new(std::net::Ipv4Addr::from_bits(bits), len).unwrap().trunc();
            let inside = SPECIAL.iter().any(|s| s.contains(&net.network()) && s.contains(&net.broadcast()));
            prop_assert_eq!(names_special(net), inside);
        }
    }
}
