//! What is reached by name: a set of addresses for each name, which the tenant's resolver fills.
//!
//! The sets belong to the tenant, not to a machine: they stay while machines sleep, until their elements' time is over.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use mvm_model::{Egress, HostName};
use sha2::{Digest, Sha256};

use super::{Script, TENANT_TABLE, may_reach};

const PREFIX: &str = "name_";
/// Marks of connections that were begun by name have this bit, so that none is that of a connection without a mark.
const MARKED: u32 = 1 << 31;

/// The set of a name's addresses. Hosts' names are longer than sets' may be.
fn set_of(name: &HostName) -> String {
    format!("{PREFIX}{}", hex::encode(&digest(name)[..8]))
}

/// What connections to a name's addresses are marked with.
fn mark_of(name: &HostName) -> u32 {
    let [.., a, b, c, d] = digest(name);
    u32::from_be_bytes([a, b, c, d]) | MARKED
}

fn digest(name: &HostName) -> [u8; 32] {
    Sha256::digest(name.as_str()).into()
}

fn declaration(name: &HostName) -> String {
    format!(
        "add set ip {TENANT_TABLE} {} {{ type ipv4_addr; flags timeout; comment \"{}\"; }}",
        set_of(name),
        shortened(name)
    )
}

/// As much as a comment holds.
fn shortened(name: &HostName) -> &str {
    &name.as_str()[..name.as_str().len().min(100)]
}

/// Has the sets of all names of an egress be there, with whatever is in them.
pub(super) fn declare(script: &mut Script, egress: &Egress) {
    for name in egress.names() {
        script.line(&declaration(name));
    }
}

/// The rules for one name: connections to addresses that it has, and those that were begun while it had them.
pub(super) fn allow(name: &HostName, port: &str) -> [String; 2] {
    let (set, mark) = (set_of(name), mark_of(name));
    [
        format!("ct state established ct mark {mark:#010x}{port} accept"),
        format!("ip daddr @{set} ip daddr != @special{port} ct mark set {mark:#010x} accept"),
    ]
}

/// Adds addresses to a name's set for so long, whether they are there already or not.
pub fn let_reach(name: &HostName, addresses: &[Ipv4Addr], lifetime: Duration) -> String {
    let mut script = format!("{}\n", declaration(name));
    let elements = |timeout: &str| {
        let each: Vec<String> = addresses.iter().map(|address| format!("{address}{timeout}")).collect();
        format!("element ip {TENANT_TABLE} {} {{ {} }}", set_of(name), each.join(", "))
    };
    if addresses.is_empty() {
        return script;
    }
    let timed = elements(&format!(" timeout {}s", lifetime.as_secs()));
    // What is there keeps its time when it is added again, and what is not there cannot be deleted.
    let _ = write!(script, "add {timed}\ndelete {}\nadd {timed}\n", elements(""));
    script
}

/// Removes a set by its name, as the kernel lists it.
pub(crate) fn drop_set(set: &str) -> String {
    format!("delete set ip {TENANT_TABLE} {set}\n")
}

/// Whether a set is one of a name.
pub(crate) fn is_set_of_name(set: &str) -> bool {
    set.starts_with(PREFIX)
}

/// Whether an address that a name has may be told to machines with this egress: one that they can reach by the name, which public
/// ones are, or by a network that is named. All else would let whoever owns a name point into what is closed.
pub fn may_be_told(egress: &Egress, address: Ipv4Addr) -> bool {
    may_reach(egress, address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    #[test]
    fn a_name_has_a_set_and_a_mark_of_its_own() {
        let (one, two) = (name("a.example.org"), name("b.example.org"));
        assert_ne!(set_of(&one), set_of(&two));
        assert_ne!(mark_of(&one), mark_of(&two));
        assert!(mark_of(&one) & MARKED != 0 && is_set_of_name(&set_of(&one)));
    }

    #[test]
    fn private_addresses_are_told_only_where_a_network_names_them() {
        let egress = |rules: &[&str]| Egress::Only(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let told = |egress: &Egress, address: &str| may_be_told(egress, address.parse().unwrap());
        let by_name = egress(&["a.example.org:443"]);
        assert!(told(&by_name, "198.51.100.7"));
        for closed in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "10.240.1.3",
            "224.0.0.1",
            "0.0.0.0",
        ] {
            assert!(!told(&by_name, closed), "{closed}");
        }
        let with_net = egress(&["a.example.org", "10.0.0.0/16", "0.0.0.0/0"]);
        assert!(told(&with_net, "10.0.0.1") && !told(&with_net, "10.1.0.1"));
        assert!(!told(&egress(&["a.example.org", "10.240.0.0/12"]), "10.240.1.3"), "another tenant's");
    }
}
