//! How fast one machine is cloned, woken and put to sleep.

use mvm_protocol::api::Act;

use super::{BIG_MEM_MIB, Bench, MEM_MIB, Pool, SPARE, manifest, settle};
use crate::Result;
use crate::raw::{Delta, Image, Machine, Source, Way};
use crate::report::{Report, Sides};
use crate::samples::Samples;

/// MiB of random bytes that are made in a guest; more of them are copies.
const RANDOM_MIB: u32 = 64;

/// The pools that most rows have: one without, one with a spare.
fn pools(mem_mib: u32) -> [Pool<'static>; 2] {
    let demand = Pool { mem_mib, ..Pool::default() };
    [demand, Pool { name: "spare", spares: 1, ..demand }]
}

/// Clones, on demand and with a spare.
pub(super) fn clones(bench: &Bench, report: &mut Report) -> Result<()> {
    let source = Source { image: bench.base(MEM_MIB)?, delta: None, wake: false };
    bench.mvm.deploy(&manifest("clone", &pools(MEM_MIB)))?;
    let (demand, spare) = (only(bench, "clone", "demand")?, only(bench, "clone", "spare")?);
    let (mut on_demand, mut with_spare) = (Sides::default(), Sides::default());
    let mut way = RawWay::default();
    for _ in bench.rounds(1) {
        let machine = bench.raw.on_demand(source)?;
        on_demand.raw.push_time(machine.ready);
        way.push(&machine);
        drop(machine);
        on_demand.take(&start_again(bench, &demand)?, "clone", false);
        let ahead = bench.raw.spare(source.image)?;
        with_spare.raw.push_time(bench.raw.with_spare(ahead, source)?.ready);
        with_spare.take(&start_again(bench, &spare)?, "clone", true);
    }
    bench.mvm.destroy("clone");
    report.row("clone, on demand", "ms", &on_demand);
    way.report("clone", report);
    report.row("clone, with a spare", "ms", &with_spare);
    report.value("clone_ready_ratio", on_demand.ratio());
    report.value("clone_spare_ratio", with_spare.ratio());
    let against_demand = Sides { mvm: with_spare.mvm, raw: on_demand.raw, missing: None };
    report.value("clone_spare_vs_demand", against_demand.ratio());
    Ok(())
}

fn start_again(bench: &Bench, instance: &str) -> Result<mvm_protocol::api::StartReport> {
    bench.mvm.act(instance, Act::Stop)?;
    std::thread::sleep(SPARE);
    bench.mvm.run(instance, Act::Start)
}

/// Where the time of a raw start goes, on demand.
#[derive(Default)]
struct RawWay {
    up: Samples,
    restored: Samples,
    echo: Samples,
    hello: Samples,
    confirmed: Samples,
    /// Of the first two, and what is left without it.
    commits: Samples,
    engine: Samples,
}

impl RawWay {
    fn push(&mut self, machine: &Machine) {
        let Way { up, restored, echo, hello } = machine.way;
        self.up.push_time(up);
        self.restored.push_time(restored - up);
        self.echo.push_time(echo - restored);
        self.hello.push_time(hello - echo);
        self.confirmed.push_time(machine.ready - hello);
        self.commits.push_time(machine.commits);
        self.engine.push_time(machine.ready - machine.commits);
    }

    fn report(self, what: &str, report: &mut Report) {
        let parts = [
            ("commits, and the process until its monitor answers", self.up),
            ("memory, device state, commit", self.restored),
            ("resume, until the guest echoes", self.echo),
            ("Hello", self.hello),
            ("Personalize", self.confirmed),
            ("durable writes that are waited for", self.commits),
        ];
        for (part, raw) in parts {
            report.row(format!("  raw {what}, of this: {part}"), "ms", &Sides { raw, ..Sides::default() });
        }
    }
}

/// What a raw machine is woken from.
enum Asleep {
    Delta(Delta),
    Own(Box<Image>),
}

