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

    fn set_clock(&self, clock: Clock) -> i64 {
        let ahead = clock::nanos_ahead(clock.unix_nanos, clock::now_nanos());
        self.ahead.swap(ahead, Ordering::Relaxed).saturating_sub(ahead)
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
            Self::Native(native) => {
                native.set_clock(clock);
                native.record(&json!({ "act": "step", "unix_nanos": clock.unix_nanos }))
            }
        }
    }

    /// Sets the clock slowly, and says how far ahead it was, in microseconds.
    ///
    /// # Errors
    /// The kernel's.
    pub fn slew_clock(&self, clock: Clock) -> Result<i64> {
        match self {
            Self::Machine { .. } => clock::slew(clock),
            Self::Native(native) => {
                let micros = native.set_clock(clock) / 1000;
                native.record(&json!({ "act": "slew", "unix_nanos": clock.unix_nanos }))?;
                Ok(micros)
            }
        }
    }

    /// What the clock says, in seconds since 1970.
    pub fn now_seconds(&self) -> u64 {
        let ahead = match self {
            Self::Machine { .. } => 0,
            Self::Native(native) => native.ahead.load(Ordering::Relaxed),
        };
        clock::now_nanos().saturating_add_signed(ahead) / clock::NANOS
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
