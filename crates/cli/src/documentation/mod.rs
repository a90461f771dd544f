//! Pages of docs/ that are made from the commands themselves, and compared with them here. After a change:
//! `SNAPSHOTS=overwrite cargo test -p mvm-cli documentation`

mod json;
mod reference;

use clap::{Command, CommandFactory};

use crate::args::Cli;

/// Every command that does something, with its whole name: `mvm pool list`.
fn leaves() -> Vec<(String, Command)> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut leaves = Vec::new();
    collect(&root, root.get_name().to_owned(), &mut leaves);
    leaves
}

fn collect(command: &Command, path: String, leaves: &mut Vec<(String, Command)>) {
    if !command.has_subcommands() {
        leaves.push((path, command.clone()));
        return;
    }
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, format!("{path} {}", below.get_name()), leaves);
    }
}
