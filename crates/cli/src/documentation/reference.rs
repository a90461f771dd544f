//! docs/reference.md: every command with its arguments and flags.

use std::fmt::Write;

use clap::builder::StyledStr;
use clap::{Arg, Command};
use snapbox::{assert_data_eq, file};

use super::leaves;

const HEAD: &str = "\
# Every command

Made from the commands themselves; [cli.md](cli.md) says how they are used. `--data-dir`, `--run-dir` and `--host`, which all
take, are left out here.
";

#[test]
fn the_reference_is_what_the_commands_say() {
    let mut page = HEAD.to_owned();
    for (path, command) in leaves() {
        describe(&mut page, &path, command).unwrap();
    }
    assert_data_eq!(page, file!["../../../../docs/reference.md"].raw());
}

fn describe(page: &mut String, path: &str, mut command: Command) -> std::fmt::Result {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace("\n       ", "\n");
    write!(page, "\n## `{path}`\n\n")?;
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        write!(page, "{}\n\n", text(about))?;
    }
    writeln!(page, "```\n{usage}\n```")?;
    let aliases: Vec<_> = command.get_visible_aliases().map(|alias| format!("`mvm {alias}`")).collect();
    if !aliases.is_empty() {
        writeln!(page, "\nAlso {}.", aliases.join(", "))?;
    }
    let shown = |argument: &&Arg| {
        let id = argument.get_id().as_str();
        !argument.is_hide_set() && !matches!(id, "help" | "data_dir" | "run_dir" | "host")
    };
    let arguments: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if arguments.is_empty() {
        return Ok(());
    }
    page.push_str("\n| argument or flag | default | |\n|---|---|---|\n");
    for argument in arguments {
        let (name, default) = (name_of(argument), default_of(argument));
        writeln!(page, "| {name} | {default} | {} |", meaning(argument))?;
    }
    Ok(())
}

/// `-o`, `--output FORMAT`; `POOL`.
fn name_of(argument: &Arg) -> String {
    let takes = argument.get_num_args().is_some_and(|range| range.takes_values());
    let names =
        argument.get_value_names().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
    let value = names.unwrap_or_default().join(" ");
    if argument.is_positional() {
        return if argument.is_required_set() { format!("`{value}`") } else { format!("`[{value}]`") };
    }
    let short = argument.get_short().map(|short| format!("`-{short}`"));
    let long = argument.get_long().map(|long| {
        let value = if takes { format!(" {value}") } else { String::new() };
        format!("`--{long}{value}`")
    });
    short.into_iter().chain(long).collect::<Vec<_>>().join(", ")
}

fn default_of(argument: &Arg) -> String {
    let takes = argument.get_num_args().is_some_and(|range| range.takes_values());
    let values = argument.get_default_values().iter().filter(|_| takes);
    values.map(|value| format!("`{}`", value.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn meaning(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help()).map(text).unwrap_or_default();
    let takes = argument.get_num_args().is_some_and(|range| range.takes_values());
    let possible = argument.get_possible_values();
    let possible: Vec<_> =
        possible.iter().filter(|_| takes).map(|value| format!("`{}`", value.get_name())).collect();
    let required = if argument.is_required_set() && !argument.is_positional() { " (required)" } else { "" };
    let possible = if possible.is_empty() { String::new() } else { format!(": {}", possible.join(", ")) };
    format!("{}{possible}{required}", help.replace('\n', " ").replace('|', "\\|"))
}

/// What a page's own marks would be is written so that it is none.
fn text(styled: &StyledStr) -> String {
    styled.to_string().trim().replace('<', "\\<")
}
