//! What of a machine is not a file in it: its clock, entropy, names, network and data disk.
//!
//! Beside a machine's own there is a native form, for a test that runs the guest and its services without a machine, in
//! namespaces: acts on devices are recorded instead, and the clock is one that only this program sees.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use mvm_model::service::ServiceUser;
use mvm_protocol::SecretBytes;
use mvm_protocol::control::{Clock, Identity};
use serde_json::{Value, json};

use super::base::BaseCheck;
use super::{clock, data, identity, network, places};
use crate::console::say;
use crate::error::{Doing as _, Result};
use crate::lock;

/// The file in which acts are recorded, one JSON object a line.
const ACTS: &str = "acts.jsonl";

/// The devices of the machine.
#[derive(Debug)]
pub enum Devices {
    /// A machine's own.
    Machine {
        /// The kernel's random generator.
        generator: identity::Generator,
        /// The network interface, where it was there at boot already.
        interface: Option<String>,
    },
    /// None.
    Native(Recorder),
}

/// Writes down what would have been done.
#[derive(Debug)]
pub struct Recorder {
    acts: Mutex<File>,
    /// By how much the clock is ahead of the system's, in nanoseconds.
    ahead: AtomicI64,
}

impl Recorder {
    fn record(&self, act: &Value) -> Result<()> {
        let line = format!("{act}\n");
        lock(&self.acts).write_all(line.as_bytes()).doing("recording an act")
    }

    /// How far its clock is ahead of the host's, in nanoseconds.
    fn ahead_of(&self, clock: Clock) -> i64 {
        let own = clock::now_nanos().saturating_add_signed(self.ahead.load(Ordering::Relaxed));
        clock::nanos_ahead(own, clock.unix_nanos)
    }

    fn set_clock(&self, act: &str, clock: Clock) -> Result<()> {
        let ahead = clock::nanos_ahead(clock.unix_nanos, clock::now_nanos());
        self.ahead.store(ahead, Ordering::Relaxed);
        self.record(&json!({ "act": act, "unix_nanos": clock.unix_nanos }))
    }
}

impl Devices {
    /// Those of the machine that this program is the init of, with all done that is the same in every machine.
    ///
    /// # Errors
    /// Something is missing without which it could never be personalized.
    pub fn of_machine() -> Result<Self> {
        identity::prepare()?;
        let interface = network::prepare().ok();
        Ok(Self::Machine { generator: identity::Generator::open()?, interface })
    }

    /// None: acts go to a file in this folder. The folders that a machine's init makes are made.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn native(folder: &Path) -> Result<Self> {
        for path in [places::DRIVES, places::LOGS] {
            fs::create_dir_all(path).doing(format_args!("making {path}"))?;
        }
        let program = std::env::current_exe().doing("finding this program")?;
        let _ = fs::remove_file(places::PROGRAM);
        symlink(program, places::PROGRAM).doing(format_args!("linking {}", places::PROGRAM))?;
        let path = folder.join(ACTS);
        let acts = File::options().append(true).create(true).open(&path);
        let acts = acts.doing(format_args!("opening {}", path.display()))?;
        Ok(Self::Native(Recorder { acts: Mutex::new(acts), ahead: AtomicI64::new(0) }))
    }

    /// Has the random generator start anew from the host's seed.
    pub(super) fn credit(&self, seed: &SecretBytes) -> Result<()> {
        match self {
            Self::Machine { generator, .. } => generator.credit(seed),
            Self::Native(native) => native.record(&json!({ "act": "credit", "bytes": seed.expose().len() })),
        }
    }

    /// Sets the clock at once.
    pub(super) fn step_clock(&self, clock: Clock) -> Result<()> {
        match self {
            Self::Machine { .. } => clock::step(clock),
            Self::Native(native) => native.set_clock("step", clock),
        }
    }

    /// Sets the clock, slowly unless it is far behind, and says how far ahead it was, in microseconds.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adjust_clock(&self, clock: Clock) -> Result<i64> {
        let ahead = match self {
            Self::Machine { .. } => clock::nanos_ahead(clock::now_nanos(), clock.unix_nanos),
            Self::Native(native) => native.ahead_of(clock),
        };
        match self {
            _ if clock::is_far_behind(ahead) => self.step_clock(clock)?,
            Self::Machine { .. } => clock::slew(ahead.saturating_neg())?,
            Self::Native(native) => native.set_clock("slew", clock)?,
        }
        Ok(ahead / 1000)
    }

    /// What the clock says, in seconds since 1970.
    pub fn now_seconds(&self) -> u64 {
        let ahead = match self {
            Self::Machine { .. } => 0,
            Self::Native(native) => native.ahead.load(Ordering::Relaxed),
        };
        clock::now_nanos().saturating_add_signed(ahead) / clock::NANOS
    }

    /// Whether the machine may become a base, to be asked after its prewarm; there is nothing to look at where there is none.
    pub(super) fn base_check(&self) -> Result<Option<BaseCheck>> {
        match self {
            Self::Machine { .. } => BaseCheck::begin().map(Some),
            Self::Native(_) => Ok(None),
        }
    }

    /// Takes an identity: names, data disk, addresses.
    pub(super) fn take_identity(
        &self,
        new: &Identity,
        old: Option<&Identity>,
        users: &[ServiceUser],
    ) -> Result<()> {
        let interface = match self {
            Self::Machine { interface, .. } => interface.as_deref(),
            Self::Native(native) => {
                native.record(&json!({ "act": "identity", "identity": new }))?;
                return if new.has_data { data::make_homes(users) } else { Ok(()) };
            }
        };
        identity::apply(new, old)?;
        if new.has_data {
            data::mount(users)?;
        }
        network::apply(interface, new, old)
    }

    /// Brings everything that was written to the disk. May block.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&self) -> Result<()> {
        match self {
            Self::Machine { .. } => data::flush(),
            Self::Native(native) => native.record(&json!({ "act": "flush" })),
        }
    }

    /// Takes the data disk out of use.
    pub(super) async fn release(&self) {
        let released = match self {
            Self::Machine { .. } => data::unmount().await,
            Self::Native(native) => native.record(&json!({ "act": "release" })),
        };
        if let Err(failure) = released {
            say(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_far_behind_is_set_at_once_and_another_slowly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(ACTS);
        let acts = Mutex::new(File::create(&path).unwrap());
        let devices = Devices::Native(Recorder { acts, ahead: AtomicI64::new(0) });
        let adjust = |seconds_ahead: i64| {
            let unix_nanos = clock::now_nanos().saturating_add_signed(seconds_ahead * 1_000_000_000);
            let off = devices.adjust_clock(Clock { unix_nanos }).unwrap();
            let acts = fs::read_to_string(&path).unwrap();
            let last: Value = serde_json::from_str(acts.lines().last().unwrap()).unwrap();
            ((off + off.signum() * 500_000) / 1_000_000, last["act"].as_str().unwrap().to_owned())
        };
        assert_eq!(adjust(162), (-162, "step".to_owned()));
        assert_eq!(adjust(162), (0, "slew".to_owned()));
        assert_eq!(adjust(0), (162, "slew".to_owned()));
    }
}
