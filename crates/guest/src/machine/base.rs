//! What a base has none of (rule S1), as every machine that is cloned from it would share it: a link that is up, sockets to
//! somewhere else, a data disk that was looked at, an id.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{major, minor};

use super::{identity, network, places};
use crate::error::{Doing as _, Failure, Result};

const BLOCK_DEVICES: &str = "/sys/class/block";
const UNIX_SOCKETS: &str = "/proc/net/unix";

/// Looks at a machine that may become a base, before and after its prewarm.
#[derive(Debug)]
pub(super) struct BaseCheck {
    /// The data disk's numbers, as /proc/self/mountinfo writes them.
    disk: String,
    /// What had been read from it and written to it before.
    disk_use: String,
}

/// A process that the prewarm left.
struct Process {
    id: u32,
    name: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.id, self.name)
    }
}

impl BaseCheck {
    /// How the machine is before.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn begin() -> Result<Self> {
        Ok(Self { disk: of_disk("dev")?, disk_use: of_disk("stat")? })
    }

    /// Whether it may become a base.
    ///
    /// # Errors
    /// Everything that stands against it.
    pub(super) fn end(self) -> Result<()> {
        let mut found = Vec::new();
        found.extend(network::up()?.into_iter().map(|name| format!("the network interface {name} is up")));
        self.look_at_disk(&mut found)?;
        self.look_at_processes(&mut found)?;
        if identity::has_machine_id()? {
            found.push("/etc/machine-id is not empty".to_owned());
        }
        if found.is_empty() {
            return Ok(());
        }
        let reason = format!("{}: every machine that begins from it would have the same", found.join("; "));
        Err(Failure::new("leaving the machine as a base has to be", reason))
    }

    /// One that is mounted in a namespace of a process's own was read for that.
    fn look_at_disk(&self, found: &mut Vec<String>) -> Result<()> {
        let disk = places::DATA_DEVICE;
        if self.is_mounted_in("/proc/self/mountinfo") {
            found.push(format!("the data disk {disk} is mounted"));
        } else if of_disk("stat")? != self.disk_use {
            found.push(format!("the data disk {disk} was read or written"));
        }
        Ok(())
    }

    fn look_at_processes(&self, found: &mut Vec<String>) -> Result<()> {
        let table = fs::read_to_string(UNIX_SOCKETS).doing(format_args!("reading {UNIX_SOCKETS}"))?;
        let local = unix_sockets(&table);
        for process in other_processes()? {
            let sockets = self.look_at_files(&process, &local, found);
            match sockets {
                0 => {}
                1 => {
                    found.push(format!("{process} has a network socket open (open it on the reseed signal)"))
                }
                count => found.push(format!(
                    "{process} has {count} network sockets open (open them on the reseed signal)"
                )),
            }
        }
        Ok(())
    }

    /// How many of a process's open files are sockets, but for local ones.
    fn look_at_files(&self, process: &Process, local: &HashSet<&str>, found: &mut Vec<String>) -> usize {
        // One that ends meanwhile has none.
        let open = fs::read_dir(format!("/proc/{}/fd", process.id)).into_iter().flatten().flatten();
        let mut sockets = 0;
        for file in open.map(|entry| entry.path()) {
            let target = fs::read_link(&file).unwrap_or_default();
            match target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')) {
                Some(inode) => sockets += usize::from(!local.contains(inode)),
                None if self.is_disk(&file) => {
                    found.push(format!("{process} has the data disk {} open", places::DATA_DEVICE));
                }
                None => {}
            }
        }
        sockets
    }

    fn is_disk(&self, file: &Path) -> bool {
        fs::metadata(file).is_ok_and(|found| {
            let device = found.rdev();
            found.file_type().is_block_device() && format!("{}:{}", major(device), minor(device)) == self.disk
        })
    }

    fn is_mounted_in(&self, mounts: &str) -> bool {
        let table = fs::read_to_string(mounts).unwrap_or_default();
        table.lines().any(|line| line.split_ascii_whitespace().nth(2) == Some(&self.disk))
    }
}

/// What the kernel says of the data disk.
fn of_disk(what: &str) -> Result<String> {
    let name = Path::new(places::DATA_DEVICE).file_name().unwrap_or_default();
    let path = Path::new(BLOCK_DEVICES).join(name).join(what);
    let text = fs::read_to_string(&path).doing(format_args!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// All but this one.
fn other_processes() -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").doing("listing processes")?;
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = ids.filter(|id| *id != std::process::id());
    let named = others.map(|id| match fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => Some(Process { id, name: name.trim_end().to_owned() }),
        Err(_) => None,
    });
    Ok(named.flatten().collect())
}

/// The inodes of the sockets in /proc/net/unix.
fn unix_sockets(table: &str) -> HashSet<&str> {
    table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(6)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_sockets_are_known_by_their_inodes() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17501 /run/mvm/host.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 17502\n";
        assert_eq!(unix_sockets(table), HashSet::from(["17501", "17502"]));
        assert!(unix_sockets("").is_empty());
    }
}
