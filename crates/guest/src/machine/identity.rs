//! What makes this machine this one: entropy, names and ids.

use std::fs::{self, File};
use std::io::Write as _;

use mvm_protocol::SecretBytes;
use mvm_protocol::control::Identity;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::error::{Doing as _, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT_ID: &str = "/run/mvm/boot_id";

/// Makes ready what has nothing of a machine in it yet: a base has it done, and its clones do not have to.
///
/// # Errors
/// The boot id would not be replaced.
pub(super) fn prepare() -> Result<()> {
    cover_boot_id().doing("covering the boot id")?;
    for path in FILES {
        // Brings it up from the read-only root. Where that fails, so will writing it, and that is told.
        let _ = File::options().append(true).create(true).open(path);
    }
    Ok(())
}

/// The kernel makes its boot id when it is first read, which may have been before this machine was cloned, and keeps it.
fn cover_boot_id() -> std::io::Result<()> {
    fs::write(OWN_BOOT_ID, fs::read(BOOT_ID)?)?;
    mount_bind(OWN_BOOT_ID, BOOT_ID)?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount(BOOT_ID, read_only, c"")?)
}

/// The kernel's random generator. Kept open: a wake looks up no path.
#[derive(Debug)]
pub struct Generator(File);

impl Generator {
    pub(super) fn open() -> Result<Self> {
        File::options().write(true).open("/dev/random").map(Self).doing("opening /dev/random")
    }

    /// Has it start anew from the host's seed.
    pub(super) fn credit(&self, seed: &SecretBytes) -> Result<()> {
        crate::sys::credit_entropy(&self.0, seed.expose()).doing("crediting the seed")
    }
}

/// Gives the machine its names. Most of it is done once: a machine does not become another.
pub(super) fn apply(new: &Identity, old: Option<&Identity>) -> Result<()> {
    if old.is_none() {
        replace_boot_id()?;
    }
    if old.is_some_and(|old| old.hostname == new.hostname && old.ip == new.ip && old.gateway == new.gateway) {
        return Ok(());
    }
    rustix::system::sethostname(new.hostname.as_bytes()).doing("setting the host name")?;
    for (path, text) in FILES.iter().zip(texts(new)) {
        fs::write(path, text).doing(format_args!("writing {path}"))?;
    }
    Ok(())
}

/// The files that say who the machine is.
const FILES: [&str; 4] = ["/etc/hostname", "/etc/machine-id", "/etc/hosts", "/etc/resolv.conf"];

/// Whether the machine has an id already.
///
/// # Errors
/// It cannot be read.
pub(super) fn has_machine_id() -> Result<bool> {
    let [_, path, ..] = FILES;
    let text = fs::read(path).doing(format_args!("reading {path}"))?;
    Ok(!text.trim_ascii().is_empty())
}

/// What they say.
fn texts(identity: &Identity) -> [String; 4] {
    let Identity { hostname, machine_id, ip, gateway, .. } = identity;
    [
        format!("{hostname}\n"),
        format!("{machine_id}\n"),
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{ip}\t{hostname}\n"),
        format!("nameserver {gateway}\n"),
    ]
}

/// Written over the one that is seen, in one go: it is as long, and never half there.
fn replace_boot_id() -> Result<()> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).doing("making a boot id")?;
    let mut file = File::options().write(true).open(OWN_BOOT_ID).doing("opening the boot id")?;
    file.write_all(uuid(bytes).as_bytes()).doing("replacing the boot id")
}

/// A random UUID (version 4) and a newline, as the kernel writes it.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(37);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_looks_like_the_kernels() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff\n");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000\n");
    }
}
