//! Every command and flag. The nouns' own are in their modules.

use clap::{Parser, Subcommand};

use crate::connection::Connection;
use crate::{
    agent, completions, deploy, doctor, events, instance, man, net, new, node, pool, status, tenant, user,
};

const START_HERE: &str = "\
Start here (as root):
  mvm deploy deployment.toml               make what a manifest describes; again to change it
  mvm instance list                        see its machines
  mvm instance exec alice/workers -- ps    run a program in one
  mvm instance sleep alice/workers         put it to sleep; the next message wakes it
  mvm events alice                         what happened so far
  mvm tenant destroy alice                 remove everything of it

Things are named <tenant>, <tenant>/<pool> or <tenant>/<pool>/<instance>. For an instance the start of
its id will do, and for a pool's only instance the pool.

Exit codes: 0 done, 1 failed, 2 wrong usage. `mvm instance exec` exits as the program does, or with
125 where mvm itself failed.";

/// Runs fleets of microVMs for many tenants.
///
/// A machine with nothing to do sleeps as a snapshot on disk and wakes in milliseconds when a message comes.
#[derive(Debug, Parser)]
#[command(
    name = "mvm",
    version,
    after_help = START_HERE,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Where the agent and its data are.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do. What has no words here has them in its module.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(subcommand)]
    New(new::New),
    Deploy(deploy::Deploy),
    /// Tenants: what separates machines, networks, secrets and limits
    #[command(subcommand)]
    Tenant(tenant::Tenant),
    /// Pools: groups of like machines of a tenant
    #[command(subcommand)]
    Pool(pool::Pool),
    /// Users: the people that tenants serve
    #[command(subcommand)]
    User(user::User),
    /// Instances: single machines
    #[command(subcommand)]
    Instance(instance::Instance),
    /// The agent: the process that runs everything
    #[command(subcommand)]
    Agent(agent::Agent),
    /// The node: this host, and what machines take of it
    #[command(subcommand)]
    Node(node::Node),
    /// Networks of the tenants
    #[command(subcommand)]
    Net(net::Net),
    #[command(visible_alias = "connect")]
    Status(status::Status),
    Events(events::Events),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(man::Man),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn commands_and_flags_do_not_contradict_one_another() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documentation_names_every_command_and_flag() {
        let page = include_str!("../../../docs/cli.md");
        let mut left = vec![(String::new(), Cli::command())];
        let mut leaves = 0;
        while let Some((path, command)) = left.pop() {
            let path = format!("{path}{} ", command.get_name());
            for flag in
                command.get_arguments().filter(|flag| !flag.is_hide_set()).filter_map(|flag| flag.get_long())
            {
                assert!(page.contains(&format!("--{flag}")), "{path}--{flag}");
            }
            if command.has_subcommands() {
                left.extend(command.get_subcommands().map(|below| (path.clone(), below.clone())));
            } else {
                assert!(page.contains(&format!("`{}", path.trim_end())), "{path}");
                leaves += 1;
            }
        }
        assert_eq!(leaves, 52);
    }
}
