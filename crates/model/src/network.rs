//! Network numbers, subnets, MAC addresses and interface names: all derived from a tenant's `net_id`
//! and an instance's offset in the subnet, so an address is an identity and nothing has to be looked up.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Every tenant's subnet lies in here: 10.240.0.0/12.
pub const CLUSTER_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 12);

/// The host's end of a tenant's bridge, `.1`.
pub const BRIDGE_OFFSET: u16 = 1;
/// Builders use `.2`.
pub const BUILDER_OFFSET: u16 = 2;
/// Instances get addresses from `.3`.
pub const FIRST_INSTANCE_OFFSET: u16 = 3;

/// What a network number, subnet or MAC address must be, and was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// A `net_id` out of range.
    #[error("net_id {0} is out of range: it must be 0 to 4095")]
    NetId(u64),
    /// A subnet outside of the cluster range, or of no use.
    #[error(
        "subnet {0} is not usable: it must lie in {CLUSTER_RANGE}, start at its network address and be a /16 to /29"
    )]
    Subnet(Ipv4Net),
    /// Not a MAC address.
    #[error("`{0}` is not a MAC address")]
    Mac(String),
}

/// A tenant's network number, 0 to 4095.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "u64", into = "u64")]
pub struct NetId(u16);

impl NetId {
    /// The highest number.
    pub const MAX: u16 = 4095;

    /// The network number, if it is in range.
    pub fn new(number: u64) -> Result<Self, InvalidNetwork> {
        u16::try_from(number).ok().filter(|n| *n <= Self::MAX).map(Self).ok_or(InvalidNetwork::NetId(number))
    }

    /// Every network number, lowest first.
    pub fn all() -> impl Iterator<Item = NetId> {
        (0..=Self::MAX).map(NetId)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The /24 that a tenant has unless its manifest names another: `10.240.0.0 + net_id × 256`.
    pub fn default_subnet(self) -> TenantSubnet {
        let base = u32::from(CLUSTER_RANGE.network()) + u32::from(self.0) * 256;
        TenantSubnet(Ipv4Net::new_assert(Ipv4Addr::from_bits(base), 24))
    }

    /// The bridge's name: `br-tenant-<net_id>`.
    pub fn bridge_name(self) -> String {
        format!("br-tenant-{}", self.0)
    }

    /// The tap's name of the instance at this offset: `tn<net_id>i<offset>`.
    pub fn tap_name(self, offset: u16) -> String {
        format!("tn{}i{offset}", self.0)
    }

    /// The MAC address of the instance at this offset: `02:6d:<net_id>:<offset>`.
    pub fn mac(self, offset: u16) -> MacAddr {
        let [n1, n0] = self.0.to_be_bytes();
        let [o1, o0] = offset.to_be_bytes();
        MacAddr([0x02, 0x6d, n1, n0, o1, o0])
    }
}

impl TryFrom<u64> for NetId {
    type Error = InvalidNetwork;
    fn try_from(number: u64) -> Result<Self, InvalidNetwork> {
        Self::new(number)
    }
}

impl From<NetId> for u64 {
    fn from(id: NetId) -> u64 {
        id.0.into()
    }
}

impl fmt::Display for NetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tenant's subnet inside [`CLUSTER_RANGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct TenantSubnet(Ipv4Net);

impl TenantSubnet {
    /// The subnet as a network.
    pub const fn net(self) -> Ipv4Net {
        self.0
    }

    /// Bits of the prefix.
    pub const fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// The host's address on the bridge, `.1`: the machines' default route.
    pub fn bridge_ip(self) -> Ipv4Addr {
        self.address(BRIDGE_OFFSET)
    }

    /// The address of the instance at this offset; `None` where the subnet has no such address for instances.
    pub fn machine_ip(self, offset: u16) -> Option<Ipv4Addr> {
        self.instance_offsets().contains(&offset).then(|| self.address(offset))
    }

    /// The offset of an instance's address; `None` for any other address.
    pub fn offset_of(self, ip: Ipv4Addr) -> Option<u16> {
        if !self.0.contains(&ip) {
            return None;
        }
        let offset = u16::try_from(u32::from(ip) - u32::from(self.0.network())).ok()?;
        self.instance_offsets().contains(&offset).then_some(offset)
    }

