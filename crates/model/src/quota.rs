//! What a tenant may use.

use serde::{Deserialize, Serialize};

/// A tenant's limits. A limit that is absent does not bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// vCPUs of its running machines together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u32>,
    /// Memory of its running and warm machines together, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mem_mib: Option<u64>,
    /// Machines that run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// Machines that are warm at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_warm: Option<u32>,
    /// Pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pools: Option<u32>,
    /// Instances of one pool, in any state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances_per_pool: Option<u32>,
    /// Data disks together, in GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk_gib: Option<u64>,
}

/// What a tenant uses, or would use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// vCPUs of running machines.
    pub vcpus: u32,
    /// Memory of running and warm machines, in MiB.
    pub mem_mib: u64,
    /// Running machines.
    pub running: u32,
    /// Warm machines.
    pub warm: u32,
    /// Pools.
    pub pools: u32,
    /// Instances of its largest pool.
    pub instances_per_pool: u32,
    /// Data disks, in MiB.
    pub disk_mib: u64,
}

/// A limit that would be passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "quota {limit} = {allowed} is too small: {needed} needed; raise it (`[tenant.quotas]`, `mvm tenant update`) or ask for \
     less"
)]
pub struct QuotaExceeded {
    /// The key in the manifest.
    pub limit: &'static str,
    /// What it says.
    pub allowed: u64,
    /// What would be used.
    pub needed: u64,
}

impl Quotas {
    /// Whether a usage stays within the limits.
    ///
    /// # Errors
    /// The first limit that is passed, in the order of the fields.
    pub fn admit(&self, usage: &Usage) -> Result<(), QuotaExceeded> {
        let disk_gib = usage.disk_mib.div_ceil(1024);
        let checks = [
            ("max_vcpus", self.max_vcpus.map(u64::from), u64::from(usage.vcpus)),
            ("max_mem_mib", self.max_mem_mib, usage.mem_mib),
            ("max_running", self.max_running.map(u64::from), u64::from(usage.running)),
            ("max_warm", self.max_warm.map(u64::from), u64::from(usage.warm)),
            ("max_pools", self.max_pools.map(u64::from), u64::from(usage.pools)),
            (
                "max_instances_per_pool",
                self.max_instances_per_pool.map(u64::from),
                u64::from(usage.instances_per_pool),
            ),
            ("max_disk_gib", self.max_disk_gib, disk_gib),
        ];
        for (limit, allowed, needed) in checks {
            if let Some(allowed) = allowed.filter(|allowed| needed > *allowed) {
                return Err(QuotaExceeded { limit, allowed, needed });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_limits_everything_is_admitted() {
        let all = Usage { vcpus: u32::MAX, mem_mib: u64::MAX, disk_mib: u64::MAX, ..Usage::default() };
        assert_eq!(Quotas::default().admit(&all), Ok(()));
    }

    proptest! {
        #[test]
        fn a_limit_binds_exactly_above_itself(limit in 0u32..1000, used in 0u32..1000) {
            let quotas = Quotas { max_running: Some(limit), ..Quotas::default() };
            let admitted = quotas.admit(&Usage { running: used, ..Usage::default() });
            prop_assert_eq!(admitted.is_ok(), used <= limit);
        }
    }

    #[test]
    fn a_started_gibibyte_counts_as_one() {
        let quotas = Quotas { max_disk_gib: Some(1), ..Quotas::default() };
        assert!(quotas.admit(&Usage { disk_mib: 1024, ..Usage::default() }).is_ok());
        let error = quotas.admit(&Usage { disk_mib: 1025, ..Usage::default() }).unwrap_err();
        assert_eq!((error.limit, error.needed), ("max_disk_gib", 2));
    }
}
