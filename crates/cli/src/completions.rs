//! `mvm completions`: what a shell offers while a command is typed, names of tenants, pools and instances too.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use mvm_protocol::api::{InstanceSummary, PoolSummary, TenantSummary};
use serde::de::DeserializeOwned;

use crate::args::Cli;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output;

/// With this in the environment the shell asks what may come next.
const VARIABLE: &str = "MVM_COMPLETE";
/// Whoever types does not wait longer; without names then.
const PATIENCE: Duration = Duration::from_millis(500);
/// More names than this help nobody.
const MOST: usize = 500;

/// Print what a shell needs to complete commands, names of tenants, pools and instances too
///
/// For this shell only: source <(mvm completions bash). For every one: write it to where the shell looks, as
/// /etc/bash_completion.d/mvm.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Shells that can be helped.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        }
    }
}

impl Completions {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn run(self) -> Result<u8, Failure> {
        let shell = self.shell.name();
        let mut script = Vec::new();
        let writer = Shells::builtins();
        let Some(writer) = writer.completer(shell) else {
            return Err(Failure::NotDone(format!("{shell} cannot be helped")));
        };
        let written = writer.write_registration(VARIABLE, "mvm", "mvm", "mvm", &mut script);
        written.map_err(|error| Failure::io("cannot write the completions", error))?;
        output::write(&script)?;
        Ok(0)
    }
}

/// Answers a shell that asks what may come next, and ends this process; else does nothing.
pub fn answer() {
    CompleteEnv::with_factory(completed).var(VARIABLE).complete();
}

/// The command line with names for what is a tenant, a pool or an instance, wherever it stands.
fn completed() -> clap::Command {
    with_names(Cli::command())
}

fn with_names(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|argument| match names_of(argument.get_id().as_str()) {
        Some(names) => argument.add(ArgValueCompleter::new(names)),
        None => argument,
    });
    command.mut_subcommands(with_names)
}

/// The names that may stand for an argument that is called so.
fn names_of(argument: &str) -> Option<fn(&OsStr) -> Vec<CompletionCandidate>> {
    match argument {
        "tenant" => Some(|typed| beginning(typed, tenants())),
        "pool" => Some(|typed| beginning(typed, pools())),
        "instance" => Some(|typed| beginning(typed, instances())),
        "owner" => Some(|typed| beginning(typed, tenants().into_iter().chain(pools()).collect())),
        _ => None,
    }
}

fn tenants() -> BTreeSet<String> {
    let tenants: Vec<TenantSummary> = asked("/v1/tenants");
    tenants.into_iter().map(|tenant| tenant.id.to_string()).collect()
}

fn pools() -> BTreeSet<String> {
    let pools: Vec<PoolSummary> = asked("/v1/pools");
    pools.into_iter().map(|pool| format!("{}/{}", pool.tenant, pool.id)).collect()
}

/// The addresses of all, and pools that have one only.
fn instances() -> BTreeSet<String> {
    let mut by_pool: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let instances: Vec<InstanceSummary> = asked("/v1/instances");
    for instance in instances {
        let pool = format!("{}/{}", instance.tenant, instance.pool);
        let address = format!("{pool}/{}", instance.id);
        by_pool.entry(pool).or_default().push(address);
    }
    let lone = by_pool.iter().filter(|(_, addresses)| addresses.len() == 1).map(|(pool, _)| pool.clone());
    let lone: Vec<String> = lone.collect();
    by_pool.into_values().flatten().chain(lone).collect()
}

fn beginning(typed: &OsStr, names: BTreeSet<String>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let fit = names.into_iter().filter(|name| name.starts_with(&*typed));
    fit.take(MOST).map(CompletionCandidate::new).collect()
}

/// What the agent answers at once; nothing where none runs, none may be used or it is slow. None is started, nothing said.
fn asked<T: DeserializeOwned + Default>(path: &str) -> T {
    let Some(connection) = connection() else { return T::default() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return T::default();
    };
    let client = connection.client();
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, client.get(path)).await });
    answer.ok().and_then(Result::ok).unwrap_or_default()
}

/// Where the agent is, by the flags that were typed so far and the environment.
fn connection() -> Option<Connection> {
    let typed: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(typed).ok()?;
    Connection::from_arg_matches(&matches).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments that are named otherwise would have no names.
    #[test]
    fn everything_that_is_named_is_completed() {
        let mut left = vec![completed()];
        let mut seen = 0;
        while let Some(command) = left.pop() {
            left.extend(command.get_subcommands().cloned());
            for argument in command.get_arguments() {
                let named = matches!(argument.get_id().as_str(), "tenant" | "pool" | "instance" | "owner");
                let has = argument.get::<ArgValueCompleter>().is_some();
                assert_eq!(named, has, "{} {}", command.get_name(), argument.get_id());
                seen += usize::from(has);
            }
        }
        assert!(seen >= 20, "{seen}");
    }
}
