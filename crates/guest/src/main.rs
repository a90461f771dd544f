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

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// musl's gives every larger piece back to the kernel at once. After a wake in emulation, where whatever runs must be
/// translated first, a session's few mappings cost a tenth of the time until it is answered.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // Only where there is no process but its own, and so, as it is meant to be, no file system that others use.
        ["agent", "--native", folder] if std::process::id() == 1 => run_native_agent(Path::new(folder)),
        _ if std::process::id() == 1 => init::run(),
        ["gateway", ..] => run_gateway(),
        ["--version", ..] => {
            println!("mvm-guest {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "usage: mvm-guest gateway | --version; as process 1 of a machine it is the init, and as process 1 of \
                 namespaces of its own, with `agent --native FOLDER`, a machine's agent without the machine"
            );
            ExitCode::from(2)
        }
    }
}

fn run_gateway() -> ExitCode {
    exit_code(gateway::Config::from_variables(|name| std::env::var(name).ok()).and_then(gateway::run))
}

fn run_native_agent(folder: &Path) -> ExitCode {
    exit_code(agent::run(Some(folder)))
}

fn exit_code<E: std::fmt::Display>(ended: Result<(), E>) -> ExitCode {
    match ended {
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
