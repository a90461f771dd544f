//! The pair of link-local addresses that joins a tenant's namespace to the host's.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Every uplink is a /31 of this range.
pub const UPLINK_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18);

/// A /31 of [`UPLINK_RANGE`]: the even address is the host's, the odd one the tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct Uplink(Ipv4Net);

impl Uplink {
    /// Both addresses as a network.
    pub const fn net(self) -> Ipv4Net {
        self.0
    }

    /// The host's address, the tenant's default route.
    pub fn host_ip(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The address that everything of this tenant comes from, seen from the host.
    pub fn tenant_ip(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// Every uplink there can be, lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        let first = u32::from(UPLINK_RANGE.network());
        let last = u32::from(UPLINK_RANGE.broadcast());
        (first..=last).step_by(2).map(|bits| Self(Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), 31)))
    }
}

impl TryFrom<Ipv4Net> for Uplink {
    type Error = Error;
    fn try_from(net: Ipv4Net) -> Result<Self> {
        let valid = net.prefix_len() == 31 && net == net.trunc() && UPLINK_RANGE.contains(&net);
        if valid { Ok(Self(net)) } else { Err(Error::NotAnUplink(net)) }
    }
}

impl From<Uplink> for Ipv4Net {
    fn from(uplink: Uplink) -> Ipv4Net {
        uplink.0
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The lowest uplink that overlaps none of `taken`: the host's addresses and routes
/// ([`crate::Networks::taken_networks`]) and what the caller's store has given to other tenants.
pub fn choose_uplink(taken: &[Ipv4Net]) -> Result<Uplink> {
    Uplink::all().find(|uplink| !taken.iter().any(|net| overlap(*net, uplink.0))).ok_or(Error::NoFreeUplink)
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_is_free_on_an_ordinary_host() {
        let taken = ["192.0.2.0/24", "169.254.169.254/32", "172.17.0.0/16"].map(|n| n.parse().unwrap());
        let uplink = choose_uplink(&taken).unwrap();
        assert_eq!(uplink.host_ip(), Ipv4Addr::new(169, 254, 64, 0));
        assert_eq!(uplink.tenant_ip(), Ipv4Addr::new(169, 254, 64, 1));
    }

    #[test]
    fn none_is_free_where_link_local_is_routed() {
        assert!(matches!(choose_uplink(&["169.254.0.0/16".parse().unwrap()]), Err(Error::NoFreeUplink)));
    }

    #[test]
    fn only_aligned_pairs_of_the_range_are_uplinks() {
        assert_eq!(Uplink::all().count(), 8192);
        for uplink in Uplink::all() {
            assert_eq!(Uplink::try_from(uplink.net()).unwrap(), uplink);
        }
        for bad in
            ["169.254.64.0/30", "169.254.64.1/31", "169.254.63.254/31", "169.254.128.0/31", "10.0.0.0/31"]
        {
            assert!(Uplink::try_from(bad.parse::<Ipv4Net>().unwrap()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_chosen_overlaps_nothing_taken(
            taken in proptest::collection::vec((0u32..1 << 14, 20u8..=32), 0..40),
        ) {
            let base = u32::from(UPLINK_RANGE.network());
            let taken: Vec<Ipv4Net> =
                taken.into_iter().map(|(n, len)| Ipv4Net::new(Ipv4Addr::from_bits(base + n), len).unwrap()).collect();
            let addresses = |net: Ipv4Net| u32::from(net.network())..=u32::from(net.broadcast());
            match choose_uplink(&taken) {
                Ok(uplink) => for ip in addresses(uplink.net()) {
                    prop_assert!(!taken.iter().any(|net| addresses(*net).contains(&ip)));
                },
                Err(_) => for uplink in Uplink::all() {
                    prop_assert!(addresses(uplink.net())
                        .any(|ip| taken.iter().any(|net| addresses(*net).contains(&ip))));
                },
            }
        }
    }
}
