//! A tenant's network: a namespace of its own with a bridge, taps, filters and NAT.
//!
//! ```text
//!   machine ── tap tn5i3 ┐                                  host's namespace
//!   machine ── tap tn5i4 ┼─ br-tenant-5 ── uplink ═══ veth ═══ mv-1a2b3c-5 ── eth0
//!   gateway ── tap tn5i5 ┘  10.240.5.1      169.254.64.1       169.254.64.0
//!              └─────── namespace mvm-1a2b3c-t5 ────────┘
//! ```
//!
//! What holds, and where it is enforced:
//!
//! - An address is an identity: each tap's `netdev` ingress chain passes only IPv4 and ARP with the machine's own
//!   MAC and address ([`rules`]).
//! - Machines reach only gateways: every other port is isolated; nothing is routed from the bridge back to it.
//! - Egress is default deny, by source address; what is denied is refused with a reset or an ICMP error.
//! - What egress names by name is reached at the addresses that the tenant's resolver at `.1` told its machines, while they
//!   are the name's, and by connections that began then.
//! - Nothing from a tenant reaches the host's own addresses or another tenant, whatever its egress says.
//! - Tenant addresses never appear in the host's namespace: NAT is done in the tenant's namespace and again on the host.
//!
//! Everything that one agent makes carries its [`NodeTag`], so two agents on a host share nothing. What mvm sets in
//! the host's namespace is one nft table, which is also the record of the interfaces whose forwarding it switched
//! on: it lives exactly as long as what it records.
//!
//! Filters of others on the host stay in force: where a firewall's FORWARD policy is `drop` (Docker sets it so),
//! the host's administrator has to allow `mv-*` there; [`Networks::verify`] cannot see into foreign rules.
//!
//! Functions block (use `spawn_blocking`), except [`Networks::connect`]. A network namespace belongs to a thread:
//! every act runs on a thread made for it, never on the caller's.

mod connect;
mod error;
mod host;
mod names;
mod namespace;
mod netlink;
mod networks;
mod nft;
mod preflight;
mod resolver;
pub mod rules;
mod sysctl;
mod tenant;
mod tun;
mod types;
mod uplink;
mod verify;

pub use error::{Error, Result};
pub use names::NodeTag;
pub use networks::{Leftover, Networks};
pub use resolver::ResolverSockets;
pub use rules::may_be_told;
pub use types::{PortSpec, TenantNetwork};
pub use uplink::{UPLINK_RANGE, Uplink, choose_uplink};
pub use verify::{Expected, Finding};
