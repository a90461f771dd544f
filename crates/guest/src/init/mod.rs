//! Process 1: from an empty RAM disk to a root file system; then the agent.

mod mounts;

use std::ffi::CStr;
use std::fs::{self, File};
use std::path::Path;

use crate::console::say;
use crate::error::{Doing as _, Result};
use crate::{agent, power};

/// The modules' paths, one a line, each after what it depends on.
const MODULE_LIST: &str = "/modules.load";

/// Runs the machine until it is powered off.
pub fn run() -> ! {
    if let Err(failure) = start() {
        say(format_args!("cannot start: {failure}"));
        power::off();
    }
    if let Err(failure) = agent::run(None) {
        say(format_args!("the agent ended: {failure}"));
    }
    power::off();
}

fn start() -> Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    mounts::mount_kernel_file_systems()?;
    attach_console();
    load_modules()?;
    mounts::switch_root()?;
    mounts::mount_memory_file_systems()?;
    mounts::publish_own_program();
    crate::sys::Interface::new("lo").and_then(|lo| lo.set_up(true)).doing("taking lo up")
}

/// The standard streams become the console; whatever the kernel gave may not be open at all.
fn attach_console() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    let attached = rustix::stdio::dup2_stdin(&console)
        .and_then(|()| rustix::stdio::dup2_stdout(&console))
        .and_then(|()| rustix::stdio::dup2_stderr(&console));
    if let Err(error) = attached {
        say(format_args!("attaching the console: {error}"));
    }
}

fn load_modules() -> Result<()> {
    let list = fs::read_to_string(MODULE_LIST).doing(format_args!("reading {MODULE_LIST}"))?;
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(failure) = load_module(path) {
            // What cannot go on without it will say so.
            say(failure);
        }
        // Loaded or not, the file only takes memory from here on.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn load_module(path: &str) -> Result<()> {
    const NO_PARAMETERS: &CStr = c"";
    let file = File::open(Path::new(path)).doing(format_args!("opening module {path}"))?;
    match rustix::system::finit_module(&file, NO_PARAMETERS, 0) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        loaded => loaded.doing(format_args!("loading module {path}")),
    }
}
