//! What an agent with these folders would find: the host's requirements, and its own files. Needs no agent, and makes nothing.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use mvm_host::HostConfig;
use mvm_model::Requirement;
use rustix::fs::{ioctl_ficlone, statfs};
use rustix::process::{Resource, getrlimit};

use crate::agent::Config;
use crate::store::{self, Age};
use crate::usage;

const GROUP: &str = "group mvm";
const DATA: &str = "data folder";
const RUN: &str = "run folder";
const MEMORY: &str = "memory";
const FILES: &str = "open files";
const STORE: &str = "store";
const KEY: &str = "node.key";

const GIB: u64 = 1 << 30;
/// An image, the packages it is built from and its base take about this much.
const LEAST_DISK: u64 = GIB;
/// Room for some machines' disks and snapshots.
const GOOD_DISK: u64 = 5 * GIB;
/// A small machine, and what the host keeps free.
const GOOD_MEMORY: u64 = GIB / 2;
/// Each machine takes some ten descriptors, each connection two.
const GOOD_FILES: u64 = 65_536;

/// Everything that is required of this host, and of what an earlier agent left in these folders.
pub async fn examine(config: &Config) -> Vec<Requirement> {
    let host = HostConfig { data_dir: config.data_dir.clone(), run_dir: config.run_dir.clone() };
    let mut found = vec![group()];
    found.extend(mvm_host::requirements(&host).await);
    found.extend([data_folder(&config.data_dir), run_folder(&config.run_dir), memory(), open_files()]);
    let (store, key) = (config.data_dir.join("mvm.db"), config.data_dir.join("node.key"));
    found.extend([the_store(&store), node_key(&key, &store)]);
    found
}

/// Whose members may use the agent.
fn group() -> Requirement {
    match mvm_host::group_id("mvm") {
        Some(id) => Requirement::ok(GROUP, format!("gid {id}: its members may use the agent")),
        None => Requirement::warning(GROUP, "there is none, so that only root can use the agent", "make it")
            .by_command(&["groupadd", "--system", "mvm"]),
    }
}

/// Its file system: what is free, and whether files can share blocks there.
fn data_folder(folder: &Path) -> Requirement {
    // Made with the first start, in the first of these that is there.
    let Some(there) = folder.ancestors().find(|above| above.is_dir()) else {
        return Requirement::unknown(
            DATA,
            format!("{} is not there, nor what it would be in", folder.display()),
        );
    };
    let name = folder.display();
    let (free, kind) = match usage::folder(there).map_err(|error| error.to_string()).and_then(|space| {
        let kind = statfs(there).map_err(|error| format!("cannot look at {name}: {error}"))?;
        Ok((space.free_bytes, file_system(kind.f_type)))
    }) {
        Ok(found) => found,
        Err(why) => return Requirement::unknown(DATA, why),
    };
    let made = if there == folder { "" } else { ", made with the agent's first start" };
    let copies = match shares_blocks(there) {
        Ok(true) => ", files share blocks",
        Ok(false) => ", files are copied in full (btrfs and xfs share blocks)",
        Err(_) => "",
    };
    let found = format!("{name}{made}: {} MiB free on {kind}{copies}", free >> 20);
    let larger = "make room there, or choose a folder on a larger disk by --data-dir or MVM_DATA_DIR";
    match free {
        ..LEAST_DISK => Requirement::missing(DATA, format!("{found}; an image takes about 1 GiB"), larger),
        _ if kind == "tmpfs" => {
            let lost = format!("{found}: that is memory, and a reboot loses all of it");
            Requirement::warning(DATA, lost, "choose a folder on a disk by --data-dir or MVM_DATA_DIR")
        }
        LEAST_DISK..GOOD_DISK => {
            Requirement::warning(DATA, format!("{found}; machines' disks and snapshots need more"), larger)
        }
        _ => Requirement::ok(DATA, found),
    }
}

/// What linux/magic.h calls them.
fn file_system(magic: rustix::fs::FsWord) -> String {
    let known = match u64::try_from(magic).unwrap_or_default() {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0x6969 => "nfs",
        other => return format!("a file system of type {other:#x}"),
    };
    known.to_owned()
}

/// Whether a copy takes no blocks of its own there. Tried with files that have no name.
fn shares_blocks(folder: &Path) -> io::Result<bool> {
    let (mut from, to) = (tempfile::tempfile_in(folder)?, tempfile::tempfile_in(folder)?);
    io::Write::write_all(&mut from, &[1; 4096])?;
    Ok(ioctl_ficlone(&to, &from).is_ok())
}

fn run_folder(folder: &Path) -> Requirement {
    let name = folder.display();
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => Requirement::ok(RUN, name),
        Ok(_) => Requirement::missing(
            RUN,
            format!("{name} is a file"),
            "choose another by --run-dir or MVM_RUN_DIR",
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Requirement::ok(RUN, format!("{name}, made with the agent's first start"))
        }
        Err(error) => Requirement::unknown(RUN, format!("{name}: {error}")),
    }
}