/// Wakes with so many MiB of private pages, on demand and with a spare; with 8 MiB, sleeps too.
pub(super) fn wakes(bench: &Bench, report: &mut Report, mib: u32) -> Result<()> {
    let mem_mib = if mib >= 1024 { BIG_MEM_MIB } else { MEM_MIB };
    let base = bench.base(mem_mib)?;
    let asleep = raw_asleep(bench, base, mib)?;
    let source = match &asleep {
        Asleep::Delta(delta) => Source { image: base, delta: Some(delta), wake: true },
        Asleep::Own(image) => Source { image, delta: None, wake: true },
    };
    let tenant = format!("wake-{mib}");
    bench.mvm.deploy(&manifest(&tenant, &pools(mem_mib)))?;
    let [demand, spare] = [only(bench, &tenant, "demand")?, only(bench, &tenant, "spare")?];
    for instance in [&demand, &spare] {
        bench.mvm.lab.exec(instance, &["/bin/sh", "-c", &fill_memory(mib)]);
        // The first sleep writes what later ones do not.
        bench.mvm.act(instance, Act::Sleep)?;
        bench.mvm.run(instance, Act::Wake)?;
    }
    settle();
    let (mut on_demand, mut with_spare, mut sleep) = (Sides::default(), Sides::default(), Sides::default());
    let mut way = RawWay::default();
    for _ in bench.rounds(if mib >= 1024 { 3 } else { 1 }) {
        let machine = bench.raw.on_demand(source)?;
        on_demand.raw.push_time(machine.ready);
        way.push(&machine);
        if mib == 8 {
            settle();
            sleep.raw.push_time(bench.raw.sleep(machine)?.1);
        } else {
            // It must not run beside mvm's.
            drop(machine);
        }
        sleep.mvm.push(bench.mvm.act(&demand, Act::Sleep)?.took_ms);
        settle();
        on_demand.take(&bench.mvm.run(&demand, Act::Wake)?, "wake", false);
        settle();
        let ahead = bench.raw.spare(source.image)?;
        with_spare.raw.push_time(bench.raw.with_spare(ahead, source)?.ready);
        bench.mvm.act(&spare, Act::Sleep)?;
        std::thread::sleep(SPARE);
        with_spare.take(&bench.mvm.run(&spare, Act::Wake)?, "wake", true);
        settle();
    }
    bench.mvm.destroy(&tenant);
    report.row(format!("wake with {mib} MiB, on demand"), "ms", &on_demand);
    if mib == 8 {
        let own = on_demand.mvm.median().zip(way.engine.median()).map(|(mvm, engine)| mvm - engine);
        report.value("wake_own_ms", own);
    }
    way.report("wake", report);
    report.row(format!("wake with {mib} MiB, with a spare"), "ms", &with_spare);
    report.row(format!("sleep with {mib} MiB"), "ms", &sleep);
    wake_values(report, mib, [&on_demand, &with_spare, &sleep]);
    Ok(())
}

fn wake_values(report: &mut Report, mib: u32, [on_demand, with_spare, sleep]: [&Sides; 3]) {
    if mib == 8 {
        report.value("wake_ready_ratio", on_demand.ratio());
        report.value("wake_spare_ratio", with_spare.ratio());
        report.value("sleep_ratio", sleep.ratio());
        report.small_wake = on_demand.mvm.median();
    }
    if mib == 1024 {
        let ratio = on_demand.mvm.median().zip(report.small_wake).map(|(big, small)| big / small);
        report.value("big_delta_wake_ratio", ratio);
    }
}

/// A clone that dirtied its memory and was put to sleep.
fn raw_asleep(bench: &Bench, base: &Image, mib: u32) -> Result<Asleep> {
    let machine = dirty_clone(bench, base, mib)?;
    if mib >= 1024 {
        return Ok(Asleep::Own(Box::new(bench.raw.sleep_in_own_image(machine, base)?)));
    }
    Ok(Asleep::Delta(bench.raw.sleep(machine)?.0))
}

/// A clone of the raw side's with so many MiB of memory of its own.
pub(super) fn dirty_clone(bench: &Bench, base: &Image, mib: u32) -> Result<Machine> {
    let machine = bench.raw.on_demand(Source { image: base, delta: None, wake: false })?;
    if mib > 0 {
        machine.session().shell(&fill_memory(mib))?;
    }
    settle();
    Ok(machine)
}

/// A shell command that fills memory with what cannot be compressed.
pub(super) fn fill_memory(mib: u32) -> String {
    let random = mib.min(RANDOM_MIB);
    format!(
        "set -e; mkdir /run/fill; mount -t tmpfs -o size=95% fill /run/fill; cd /run/fill; \
         head -c {} /dev/urandom > 0; for copy in $(seq 2 {}); do cat 0 > $copy; done",
        u64::from(random) << 20,
        mib / random
    )
}

/// The only instance of a pool.
pub(super) fn only(bench: &Bench, tenant: &str, pool: &str) -> Result<String> {
    let mut instances = bench.mvm.instances(tenant, pool)?;
    Ok(instances.pop().ok_or_else(|| format!("{tenant}/{pool} has no instance"))?)
}
