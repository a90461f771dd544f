//! How a machine came to its end.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the VMM's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited by itself with this status.
    Exited(i32),
    /// A signal of this number ended it.
    Signaled(i32),
    /// It is gone, but only its parent could learn how; this process is not its parent.
    StatusUnknown,
}

/// Why the VMM shut the machine down, as far as its monitor told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shutdown {
    /// The guest powered itself off.
    GuestPoweredOff,
    /// The guest rebooted; a machine is never rebooted, so this ends it. A kernel panic ends so as well.
    GuestReset,
    /// The guest's kernel told of its own panic.
    GuestPanicked,
    /// The host asked for it.
    Asked,
    /// Another reason, in the VMM's word.
    Other(String),
}

impl Shutdown {
    /// From the `reason` of QEMU's event `SHUTDOWN`.
    pub(crate) fn from_reason(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Self::GuestPoweredOff,
            "guest-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanicked,
            "host-qmp-quit" | "host-signal" | "host-ui" | "host-qmp-system-reset" => Self::Asked,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// The end of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How the process ended.
    pub exit: Exit,
    /// What the VMM said before, if it said anything while this process was listening.
    pub shutdown: Option<Shutdown>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => write!(f, "the VMM exited"),
            Self::Exited(code) => write!(f, "the VMM exited with status {code}"),
            Self::Signaled(signal) => write!(f, "the VMM was killed by signal {signal}"),
            Self::StatusUnknown => {
                write!(f, "the VMM is gone; its status is unknown, as the agent was restarted meanwhile")
            }
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shutdown {
            Some(Shutdown::GuestPoweredOff) => write!(f, "the guest powered itself off"),
            Some(Shutdown::GuestReset) => write!(f, "the guest rebooted or its kernel panicked"),
            Some(Shutdown::GuestPanicked) => write!(f, "the guest's kernel panicked"),
            Some(Shutdown::Asked) => write!(f, "the host ended it"),
            Some(Shutdown::Other(reason)) => write!(f, "{} ({reason})", self.exit),
            None => self.exit.fmt(f),
        }
    }
}
