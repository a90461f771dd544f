//! `mvm-guest`: what runs inside every machine. As `/init` it is process 1: it makes the root file system, talks to
//! the host over the control channel, and supervises the services; `mvm-guest gateway` is one of these.

mod agent;
mod console;
mod error;
mod gateway;
mod init;
mod machine;
mod openclaw;
mod power;
mod services;
mod sys;

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// musl's gives every larger piece back to the kernel at once. After a wake in emulation, where whatever runs must be
/// translated first, a session's few mappings cost a tenth of the time until it is answered.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        _ if std::process::id() == 1 => init::run(),
        Some("gateway") => run_gateway(),
        Some("--version") => {
            println!("mvm-guest {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: mvm-guest gateway | --version; as process 1 of a machine it is the init");
            ExitCode::from(2)
        }
    }
}

fn run_gateway() -> ExitCode {
    match gateway::Config::from_variables(|name| std::env::var(name).ok()).and_then(gateway::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Locks a mutex. Nothing here leaves a value half changed, so a thread that failed while holding it does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
