//! Many wakes at once.

use std::time::Instant;

use mvm_protocol::api::Act;

use super::speed::dirty_clone;
use super::{Bench, MEM_MIB, Pool, manifest, settle};
use crate::Result;
use crate::raw::{Machine, Source};
use crate::report::{Report, Sides};

const MOST: u32 = 50;
/// How many at once, and in how few of a row's rounds.
const COUNTS: [(usize, usize); 2] = [(10, 2), (MOST as usize, 5)];
const TENANT: &str = "many";

/// 10 and 50 idle machines woken at once: from the first request to the last one ready.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let base = bench.base(MEM_MIB)?;
    let (delta, _) = bench.raw.sleep(dirty_clone(bench, base, 0)?)?;
    let source = Source { image: base, delta: Some(&delta), wake: true };
    let many = Pool { name: "many", instances: MOST, begin: "sleeping", ..Pool::default() };
    bench.mvm.deploy(&manifest(TENANT, &[many]))?;
    let instances = bench.mvm.instances(TENANT, "many")?;
    for (count, times) in COUNTS {
        let mut sides = Sides::default();
        for _ in bench.rounds(times) {
            sides.raw.push_time(raw(bench, source, count)?);
            settle();
            let some = &instances[..count];
            let begun = Instant::now();
            bench.mvm.act_on_all(some, Act::Wake)?;
            sides.mvm.push_time(begun.elapsed());
            settle();
            for instance in some {
                let how = bench.mvm.info(instance)?.last_start.map(|start| start.how).unwrap_or_default();
                if how != "wake" {
                    sides.missing = Some(format!("not all of mvm's were wakes but one a {how}"));
                }
            }
            bench.mvm.act_on_all(some, Act::Sleep)?;
            settle();
        }
        report.row(format!("{count} wakes at once, until the last is ready"), "ms", &sides);
    }
    bench.mvm.destroy(TENANT);
    Ok(())
}

fn raw(bench: &Bench, source: Source<'_>, count: usize) -> Result<std::time::Duration> {
    let begun = Instant::now();
    let (machines, took) = std::thread::scope(|scope| {
        let raw = &bench.raw;
        let wakes: Vec<_> = (0..count).map(|_| scope.spawn(move || raw.on_demand(source))).collect();
        let woken: Vec<Result<Machine>> = wakes
            .into_iter()
            .map(|wake| wake.join().unwrap_or_else(|_| Err("a wake panicked".into())))
            .collect();
        (woken, begun.elapsed())
    });
    machines.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(took)
}
