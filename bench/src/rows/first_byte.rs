//! A message through a gateway to a machine that sleeps.

use std::time::Instant;

use mvm_protocol::api::Act;

use super::speed::{dirty_clone, only};
use super::{Bench, MEM_MIB, Pool, manifest, settle, worker};
use crate::Result;
use crate::raw::Source;
use crate::report::{Report, Sides};

const TENANT: &str = "first-byte";
const PORT: u16 = 18080;

/// From the connection to the published port to the answer's first byte; and what a service takes to start.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let base = bench.base(MEM_MIB)?;
    let (delta, _) = bench.raw.sleep(dirty_clone(bench, base, 8)?)?;
    let source = Source { image: base, delta: Some(&delta), wake: true };
    bench.mvm.deploy(&gateway_and_worker()?)?;
    let worker = only(bench, TENANT, "workers")?;
    let (mut first_byte, mut service) = (Sides::default(), Sides::default());
    ask(bench)?;
    for _ in bench.rounds(1) {
        settle();
        first_byte.raw.push_time(bench.raw.on_demand(source)?.ready);
        bench.mvm.act(&worker, Act::Sleep)?;
        settle();
        let begun = Instant::now();
        ask(bench)?;
        first_byte.mvm.push_time(begun.elapsed());
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
    report.value("first_byte_ratio", first_byte.ratio());
    report.row("service start-up: from confirmed to ready", "ms", &service);
    Ok(())
}

fn ask(bench: &Bench) -> Result<()> {
    let answer = bench.mvm.lab.get(PORT, "/");
    if answer.status == 200 { Ok(()) } else { Err(format!("the worker answered {}", answer.status).into()) }
}

fn gateway_and_worker() -> Result<String> {
    let image = worker::recipe()?.display().to_string();
    let workers = manifest(TENANT, &[Pool { name: "workers", image: &image, ..Pool::default() }]);
    Ok(format!(
        "{workers}\n\
         [[pools]]\nid = \"gateways\"\nrole = \"gateway\"\nvcpus = 1\nmem_mib = 256\nspares = 0\ndesired_running = 1\n\
         [[publish]]\nport = {PORT}\npool = \"gateways\"\ntarget_port = 8080\n\
         [[routes]]\nname = \"all\"\nmatch_rule = {{ port = 8080, path_prefix = \"/\" }}\n\
         target = {{ pool_id = \"workers\", instance_selector = \"any\", target_port = 8080 }}\n"
    ))
}
