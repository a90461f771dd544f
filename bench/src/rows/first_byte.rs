//! A message through a gateway to a machine that sleeps: in a pool in use, which has a spare unless its manifest says
//! otherwise, and in one without.

use std::fmt::Write as _;
use std::time::Instant;

use mvm_protocol::api::{Act, millis};

use super::speed::{dirty_clone, fill_memory, only};
use super::{Bench, MEM_MIB, Pool, SPARE, manifest, settle, worker};
use crate::Result;
use crate::raw::Source;
use crate::report::{Report, Sides};

const TENANT: &str = "first-byte";
const PORT: u16 = 18080;
/// The port of the pool without spares.
const DEMAND_PORT: u16 = 18081;

/// From the connection to the published port to the answer's first byte; and what a service takes to start.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let base = bench.base(MEM_MIB)?;
    let (delta, _) = bench.raw.sleep(dirty_clone(bench, base, 8)?)?;
    let source = Source { image: base, delta: Some(&delta), wake: true };
    bench.mvm.deploy(&gateway_and_worker()?)?;
    let [worker, demand] = [only(bench, TENANT, "workers")?, only(bench, TENANT, "demand")?];
    let (mut first_byte, mut on_demand, mut service) = (Sides::default(), Sides::default(), Sides::default());
    for (instance, port) in [(&worker, PORT), (&demand, DEMAND_PORT)] {
        bench.mvm.lab.exec(instance, &["/bin/sh", "-c", &fill_memory(8)]);
        // The first sleep writes what later ones do not.
        bench.mvm.act(instance, Act::Sleep)?;
        ask(bench, port)?;
    }
    for _ in bench.rounds(1) {
        settle();
        let raw = bench.raw.on_demand(source)?.ready;
        first_byte.raw.push_time(raw);
        on_demand.raw.push_time(raw);
        for (instance, port, sides) in
            [(&worker, PORT, &mut first_byte), (&demand, DEMAND_PORT, &mut on_demand)]
        {
            bench.mvm.act(instance, Act::Sleep)?;
            std::thread::sleep(SPARE);
            let begun = Instant::now();
            ask(bench, port)?;
            let took = millis(begun.elapsed());
            let start = bench.mvm.info(instance)?.last_start.ok_or("a machine that woke has a last start")?;
            sides.take_if(&start, "wake", port == PORT, took);
        }
    }
    for _ in bench.rounds(3) {
        bench.mvm.act(&worker, Act::Stop)?;
        settle();
        let start = bench.mvm.run(&worker, Act::Start)?;
        service.mvm.push(start.total_ms - start.confirmed_ms);
        settle();
    }
    bench.mvm.destroy(TENANT);
    report.row("message to first byte, the worker asleep", "ms", &first_byte);
    report.row("  the same, of a pool without spares", "ms", &on_demand);
    report.value("first_byte_ratio", first_byte.ratio());
    report.value("first_byte_demand_ratio", on_demand.ratio());
    report.row("service start-up: from confirmed to ready", "ms", &service);
    Ok(())
}

fn ask(bench: &Bench, port: u16) -> Result<()> {
    let answer = bench.mvm.lab.get(port, "/");
    if answer.status == 200 { Ok(()) } else { Err(format!("the worker answered {}", answer.status).into()) }
}

fn gateway_and_worker() -> Result<String> {
    let image = worker::recipe()?.display().to_string();
    let pool = Pool { name: "demand", image: &image, ..Pool::default() };
    let mut text = manifest(TENANT, &[pool, Pool { name: "workers", spares: 1, ..pool }]);
    text += "[[pools]]\nid = \"gateways\"\nrole = \"gateway\"\nvcpus = 1\nmem_mib = 256\nspares = 0\ndesired_running = 1\n";
    for (pool, port, inside) in [("workers", PORT, 8080), ("demand", DEMAND_PORT, 8081)] {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[publish]]\nport = {port}\npool = \"gateways\"\ntarget_port = {inside}\n\
             [[routes]]\nname = \"{pool}\"\nmatch_rule = {{ port = {inside}, path_prefix = \"/\" }}\n\
             target = {{ pool_id = \"{pool}\", instance_selector = \"any\", target_port = 8080 }}\n"
        );
    }
    Ok(text)
}
