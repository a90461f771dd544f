//! What a manifest asks for, without its file: the agent is given this.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Endpoints, NetId, PoolId, PoolSpec, Quotas, RoutingTable, TenantId, TenantSubnet, User};

/// Everything that a tenant wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The tenant.
    pub tenant: TenantId,
    /// The network it asks for.
    pub network: RequestedNetwork,
    /// What it may use.
    pub quotas: Quotas,
    /// Its pools, in the order they were written.
    pub pools: Vec<PoolSpec>,
    /// The ports of the host that lead to its pools.
    pub publish: Vec<Publish>,
    /// The routes of all its gateways.
    pub routes: RoutingTable,
    /// Whom it serves.
    #[serde(default)]
    pub users: Vec<User>,
    /// The services outside that its gateways speak to for them.
    #[serde(default)]
    pub endpoints: Endpoints,
}

impl Deployment {
    /// A tenant with nothing in it.
    pub fn empty(tenant: TenantId) -> Self {
        Self {
            tenant,
            network: RequestedNetwork::default(),
            quotas: Quotas::default(),
            pools: Vec::new(),
            publish: Vec::new(),
            routes: RoutingTable::default(),
            users: Vec::new(),
            endpoints: Endpoints::default(),
        }
    }
}

/// What a tenant asks of its network; the agent chooses what is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestedNetwork {
    /// Its network number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_id: Option<NetId>,
    /// Its subnet; a /24 by its number where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<TenantSubnet>,
}

impl RequestedNetwork {
    /// How many instances find an address in the subnet.
    pub fn capacity(&self) -> usize {
        // Every tenant's default subnet has the same size.
        let subnet = self.subnet.or_else(|| NetId::all().next().map(NetId::default_subnet));
        subnet.map_or(0, |subnet| subnet.instance_offsets().len())
    }
}

/// A port of the host that leads to a pool's machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The host's address that is listened on.
    pub bind: Ipv4Addr,
    /// The port that is listened on.
    pub port: u16,
    /// The pool.
    pub pool: PoolId,
    /// The port in its machines.
    pub target_port: u16,
}

impl Publish {
    /// What a published port is bound to where nothing else is said: nobody else on the network reaches it.
    pub const DEFAULT_BIND: Ipv4Addr = Ipv4Addr::LOCALHOST;

    /// Whether not both can be listened on.
    pub fn collides_with(&self, other: &Publish) -> bool {
        let everywhere = self.bind.is_unspecified() || other.bind.is_unspecified();
        self.port == other.port && (everywhere || self.bind == other.bind)
    }
}
