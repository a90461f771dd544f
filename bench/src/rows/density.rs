//! What machines take of disk and memory.

use mvm_protocol::api::Act;

use super::speed::{dirty_clone, fill_memory, only};
use super::{Bench, MEM_MIB, Pool, manifest, settle};
use crate::Result;
use crate::raw::{Machine, Source};
use crate::report::{Report, Sides};
use crate::samples::Samples;

const CLONES: u32 = 10;

/// Disk of a sleeping machine with 0, 8 and 32 MiB of its own.
pub(super) fn disk(bench: &Bench, report: &mut Report) -> Result<()> {
    let base = bench.base(MEM_MIB)?;
    bench.mvm.deploy(&manifest("disk", &[Pool::default()]))?;
    let instance = only(bench, "disk", "demand")?;
    for mib in [0, 8, 32] {
        let (delta, _) = bench.raw.sleep(dirty_clone(bench, base, mib)?)?;
        bench.mvm.act(&instance, Act::Stop)?;
        let start = bench.mvm.run(&instance, Act::Start)?;
        if mib > 0 {
            bench.mvm.lab.exec(&instance, &["/bin/sh", "-c", &fill_memory(mib)]);
        }
        settle();
        bench.mvm.act(&instance, Act::Sleep)?;
        let mut sides = Sides { raw: delta.mib().into(), ..Sides::default() };
        if start.how == "clone" {
            sides.mvm = bench.mvm.disk_mib(&instance)?.into();
        } else {
            let mib = bench.mvm.disk_mib(&instance)?;
            sides.missing = Some(format!("{mib:.1} MiB after a {}, not a clone", start.how));
        }
        if mib == 0 {
            report.value("idle_delta_mib", sides.mvm.median());
        }
        let what = if mib == 0 { "idle".to_owned() } else { format!("{mib} MiB written") };
        report.row(format!("disk of a sleeping machine, {what}"), "MiB", &sides);
    }
    bench.mvm.destroy("disk");
    Ok(())
}

/// Memory of ten clones of one base.
pub(super) fn pss(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = Source { image: bench.base(MEM_MIB)?, delta: None, wake: false };
    let machines: Vec<Machine> = (0..CLONES).map(|_| bench.raw.on_demand(source)).collect::<Result<_>>()?;
    settle();
    let (raw_each, raw_all) = pss_of(machines.iter().map(Machine::pid))?;
    drop(machines);
    let pool = Pool { instances: CLONES, ..Pool::default() };
    bench.mvm.deploy(&manifest("pss", &[pool]))?;
    // Those that a deployment starts may be cold boots; whoever stops and starts again is cloned where that is possible.
    let instances = bench.mvm.instances("pss", "demand")?;
    bench.mvm.act_on_all(&instances, Act::Stop)?;
    let mut pids = Vec::new();
    let mut missing = None;
    for instance in &instances {
        let start = bench.mvm.run(instance, Act::Start)?;
        if start.how != "clone" {
            missing = Some(format!("mvm's were started by {}", start.how));
        }
        pids.extend(bench.mvm.info(instance)?.pid);
    }
    settle();
    let (each, all) = pss_of(pids)?;
    bench.mvm.destroy("pss");
    if missing.is_none() {
        report.value("ten_clones_pss_mib", all.median());
    }
    report.row(
        "PSS of a clone of 512 MiB",
        "MiB",
        &Sides { mvm: each, raw: raw_each, missing: missing.clone() },
    );
    report.row("PSS of ten of them together", "MiB", &Sides { mvm: all, raw: raw_all, missing });
    Ok(())
}

/// MiB of each, and of all together.
fn pss_of(pids: impl IntoIterator<Item = u32>) -> Result<(Samples, Samples)> {
    let (mut each, mut all) = (Samples::default(), 0.0);
    for pid in pids {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = kib.and_then(|rest| rest.trim().strip_suffix("kB")).ok_or("no Pss in smaps_rollup")?;
        let mib = kib.trim().parse::<f64>()? / 1024.0;
        each.push(mib);
        all += mib;
    }
    Ok((each, all.into()))
}
