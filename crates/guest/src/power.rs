//! The end of a machine.

use rustix::system::{RebootCommand, reboot};

use crate::console::say;

/// Writes out what the disks are still owed and switches the machine off.
pub fn off() -> ! {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say(format_args!("powering off: {error}"));
    }
    // Without power management a restart ends the machine as well: the host does not let it boot again.
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
