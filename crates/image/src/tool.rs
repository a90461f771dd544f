//! Runs the few tools of the distribution that the work here needs.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

/// Runs `tool` with `arguments`, waits for it, and fails unless it exits 0. It gets no standard
/// input and an environment of nothing but PATH and the C locale, so that what it makes depends on
/// its arguments only. `package` is what to install where it is missing.
pub(crate) fn run<S: AsRef<OsStr>>(
    tool: &str,
    package: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<()> {
    let mut command = Command::new(tool);
    command.args(arguments);
    run_command(command, package)
}

/// As [`run`], for a command that was prepared; its environment is replaced.
pub(crate) fn run_command(command: Command, package: &str) -> Result<()> {
    output_of(command, package).map(drop)
}

/// As [`run_command`]; what it wrote.
pub(crate) fn output_of(mut command: Command, package: &str) -> Result<Output> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let failed = |reason: String| Error::Tool { tool: tool.clone(), reason };
    let own: Vec<_> =
        command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
    let output = command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .envs(own)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(format!("could not be run ({e}): install the package {package}")))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("ended with {}: {}", output.status, said.trim())))
}
