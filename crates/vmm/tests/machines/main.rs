//! Machines with a real QEMU and a real guest. As root.
//!
//! The test binary is also the launcher of its machines, so it has a `main` of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clones;
mod confinement;
mod life;
mod sleep;
#[path = "../support/mod.rs"]
mod support;

use std::future::Future;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == mvm_vmm::LAUNCH_ARGUMENT) {
        return mvm_vmm::launcher_main();
    }
    if let [_, first, spec] = std::env::args().collect::<Vec<_>>().as_slice()
        && first == life::SHORT_LIVED_AGENT
    {
        return life::short_lived_agent(spec);
    }
    let mut arguments = Arguments::from_args();
    // Each has a machine or two; more of them than processors would only slow one another down.
    arguments.test_threads.get_or_insert_with(|| std::thread::available_parallelism().map_or(1, usize::from));
    let trials = [life::tests(), sleep::tests(), clones::tests(), confinement::tests()]
        .into_iter()
        .flatten()
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test by its name.
pub fn test<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(body());
        Ok(())
    })
}