fn memory() -> Requirement {
    let memory = match usage::memory() {
        Ok(memory) => memory,
        Err(error) => return Requirement::unknown(MEMORY, error),
    };
    let found = format!("{} of {} MiB available", memory.available_mib(), memory.total_mib());
    if memory.available >= GOOD_MEMORY {
        return Requirement::ok(MEMORY, found);
    }
    let found = format!("{found}: that is little for machines");
    Requirement::warning(MEMORY, found, "end other programs, or put machines to sleep: `mvm instance sleep`")
}

fn open_files() -> Requirement {
    // The agent raises its own limit to this.
    let most = getrlimit(Resource::Nofile).maximum;
    match most {
        Some(most) if most < GOOD_FILES => Requirement::warning(
            FILES,
            format!("a process may open {most} at most; many machines need more"),
            format!(
                "raise the limit where the agent is started: `LimitNOFILE={GOOD_FILES}` in its unit, or \
                 `ulimit -Hn {GOOD_FILES}`"
            ),
        ),
        most => {
            let most = most.map_or_else(|| "any number".to_owned(), |most| most.to_string());
            Requirement::ok(FILES, format!("a process may open {most}"))
        }
    }
}

fn the_store(path: &Path) -> Requirement {
    let name = path.display();
    match path.try_exists() {
        Ok(false) => return Requirement::ok(STORE, format!("{name} is not there yet")),
        Err(error) => return Requirement::unknown(STORE, format!("{name}: {error}")),
        Ok(true) => {}
    }
    match store::age(path) {
        Ok(Age::Same) => Requirement::ok(STORE, format!("{name} is of this version")),
        Ok(Age::Older) => {
            Requirement::ok(STORE, format!("{name} is of an earlier version; the next agent converts it"))
        }
        Ok(Age::Newer) => Requirement::missing(
            STORE,
            format!("{name} is of a newer mvm than this one ({})", env!("CARGO_PKG_VERSION")),
            "install the newer mvm again, or restore a copy of the data folder from before it",
        ),
        Err(_) if !rustix::process::geteuid().is_root() => {
            Requirement::unknown(STORE, format!("{name}: only root can read it"))
        }
        Err(error) => Requirement::missing(STORE, error, "restore a copy of the data folder"),
    }
}

/// Whoever has it can read every secret in the store; without it nobody can.
fn node_key(path: &Path, store: &Path) -> Requirement {
    let name = path.display().to_string();
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Requirement::unknown(KEY, format!("{name}: {error}"));
        }
        Err(_) if !store.exists() => return Requirement::ok(KEY, format!("{name} is not there yet")),
        Err(_) => {
            return Requirement::missing(
                KEY,
                format!("{name} is not there, but a store is: its secrets cannot be read"),
                "restore the file from a copy of the data folder; with a new one, tenants with secrets have to be destroyed",
            );
        }
    };
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 || found.uid() != 0 {
        let found = format!("{name} has mode {mode:04o} and owner {}: it is to be root's alone", found.uid());
        return Requirement::missing(
            KEY,
            found,
            "make it so; whoever could read it may have read every secret",
        )
        .by_command(&["chown", "root:root", &name])
        .by_command(&["chmod", "0600", &name]);
    }
    Requirement::ok(KEY, format!("{name} is root's alone"))
}

#[cfg(test)]
mod tests {
    use mvm_model::requirement::Status;

    use super::*;

    #[test]
    fn a_key_that_others_may_read_or_that_is_lost_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (key, store) = (folder.path().join("node.key"), folder.path().join("mvm.db"));
        let look = || node_key(&key, &store);
        assert_eq!(look().status, Status::Ok, "nothing was made yet");
        std::fs::write(&store, "").unwrap();
        assert!(look().is_missing() && look().commands.is_empty(), "it cannot be made again");
        std::fs::write(&key, [7; 32]).unwrap();
        for (mode, missing) in [(0o644, true), (0o660, true), (0o600, false), (0o400, false)] {
            std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(look().is_missing(), missing, "{mode:o}");
        }
    }

    #[test]
    fn a_store_is_older_newer_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mvm.db");
        assert_eq!(the_store(&path).status, Status::Ok);
        drop(store::Store::open(&path).unwrap());
        assert!(the_store(&path).found.ends_with("is of this version"));
        let connection = rusqlite::Connection::open(&path).unwrap();
        for (version, status) in [(1, Status::Ok), (99, Status::Missing)] {
            connection.pragma_update(None, "user_version", version).unwrap();
            assert_eq!(the_store(&path).status, status, "{version}");
        }
        drop(connection);
        std::fs::write(
            &path,
            "no database at all, but long enough to have a header of one hundred bytes if it were one",
        )
        .unwrap();
        assert!(the_store(&path).is_missing());
    }
}
