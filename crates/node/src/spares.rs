//! How many VMMs a pool has started ahead: as many as were lately in demand, within what its manifest and the host's memory
//! allow. Nobody waits for one, and a pool that is left alone has none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mvm_host::SpareOrder;
use mvm_model::{PoolId, TenantId};

use crate::agent::Agent;
use crate::bases;
use crate::usage::{self, Memory};

/// A machine that began from a base so long ago is no demand any more.
const RECENT: Duration = Duration::from_secs(10 * 60);
/// Machines that begin within this time would each have used a spare.
const TOGETHER: Duration = Duration::from_secs(10);
/// A machine that was just woken has work to do: its successor's VMM is started a little later.
const AFTERWARDS: Duration = Duration::from_millis(250);
/// How often pools are looked at that nothing happens to.
const EVERY: Duration = Duration::from_secs(60);
/// What a spare takes, in MiB.
const SPARE_MIB: u64 = 40;
/// What stays free on the host, in parts of its memory.
const RESERVE: u64 = 8;

type Pool = (TenantId, PoolId);

/// When machines of each pool began from a base.
#[derive(Debug, Default)]
pub struct Demand {
    begun: Mutex<BTreeMap<Pool, VecDeque<Instant>>>,
    /// Pools that are seen to in a moment.
    pending: Mutex<BTreeSet<Pool>>,
}

impl Demand {
    fn pending(&self) -> MutexGuard<'_, BTreeSet<Pool>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, pool: &Pool, now: Instant) {
        let mut all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry(pool.clone()).or_default();
        times.push_back(now);
        while times.front().is_some_and(|time| now.duration_since(*time) > RECENT) {
            times.pop_front();
        }
    }

    /// Pools in demand: the times at which their machines began, and nothing for those that are so no more.
    fn take_stock(&self, now: Instant) -> Vec<(Pool, Vec<Instant>)> {
        let mut all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let stock = all
            .iter_mut()
            .map(|(pool, times)| {
                times.retain(|time| now.duration_since(*time) <= RECENT);
                (pool.clone(), times.iter().copied().collect())
            })
            .collect();
        all.retain(|_, times| !times.is_empty());
        stock
    }

    fn of(&self, pool: &Pool) -> Vec<Instant> {
        let all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(pool).map(|times| times.iter().copied().collect()).unwrap_or_default()
    }
}

/// The most machines that began within a short time: so many spares would have been used at once.
fn peak(times: &[Instant]) -> usize {
    let mut first = 0;
    let within = |(last, time): (usize, &Instant)| {
        while time.duration_since(times[first]) > TOGETHER {
            first += 1;
        }
        last + 1 - first
    };
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

/// How many spares a pool is to have.
fn wanted(most: u32, times: &[Instant], memory: Memory) -> u32 {
    let room = memory.available_mib().saturating_sub(memory.total_mib() / RESERVE) / SPARE_MIB;
    let demand = u32::try_from(peak(times)).unwrap_or(u32::MAX);
    most.min(demand).min(u32::try_from(room).unwrap_or(u32::MAX))
}

/// A machine of this pool has begun from a base, with a spare or without.
pub fn begun(agent: &Arc<Agent>, tenant: &TenantId, pool: &PoolId) {
    let of = (tenant.clone(), pool.clone());
    agent.demand.note(&of, Instant::now());
    keep_soon(agent, of);
}

/// Gives a pool the spares that it is to have, in a while, and removes the bases that it needs no more.
pub fn keep_soon(agent: &Arc<Agent>, pool: (TenantId, PoolId)) {
    if !agent.demand.pending().insert(pool.clone()) {
        return;
    }
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        tokio::time::sleep(AFTERWARDS).await;
        agent.demand.pending().remove(&pool);
        bases::try_to_collect(&agent, &pool.0, &pool.1).await;
        keep(&agent, &pool, &agent.demand.of(&pool)).await;
    });
}

/// Looks after all pools until the agent ends, and after the bases that machines had.
pub async fn tend(agent: Arc<Agent>) {
    let mut every = tokio::time::interval(EVERY);
    loop {
        every.tick().await;
        bases::collect_all(&agent).await;
        for (pool, times) in agent.demand.take_stock(Instant::now()) {
            keep(&agent, &pool, &times).await;
        }
    }
}

async fn keep(agent: &Arc<Agent>, of: &Pool, times: &[Instant]) {
    if let Err(error) = try_to_keep(agent, of, times).await {
        tracing::warn!(tenant = %of.0, pool = %of.1, %error, "spares are not kept");
    }
}

async fn try_to_keep(agent: &Arc<Agent>, of: &Pool, times: &[Instant]) -> Result<(), bases::BaseError> {
    let tenant = agent.tenant(&of.0).await?;
    let pool = agent.pool(&of.0, &of.1).await?;
    let base = bases::current(agent, &pool).await?;
    // Without a base there are none, those of an earlier one neither.
    let none = base.is_none() || tenant.doomed || pool.doomed;
    // Where the host does not say what memory it has, there is no room.
    let room = |memory| wanted(pool.spec.spares, times, memory);
    let count = if none { 0 } else { usage::memory().map_or(0, room) };
    let order = SpareOrder {
        tenant: of.0.clone(),
        pool: of.1.clone(),
        network: agent.network_of(&tenant),
        revision: pool.revision,
        resources: pool.spec.resources,
        base: base.map(|base| base.id).unwrap_or_default(),
        count,
    };
    agent.hands.order_spares(order).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Memory = Memory { total: 16_384 << 20, available: 8_192 << 20 };

    #[test]
    fn as_many_as_began_together() {
        let start = Instant::now();
        let at = |seconds: &[u64]| -> Vec<Instant> {
            seconds.iter().map(|second| start + Duration::from_secs(*second)).collect()
        };
        assert_eq!(wanted(8, &at(&[]), PLENTY), 0);
        assert_eq!(wanted(8, &at(&[0, 60, 120]), PLENTY), 1);
        assert_eq!(wanted(8, &at(&[0, 60, 61, 69, 120]), PLENTY), 3);
        assert_eq!(wanted(2, &at(&[0, 60, 61, 69, 120]), PLENTY), 2);
        assert_eq!(wanted(0, &at(&[0]), PLENTY), 0);
    }

    #[test]
    fn none_where_memory_is_short() {
        let begun = [Instant::now(); 8];
        let with = |available_mib: u64| Memory { total: 16_384 << 20, available: available_mib << 20 };
        assert_eq!(wanted(8, &begun, with(2_048)), 0);
        assert_eq!(wanted(8, &begun, with(2_048 + 3 * SPARE_MIB)), 3);
    }

    #[test]
    fn demand_is_forgotten() {
        let (demand, now) = (Demand::default(), Instant::now());
        let pool: Pool = ("alice".parse().unwrap(), "workers".parse().unwrap());
        demand.note(&pool, now);
        assert_eq!(demand.take_stock(now)[0].1.len(), 1);
        let later = now + RECENT + Duration::from_secs(1);
        assert_eq!(demand.take_stock(later), [(pool.clone(), vec![])], "once more, to let its spares go");
        assert!(demand.take_stock(later).is_empty());
    }
}
