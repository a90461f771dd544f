//! What a pool's machines may reach outside of their tenant. Nothing unless named.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// One destination that is allowed: `192.0.2.0/24`, `192.0.2.7:443`, `api.example.org:443`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    /// Where it is.
    pub to: Destination,
    /// The one TCP or UDP port; every port and protocol where it is absent.
    pub port: Option<u16>,
}

/// Where an egress rule leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// A network.
    Net(Ipv4Net),
    /// The public addresses that a name has when a machine asks for it.
    Name(HostName),
}

/// The name of a host, whole and in lower case: `api.example.org`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

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
    /// Just these; of networks private ones included, of names public addresses only.
    Only(Vec<EgressRule>),
}

/// Not an egress rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEgress {
    /// Neither `cidr[:port]` nor `name[:port]`.
    #[error(
        "`{0}` is not an egress rule: write a network as 192.0.2.0/24 or 192.0.2.0/24:443, a name as api.example.org:443, \
         or \"any\""
    )]
    Syntax(String),
    /// A name that stands for many.
    #[error("`{0}` is not an egress rule: a name has no wildcard; write each host's name")]
    Wildcard(String),
    /// A name with a dot at its end.
    #[error("`{0}` is not an egress rule: write the name without the dot at its end")]
    TrailingDot(String),
    /// Host bits set.
    #[error("`{0}` has bits set beyond its prefix: did you mean {1}?")]
    HostBits(String, Ipv4Net),
}

impl Egress {
    /// The names that may be reached, without their ports, in the order of the rules.
    pub fn names(&self) -> impl Iterator<Item = &HostName> {
        self.rules().iter().filter_map(|rule| match &rule.to {
            Destination::Name(name) => Some(name),
            Destination::Net(_) => None,
        })
    }

    /// The networks that may be reached because they are named themselves.
    pub fn nets(&self) -> impl Iterator<Item = Ipv4Net> {
        self.rules().iter().filter_map(|rule| match rule.to {
            Destination::Net(net) => Some(net),
            Destination::Name(_) => None,
        })
    }

    fn rules(&self) -> &[EgressRule] {
        match self {
            Egress::None | Egress::Any => &[],
            Egress::Only(rules) => rules,
        }
    }
}

impl FromStr for EgressRule {
    type Err = InvalidEgress;
    fn from_str(text: &str) -> Result<Self, InvalidEgress> {
        let syntax = || InvalidEgress::Syntax(text.to_owned());
        let (to, port) = match text.rsplit_once(':') {
            Some((to, port)) => {
                let port: u16 = port.parse().ok().filter(|p| *p != 0).ok_or_else(syntax)?;
                (to, Some(port))
            }
            None => (text, None),
        };
        let parsed = to.parse::<Ipv4Net>().or_else(|_| to.parse::<Ipv4Addr>().map(Ipv4Net::from));
        let net = match parsed {
            Ok(net) => net,
            Err(_) => return Ok(Self { to: Destination::Name(read_name(text, to)?), port }),
        };
        if net.addr() != net.network() {
            return Err(InvalidEgress::HostBits(text.to_owned(), net.trunc()));
        }
        Ok(Self { to: Destination::Net(net), port })
    }
}

fn read_name(rule: &str, name: &str) -> Result<HostName, InvalidEgress> {
    if name.contains('*') {
        return Err(InvalidEgress::Wildcard(rule.to_owned()));
    }
    if let Some(whole) = name.strip_suffix('.')
        && HostName::new(whole).is_some()
    {
        return Err(InvalidEgress::TrailingDot(rule.to_owned()));
    }
    HostName::new(name).ok_or_else(|| InvalidEgress::Syntax(rule.to_owned()))
}

impl HostName {
    /// The longest that the DNS can ask for, without the dot at the end.
    const LONGEST: usize = 253;
    const LONGEST_LABEL: usize = 63;

