//! `mvm`: runs fleets of microVMs for many tenants. The command line client and the agent in one binary.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | every command and flag |
//! | [`address`] | how people name tenants, pools and instances |
//! | [`connection`], [`background`] | where the agent is; starting one where none runs |
//! | [`client`], [`lines`] | HTTP over its socket |
//! | [`output`], [`view`], [`clock`] | tables, JSON, YAML |
//! | [`failure`] | why a command was not done, and the exit code that says so |
//! | [`interrupt`] | signals that end a command |
//! | [`serve`] | the agent in this process |
//! | `new`, `deploy`, `tenant`, `pool`, `user`, `instance`, `agent`, `node`, `net`, `events`, `doctor`, `status` | one noun or verb each |
//! | `scale`, `stats`, `exec`, `copy`, `backup`, `logs`, `forward`, `watch` | verbs of theirs that are longer |
//! | `screen` | a page that stays on a terminal |
//! | `completions`, `man` | what shells and manuals know of all commands |
//! | [`change`], [`sources`], [`outcome`] | what is wanted, as flags and files say it, and what came of it |
//! | [`check`] | whether services outside take a secret |
//! | [`loss`], [`confirm`] | what destroying takes away, and asking before |

mod address;
mod agent;
mod args;
mod background;
mod backup;
mod change;
mod check;
mod client;
mod clock;
mod completions;
mod confirm;
mod connection;
mod copy;
mod deploy;
mod doctor;
#[cfg(test)]
mod documentation;
mod events;
mod exec;
mod failure;
mod forward;
mod instance;
mod interrupt;
mod lines;
mod logs;
mod loss;
mod man;
mod net;
mod new;
mod node;
mod outcome;
mod output;
mod pool;
mod progress;
mod scale;
mod screen;
mod secrets;
mod serve;
mod sources;
mod stats;
mod status;
mod tenant;
mod terminal;
mod user;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == mvm_vmm::LAUNCH_ARGUMENT) {
        // The first steps of a VMM's process, which this binary takes before it becomes the VMM.
        return mvm_vmm::launcher_main();
    }
    completions::answer();
    let cli = Cli::parse();
    match in_runtime(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs a command to its end; its exit code.
fn in_runtime(cli: Cli) -> Result<u8, Failure> {
    let many_threads = matches!(&cli.command, Command::Agent(agent) if agent.serves());
    let runtime = if many_threads {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let runtime = runtime.map_err(|source| Failure::io("cannot start the runtime", source))?;
    let result = runtime.block_on(run(cli));
    // A read of standard input may still be under way, and nothing ends it but the process's end.
    runtime.shutdown_background();
    result
}

async fn run(cli: Cli) -> Result<u8, Failure> {
    let connection = &cli.connection;
    match cli.command {
        Command::New(new) => new.run(connection).await,
        Command::Deploy(deploy) => deploy.run(connection).await,
        Command::Tenant(tenant) => tenant.run(connection).await,
        Command::Pool(pool) => pool.run(connection).await,
        Command::User(user) => user.run(connection).await,
        Command::Instance(instance) => instance.run(connection).await,
        Command::Agent(agent) => agent.run(connection).await,
        Command::Node(node) => node.run(connection).await,
        Command::Net(net) => net.run(connection).await,
        Command::Status(status) => status.run(connection).await,
        Command::Events(events) => events.run(connection).await,
        Command::Doctor(doctor) => doctor.run(connection).await,
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    }
}
