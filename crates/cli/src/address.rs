//! How people name things, and what the agent's paths make of it.

use std::fmt;
use std::str::FromStr;

use mvm_model::{InstanceId, InstanceRef, InvalidId, PoolId, TenantId};

/// A pool: `alice/workers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolAddress {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub pool: PoolId,
}

/// What is not a pool's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPoolAddress {
    /// Too few or too many parts.
    #[error("a pool is named <tenant>/<pool>, as alice/workers")]
    Shape,
    /// A part is no id.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

impl FromStr for PoolAddress {
    type Err = InvalidPoolAddress;
    fn from_str(text: &str) -> Result<Self, InvalidPoolAddress> {
        let (tenant, pool) = text.split_once('/').ok_or(InvalidPoolAddress::Shape)?;
        if pool.contains('/') {
            return Err(InvalidPoolAddress::Shape);
        }
        Ok(Self { tenant: tenant.parse()?, pool: pool.parse()? })
    }
}

impl PoolAddress {
    /// Its path in the agent's API.
    pub fn path(&self) -> String {
        format!("/v1/pools/{}/{}", self.tenant, self.pool)
    }
}

impl fmt::Display for PoolAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.pool)
    }
}

/// An instance: by its id, the start of one, or as the only one of its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceAddress(InstanceRef);

impl FromStr for InstanceAddress {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let address: InstanceRef = text.parse()?;
        if !begins_an_id(&address.prefix) {
            return Err(InvalidId::Instance(address.prefix));
        }
        Ok(Self(address))
    }
}

/// Whether any id can begin so, with or without its `i-`.
fn begins_an_id(prefix: &str) -> bool {
    let digits = prefix.strip_prefix("i-").unwrap_or(prefix);
    let hex = |digits: &str| digits.len() <= 8 && digits.bytes().all(|b| b"0123456789abcdef".contains(&b));
    prefix == "i" || hex(digits)
}

impl InstanceAddress {
    /// The address of an instance that is known.
    pub fn of(tenant: &TenantId, pool: &PoolId, id: InstanceId) -> Self {
        Self(InstanceRef { tenant: tenant.clone(), pool: pool.clone(), prefix: id.to_string() })
    }

    /// The pool, where nothing but that is named.
    pub fn pool(&self) -> Option<PoolAddress> {
        let InstanceRef { tenant, pool, prefix } = &self.0;
        prefix.is_empty().then(|| PoolAddress { tenant: tenant.clone(), pool: pool.clone() })
    }

    /// Its path in the agent's API.
    pub fn path(&self) -> String {
        let InstanceRef { tenant, pool, prefix } = &self.0;
        let instance = if prefix.is_empty() { "-" } else { prefix };
        format!("/v1/instances/{tenant}/{pool}/{instance}")
    }
}

impl fmt::Display for InstanceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whose instances are meant: a tenant's, or a pool's only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    tenant: TenantId,
    pool: Option<PoolId>,
}

impl FromStr for Owner {
    type Err = InvalidPoolAddress;
    fn from_str(text: &str) -> Result<Self, InvalidPoolAddress> {
        if !text.contains('/') {
            return Ok(Self { tenant: text.parse()?, pool: None });
        }
        let PoolAddress { tenant, pool } = text.parse()?;
        Ok(Self { tenant, pool: Some(pool) })
    }
}

impl Owner {
    /// As a query of the agent's API, with its question mark.
    pub fn query(&self) -> String {
        match &self.pool {
            Some(pool) => format!("?tenant={}&pool={pool}", self.tenant),
            None => format!("?tenant={}", self.tenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> String {
        text.parse::<InstanceAddress>().unwrap().path()
    }

    #[test]
    fn an_instance_is_named_by_its_id_a_prefix_or_its_pool() {
        assert_eq!(path("alice/workers/i-0000002a"), "/v1/instances/alice/workers/i-0000002a");
        assert_eq!(path("alice/workers/i-00"), "/v1/instances/alice/workers/i-00");
        assert_eq!(path("alice/workers/2a"), "/v1/instances/alice/workers/2a");
        assert_eq!(path("alice/workers/i"), "/v1/instances/alice/workers/i");
        assert_eq!(path("alice/workers"), "/v1/instances/alice/workers/-");
        assert_eq!(path("alice/workers/"), "/v1/instances/alice/workers/-");
    }

    #[test]
    fn what_cannot_be_an_instance_is_refused() {
        for bad in
            ["alice", "alice/workers/bob", "alice/w/i-123456789", "alice/w/i-0G", "a/w/..", "a/w/i-0/x"]
        {
            assert!(bad.parse::<InstanceAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pool_has_two_parts_and_an_owner_one_or_two() {
        assert_eq!("alice/workers".parse::<PoolAddress>().unwrap().path(), "/v1/pools/alice/workers");
        for bad in ["alice", "alice/", "alice/workers/i-0000002a", "/workers"] {
            assert!(bad.parse::<PoolAddress>().is_err(), "{bad}");
        }
        assert_eq!("alice".parse::<Owner>().unwrap().query(), "?tenant=alice");
        assert_eq!("alice/workers".parse::<Owner>().unwrap().query(), "?tenant=alice&pool=workers");
    }

    proptest! {
        #[test]
        fn no_address_leaves_its_path(text in "[a-z0-9./?#%&i-]{0,30}") {
            if let Ok(address) = text.parse::<InstanceAddress>() {
                let path = address.path();
                prop_assert_eq!(path.matches('/').count(), 5);
                prop_assert!(!path.contains(['?', '#', '%', '&', '.']));
            }
        }
    }
}
