//! Whether what a plan was made from is still so when it is committed. Images are built for minutes in between, and an
//! instance is destroyed without waiting for that.

use std::collections::BTreeSet;

use mvm_model::{InstanceId, PoolId, TenantId};

use super::plan::{Plan, Present};
use crate::store::{self, PoolRow};

/// The pools that a plan changes, or gives instances, as it took them to be.
#[derive(Debug)]
pub(super) struct Basis {
    tenant: TenantId,
    pools: Vec<(PoolId, Option<PoolRow>, BTreeSet<InstanceId>)>,
}

impl Basis {
    pub(super) fn of(tenant: &TenantId, present: &Present, plan: &Plan) -> Self {
        let written = plan.pools.iter().map(|pool| &pool.spec.id);
        let ids: BTreeSet<&PoolId> = written.chain(plan.instances.iter().map(|(spec, _)| &spec.id)).collect();
        let pool = |id: &PoolId| {
            let row = present.pools.iter().find(|pool| pool.spec.id == *id);
            let instances = present.instances.iter().filter(|instance| instance.place.pool == *id);
            (id.clone(), row.cloned(), instances.map(|instance| instance.id).collect())
        };
        Self { tenant: tenant.clone(), pools: ids.into_iter().map(pool).collect() }
    }

    /// The first of them that is another by now.
    pub(super) fn changed(&self, tx: &rusqlite::Transaction<'_>) -> store::Sql<Option<PoolId>> {
        for (id, row, instances) in &self.pools {
            let now = store::instances(tx, Some(&self.tenant), Some(id))?;
            let same = now.iter().map(|instance| instance.id).collect::<BTreeSet<_>>() == *instances;
            if !same || store::pool(tx, &self.tenant, id)? != *row {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    }
}
