//! What makes this machine this one: entropy, names and ids.

use std::fs::{self, File};

use mvm_protocol::SecretBytes;
use mvm_protocol::control::Identity;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::error::{Doing as _, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT_ID: &str = "/run/mvm/boot_id";

/// Starts the kernel's random generator anew from the host's seed.
pub(super) fn credit_seed(seed: &SecretBytes) -> Result<()> {
    let random = File::options().write(true).open("/dev/random").doing("opening /dev/random")?;
    crate::sys::credit_entropy(&random, seed.expose()).doing("crediting the seed")
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
    for (path, text) in files(new) {
        fs::write(path, text).doing(format_args!("writing {path}"))?;
    }
    Ok(())
}

/// The files that say who the machine is.
fn files(identity: &Identity) -> [(&'static str, String); 4] {
    let Identity { hostname, machine_id, ip, gateway, .. } = identity;
    [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/machine-id", format!("{machine_id}\n")),
        ("/etc/hosts", format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{ip}\t{hostname}\n")),
        ("/etc/resolv.conf", format!("nameserver {gateway}\n")),
    ]
}

/// The kernel makes its boot id when it is first read, which may have been before this machine was cloned.
fn replace_boot_id() -> Result<()> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).doing("making a boot id")?;
    fs::write(OWN_BOOT_ID, uuid(bytes)).doing("writing a boot id")?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_bind(OWN_BOOT_ID, BOOT_ID)
        .and_then(|()| mount_remount(BOOT_ID, read_only, c""))
        .doing("replacing the boot id")
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
