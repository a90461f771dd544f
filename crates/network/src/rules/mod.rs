//! The filter rules, as text for `nft`. Pure: the same input gives the same text.
//!
//! Each script may be loaded again: it replaces what it describes in one transaction and touches nothing else.

mod host;
mod named;
mod port;
mod tenant;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

pub use host::{HostPair, add_pair, host_table, record_switched, remove_pair, unrecord_switched};
pub(crate) use named::{drop_set, is_set_of_name};
pub use named::{let_reach, may_be_told};
pub(crate) use port::may_reach;
pub use port::{Checks, admit, expel};
pub use tenant::{TENANT_TABLE, tenant_table};

/// Destinations that nothing a tenant sends may have, named or not: tenants' subnets and uplinks, and what is no
/// machine's address.
pub const NEVER: [Ipv4Net; 6] = [
    net(0, 0, 0, 0, 8),
    net(127, 0, 0, 0, 8),
    mvm_model::network::CLUSTER_RANGE,
    crate::UPLINK_RANGE,
    net(224, 0, 0, 0, 4),
    net(240, 0, 0, 0, 4),
];

/// Destinations that are not public (RFC 6890), and clouds' metadata services. `any` does not name them, and neither
/// does a rule for a network that is wider than they are.
pub const SPECIAL: [Ipv4Net; 8] = [
    net(10, 0, 0, 0, 8),
    net(100, 64, 0, 0, 10),
    net(169, 254, 0, 0, 16),
    net(172, 16, 0, 0, 12),
    net(192, 0, 0, 0, 24),
    net(192, 168, 0, 0, 16),
    net(198, 18, 0, 0, 15),
    // Azure's metadata and host services.
    net(168, 63, 129, 16, 32),
];

const fn net(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// A script under construction, for one table.
struct Script {
    table: String,
    text: String,
}

impl Script {
    /// For a table that is made if it is not there.
    fn new(family: &str, name: &str) -> Self {
        let table = format!("{family} {name}");
        let text = format!("add table {table}\n");
        Self { table, text }
    }

    /// For a table that must not be there yet.
    fn create(family: &str, name: &str) -> Self {
        let table = format!("{family} {name}");
        let text = format!("create table {table}\n");
        Self { table, text }
    }

    fn line(&mut self, line: &str) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
        self
    }

    /// A chain with exactly these rules. `hook` is empty for one that others jump to.
    fn chain(&mut self, name: &str, hook: &str, rules: &[String]) -> &mut Self {
        let table = self.table.clone();
        let declaration = if hook.is_empty() { String::new() } else { format!(" {{ {hook} }}") };
        self.line(&format!("add chain {table} {name}{declaration}"));
        self.line(&format!("flush chain {table} {name}"));
        for rule in rules {
            self.line(&format!("add rule {table} {name} {rule}"));
        }
        self
    }

    /// A set of networks with exactly these.
    fn networks(&mut self, name: &str, networks: &[Ipv4Net]) -> &mut Self {
        let table = self.table.clone();
        let elements: Vec<String> = networks.iter().map(ToString::to_string).collect();
        self.line(&format!("add set {table} {name} {{ type ipv4_addr; flags interval; }}"));
        self.line(&format!("flush set {table} {name}"));
        self.line(&format!("add element {table} {name} {{ {} }}", elements.join(", ")))
    }

    /// A set or map of this type, with whatever is in it.
    fn keep(&mut self, kind: &str, name: &str, type_: &str) -> &mut Self {
        let table = self.table.clone();
        self.line(&format!("add {kind} {table} {name} {{ type {type_}; }}"))
    }

    fn finish(self) -> String {
        self.text
    }
}

/// Literal rules as a chain's.
fn rules<const N: usize>(literals: [&str; N]) -> Vec<String> {
    literals.map(str::to_owned).to_vec()
}
