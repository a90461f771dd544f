//! What a pool's machines may reach outside of their tenant. Nothing unless named.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// One destination that is allowed: `192.0.2.0/24`, `192.0.2.7:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    /// The destination network.
    pub net: Ipv4Net,
    /// The one TCP or UDP port; every port and protocol where it is absent.
    pub port: Option<u16>,
}

/// What a pool may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Nothing: the default.
    #[default]
    None,
    /// All public addresses: private, link-local and metadata ranges stay closed.
    Any,
    /// Just these, private ones included.
    Only(Vec<EgressRule>),
}

/// Not an egress rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEgress {
    /// Not `cidr[:port]`.
    #[error("`{0}` is not an egress rule: write a network as 192.0.2.0/24 or 192.0.2.0/24:443, or \"any\"")]
    Syntax(String),
    /// Names are not built yet.
    #[error("egress by name (`{0}`) is not supported by this version: name the network, as 192.0.2.0/24:443")]
    Name(String),
    /// Host bits set.
    #[error("`{0}` has bits set beyond its prefix: did you mean {1}?")]
    HostBits(String, Ipv4Net),
}

impl FromStr for EgressRule {
    type Err = InvalidEgress;
    fn from_str(text: &str) -> Result<Self, InvalidEgress> {
        let syntax = || InvalidEgress::Syntax(text.to_owned());
        let (net, port) = match text.rsplit_once(':') {
            Some((net, port)) => {
                let port: u16 = port.parse().ok().filter(|p| *p != 0).ok_or_else(syntax)?;
                (net, Some(port))
            }
            None => (text, None),
        };
        let parsed = net.parse::<Ipv4Net>().or_else(|_| net.parse::<Ipv4Addr>().map(Ipv4Net::from));
        let net = match parsed {
            Ok(net) => net,
            Err(_) if looks_like_a_name(net) => return Err(InvalidEgress::Name(text.to_owned())),
            Err(_) => return Err(syntax()),
        };
        if net.addr() != net.network() {
            return Err(InvalidEgress::HostBits(text.to_owned(), net.trunc()));
        }
        Ok(Self { net, port })
    }
}

fn looks_like_a_name(text: &str) -> bool {
    text.contains('.')
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
}

impl TryFrom<String> for EgressRule {
    type Error = InvalidEgress;
    fn try_from(text: String) -> Result<Self, InvalidEgress> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> String {
        rule.to_string()
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.net.fmt(f)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Egress::None => f.pad("none"),
            Egress::Any => f.pad("any"),
            Egress::Only(rules) => {
                let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                f.pad(&rules.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rules_survive_text(bits: u32, len in 0u8..=32, port in proptest::option::of(1u16..)) {
            let net = Ipv4Net::new(Ipv4Addr::from_bits(bits), len).unwrap().trunc();
            let rule = EgressRule { net, port };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let name = "api.telegram.org:443".parse::<EgressRule>();
        assert!(matches!(name, Err(InvalidEgress::Name(_))));
        let bits = "192.0.2.1/24".parse::<EgressRule>();
        assert!(matches!(bits, Err(InvalidEgress::HostBits(..))));
        for bad in ["", "192.0.2.0/33", "192.0.2.0/24:0", "192.0.2.0/24:70000", "any,none", "300.1.2.3"] {
            assert!(matches!(bad.parse::<EgressRule>(), Err(InvalidEgress::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn a_single_address_is_a_rule() {
        let rule: EgressRule = "192.0.2.7:443".parse().unwrap();
        assert_eq!((rule.net.prefix_len(), rule.port), (32, Some(443)));
    }
}
