//! Whether guests run on the processor itself or in emulation: a test boot decides.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::error::Result;
use crate::process::boot_id;

/// How a guest's code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// By the processor, through /dev/kvm.
    Kvm,
    /// By QEMU's translator; any host can do that.
    Tcg,
}

/// What a test boot showed. It holds until the host boots again or QEMU changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelProbe {
    /// What to use.
    pub accel: Accel,
    /// Why, in a sentence.
    pub reason: String,
    /// The boot it was tried in.
    pub boot_id: String,
    /// SHA-256 of the QEMU it was tried with.
    pub engine_sha256: String,
}

pub(crate) const KVM: &str = "/dev/kvm";
/// What a kernel says first.
const BANNER: &[u8] = b"Linux version";
/// A kernel on KVM says it within some 100 ms.
const PATIENCE: Duration = Duration::from_secs(5);

impl AccelProbe {
    /// Boots `kernel` on KVM and looks whether it says anything. That /dev/kvm can be opened tells nothing:
    /// there are hosts where it can and no guest runs.
    ///
    /// # Errors
    /// If the host's boot id cannot be read.
    pub async fn run(qemu: &Path, engine_sha256: &str, kernel: &Path) -> Result<Self> {
        let (accel, reason) = match try_kvm(qemu, kernel).await {
            Ok(()) => (Accel::Kvm, "a test boot on KVM succeeded".to_owned()),
            Err(reason) => (Accel::Tcg, format!("emulated: {reason}")),
        };
        Ok(Self { accel, reason, boot_id: boot_id()?, engine_sha256: engine_sha256.to_owned() })
    }

    /// Whether it still holds for this boot and this QEMU.
    pub fn is_current(&self, engine_sha256: &str) -> bool {
        self.engine_sha256 == engine_sha256 && boot_id().is_ok_and(|present| present == self.boot_id)
    }
}

async fn try_kvm(qemu: &Path, kernel: &Path) -> Result<(), String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open(KVM) {
        return Err(format!("{KVM} cannot be opened: {error}"));
    }
    let mut child = Command::new(qemu)
        .args(["-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host", "-m", "128"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("QEMU does not start: {error}"))?;
    let output = child.stdout.take().ok_or("no output to look at")?;
    let found = tokio::time::timeout(PATIENCE, says(output, BANNER)).await;
    // It may have ended by itself.
    let _ = child.kill().await;
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{KVM} is there, but a test boot on it failed")),
        Err(_) => Err(format!("{KVM} is there, but a test boot on it stayed silent")),
    }
}

/// Whether `wanted` comes out before the end.
async fn says(output: impl tokio::io::AsyncRead + Unpin, wanted: &[u8]) -> bool {
    let (mut output, mut seen) = (BufReader::new(output), Vec::new());
    while let Ok(byte) = output.read_u8().await {
        seen.push(byte);
        if seen.ends_with(wanted) {
            return true;
        }
    }
    false
}
