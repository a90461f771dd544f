//! Typed ids and the addresses people write.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not an id or address of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not a tenant or pool name.
    #[error(
        "`{0}` is not a valid name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Name(String),
    /// Not an instance id.
    #[error("`{0}` is not an instance id: it looks like i-0000002a (`i-` and 8 hex digits)")]
    Instance(String),
    /// Not the start of an instance id either.
    #[error("`{0}` is not an address: write <tenant>, <tenant>/<pool> or <tenant>/<pool>/<instance>")]
    Address(String),
}

/// `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                if is_name(&text) { Ok(Self(text)) } else { Err(InvalidId::Name(text)) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_id! {
    /// A tenant: the security, quota and network boundary.
    TenantId
}
name_id! {
    /// A pool of one tenant.
    PoolId
}

name_id! {
    /// A person served by one tenant.
    UserName
}

/// One microVM: `i-` and 8 hex digits, made locally, unique on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(u32);

impl InstanceId {
    /// The id with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number behind the id.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i-{:08x}", self.0)
    }
}

impl FromStr for InstanceId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.strip_prefix("i-")
            .filter(|hex| hex.len() == 8 && hex.bytes().all(lower_hex))
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
            .map(Self)
            .ok_or_else(|| InvalidId::Instance(text.to_owned()))
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.to_string()
    }
}

/// What a person wrote where a command wants one instance: the whole address, a unique prefix of the
/// instance's id, or the pool alone if it has one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRef {
    /// The tenant.
    pub tenant: TenantId,
    /// The pool.
    pub pool: PoolId,
    /// The id or the start of it; empty means the pool's only instance.
    pub prefix: String,
}

impl InstanceRef {
    /// Whether this instance is meant.
    pub fn matches(&self, instance: InstanceId) -> bool {
        let id = instance.to_string();
        id.starts_with(&self.prefix) || id["i-".len()..].starts_with(&self.prefix)
    }
}

impl FromStr for InstanceRef {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut parts = text.split('/');
        let (Some(tenant), Some(pool)) = (parts.next(), parts.next()) else {
            return Err(InvalidId::Address(text.to_owned()));
        };
        let prefix = parts.next().unwrap_or_default().to_owned();
        if parts.next().is_some() {
            return Err(InvalidId::Address(text.to_owned()));
        }
        Ok(Self { tenant: tenant.parse()?, pool: pool.parse()?, prefix })
    }
}

impl fmt::Display for InstanceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.pool)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn instance_ids_survive_text(number: u32) {
            let id = InstanceId::new(number);
            prop_assert_eq!(id.to_string().parse::<InstanceId>(), Ok(id));
        }

        #[test]
        fn names_of_the_grammar_are_taken(name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
            let id: TenantId = name.parse().unwrap();
            prop_assert_eq!(id.as_str(), name);
        }

        #[test]
        fn nothing_else_is_taken(text in "\\PC{0,70}") {
            let grammar = !text.is_empty()
                && text.len() <= 63
                && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
                && !text.starts_with('-')
                && !text.ends_with('-');
            prop_assert_eq!(text.parse::<PoolId>().is_ok(), grammar);
        }
    }

    #[test]
    fn an_instance_id_has_exactly_eight_lower_case_digits() {
        for bad in ["i-2a", "i-0000002A", "i-000000002a", "0000002a", "i-+000002a", ""] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_instance_is_meant_by_its_prefix_or_by_its_pool_alone() {
        let id = InstanceId::new(0x00ab_0002);
        for good in ["a/w", "a/w/", "a/w/i-00ab", "a/w/00ab", "a/w/i-00ab0002"] {
            assert!(good.parse::<InstanceRef>().unwrap().matches(id), "{good}");
        }
        assert!(!"a/w/i-00ac".parse::<InstanceRef>().unwrap().matches(id));
        assert!("a".parse::<InstanceRef>().is_err());
        assert!("a/w/i-00ab/x".parse::<InstanceRef>().is_err());
    }
}