    /// The offsets that instances may have, from `.3` to the last before the broadcast address.
    pub fn instance_offsets(self) -> std::ops::RangeInclusive<u16> {
        // A /16 to /29 has 8 to 65536 addresses, so the last usable offset fits.
        let last = (1u32 << (32 - self.0.prefix_len())) - 2;
        FIRST_INSTANCE_OFFSET..=u16::try_from(last).unwrap_or(u16::MAX - 1)
    }

    fn address(self, offset: u16) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::from(self.0.network()) + u32::from(offset))
    }
}

impl TryFrom<Ipv4Net> for TenantSubnet {
    type Error = InvalidNetwork;
    fn try_from(net: Ipv4Net) -> Result<Self, InvalidNetwork> {
        let usable = CLUSTER_RANGE.contains(&net)
            && (16..=29).contains(&net.prefix_len())
            && net.addr() == net.network();
        if usable { Ok(Self(net)) } else { Err(InvalidNetwork::Subnet(net)) }
    }
}

impl From<TenantSubnet> for Ipv4Net {
    fn from(subnet: TenantSubnet) -> Ipv4Net {
        subnet.0
    }
}

impl fmt::Display for TenantSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = InvalidNetwork;
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_none() { Ok(Self(bytes)) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidNetwork;
    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_net_id_has_a_subnet_bridge_and_taps_of_its_own() {
        let mut subnets = HashSet::new();
        let mut names = HashSet::new();
        for id in NetId::all() {
            let subnet = id.default_subnet();
            assert!(CLUSTER_RANGE.contains(&subnet.net()));
            let expected = 0x0af0_0000u32 + u32::from(id.get()) * 256;
            assert_eq!(u32::from(subnet.net().network()), expected);
            assert_eq!(u32::from(subnet.bridge_ip()), expected + 1);
            assert!(subnets.insert(subnet));
            for name in [id.bridge_name(), id.tap_name(3), id.tap_name(254)] {
                assert!(name.len() <= 15, "{name} does not fit an interface name");
                assert!(names.insert(name));
            }
        }
        assert_eq!(subnets.len(), 4096);
    }

    #[test]
    fn addresses_and_offsets_are_inverse_for_every_net_id() {
        for id in NetId::all() {
            let subnet = id.default_subnet();
            let mut macs = HashSet::new();
            for offset in subnet.instance_offsets() {
                let ip = subnet.machine_ip(offset).unwrap();
                assert_eq!(subnet.offset_of(ip), Some(offset));
                let mac = id.mac(offset);
                assert!(macs.insert(mac));
                assert_eq!(mac.0[0] & 0b11, 0b10, "locally administered, unicast");
                assert_eq!(mac.to_string().parse(), Ok(mac));
            }
            assert_eq!(macs.len(), 252);
            for taken in [0, 1, 2, 255] {
                assert_eq!(subnet.machine_ip(taken), None);
            }
        }
    }

    #[test]
    fn net_ids_end_at_4095() {
        assert!(NetId::new(4095).is_ok());
        assert_eq!(NetId::new(4096), Err(InvalidNetwork::NetId(4096)));
        assert_eq!(NetId::new(u64::MAX), Err(InvalidNetwork::NetId(u64::MAX)));
    }

    #[test]
    fn a_subnet_lies_in_the_cluster_range() {
        for good in ["10.240.0.0/24", "10.255.0.0/16", "10.241.2.8/29"] {
            assert!(TenantSubnet::try_from(good.parse::<Ipv4Net>().unwrap()).is_ok(), "{good}");
        }
        for bad in ["10.239.0.0/24", "10.240.0.0/12", "10.240.0.1/24", "10.240.0.0/30", "192.168.0.0/24"] {
            assert!(TenantSubnet::try_from(bad.parse::<Ipv4Net>().unwrap()).is_err(), "{bad}");
        }
        let whole: TenantSubnet =
            TenantSubnet::try_from("10.255.0.0/16".parse::<Ipv4Net>().unwrap()).unwrap();
        assert_eq!(whole.machine_ip(65534), Some(Ipv4Addr::new(10, 255, 255, 254)));
        assert_eq!(whole.machine_ip(65535), None);
    }
}