    /// A name of at least two labels of ASCII letters, digits and hyphens. What programs may take for an address, as `10.1` or
    /// `0x7f.1`, is none.
    pub fn new(text: &str) -> Option<Self> {
        let is_label = |label: &str| {
            (1..=Self::LONGEST_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let (_, last) = text.rsplit_once('.')?;
        // No domain at the top begins with a digit; addresses in every notation do.
        let looks_like_an_address = last.starts_with(|first: char| first.is_ascii_digit());
        let is_name = text.len() <= Self::LONGEST && text.split('.').all(is_label) && !looks_like_an_address;
        is_name.then(|| Self(text.to_ascii_lowercase()))
    }

    /// It as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HostName {
    type Error = InvalidEgress;
    fn try_from(text: String) -> Result<Self, InvalidEgress> {
        read_name(&text, &text)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> String {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Net(net) => net.fmt(f),
            Destination::Name(name) => name.fmt(f),
        }
    }
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
        self.to.fmt(f)?;
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
            let rule = EgressRule { to: Destination::Net(net), port };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn names_survive_text(
            name in "([a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\\.){1,4}[a-z]{2,6}",
            port in proptest::option::of(1u16..),
        ) {
            let rule = EgressRule { to: Destination::Name(HostName::new(&name).unwrap()), port };
            prop_assert_eq!(rule.to_string().to_ascii_uppercase().parse(), Ok(rule));
        }

        /// Nothing that is written without a letter in its last part, or as a number, is ever a name.
        #[test]
        fn no_address_is_a_name(parts in proptest::collection::vec("(0x)?[0-9a-f]{1,4}", 1..5)) {
            let text = parts.join(".");
            if let Some(name) = HostName::new(&text) {
                prop_assert!(!name.as_str().rsplit('.').next().unwrap().starts_with(|c: char| c.is_ascii_digit()));
            }
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let bits = "192.0.2.1/24".parse::<EgressRule>();
        assert!(matches!(bits, Err(InvalidEgress::HostBits(..))));
        for wildcard in ["*.example.org", "*:443", "*"] {
            assert!(matches!(wildcard.parse::<EgressRule>(), Err(InvalidEgress::Wildcard(_))), "{wildcard}");
        }
        for dot in ["example.org.", "example.org.:443"] {
            assert!(matches!(dot.parse::<EgressRule>(), Err(InvalidEgress::TrailingDot(_))), "{dot}");
        }
        let long = format!("{}.org", "a".repeat(64));
        let longer = format!("{}org", "abcdefghi.".repeat(26));
        for bad in [
            "",
            "192.0.2.0/33",
            "192.0.2.0/24:0",
            "192.0.2.0/24:70000",
            "any,none",
            "300.1.2.3",
            "10.1",
            "0x7f.1",
            "127.1.0x1",
            "localhost",
            "a..org",
            ".org",
            "-a.org",
            "a-.org",
            "a_b.org",
            "ä.org",
            "a.org:",
            "a.org:https",
            "https://a.org",
            "a.org/24",
            "a b.org",
            "2001:db8::1",
            &long,
            &longer,
        ] {
            assert!(matches!(bad.parse::<EgressRule>(), Err(InvalidEgress::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn a_single_address_is_a_rule() {
        let rule: EgressRule = "192.0.2.7:443".parse().unwrap();
        assert_eq!(rule.to, Destination::Net("192.0.2.7/32".parse().unwrap()));
        assert_eq!(rule.port, Some(443));
    }

    #[test]
    fn a_name_is_kept_in_lower_case() {
        let rule: EgressRule = "API.Telegram.org:443".parse().unwrap();
        assert_eq!(rule.to_string(), "api.telegram.org:443");
        let egress = Egress::Only(vec![
            rule,
            "192.0.2.0/24".parse().unwrap(),
            "xn--bcher-kva.example".parse().unwrap(),
        ]);
        let names: Vec<_> = egress.names().map(HostName::as_str).collect();
        assert_eq!(names, ["api.telegram.org", "xn--bcher-kva.example"]);
        assert_eq!(egress.nets().collect::<Vec<_>>(), ["192.0.2.0/24".parse().unwrap()]);
    }
}
