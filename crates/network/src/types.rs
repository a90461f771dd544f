//! What a caller asks for. All of it can cross a process boundary.

use std::net::Ipv4Addr;

use mvm_model::{Egress, MacAddr, NetId, TenantSubnet};
use serde::{Deserialize, Serialize};

use crate::Uplink;

/// A tenant's network: recorded by the caller, the same for the tenant's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantNetwork {
    /// The tenant's number.
    pub net_id: NetId,
    /// Its subnet.
    pub subnet: TenantSubnet,
    /// Its pair of addresses towards the host.
    pub uplink: Uplink,
}

/// A machine's port on its tenant's bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// The offset of the machine's address, in the tap's name.
    pub offset: u16,
    /// The only MAC address that the machine may use.
    pub mac: MacAddr,
    /// The only IPv4 address that the machine may use.
    pub ip: Ipv4Addr,
    /// Whether the machine reaches only ports that are not isolated: `true` for all but gateways.
    pub isolated: bool,
    /// What the machine may reach outside of its tenant.
    pub egress: Egress,
}
