//! Network namespaces. One belongs to a thread, so whatever is done in one is done on a thread made for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::{Error, Result};

/// Where `ip netns` keeps namespaces that have a name.
const NAMED: &str = "/run/netns";
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    name: String,
}

impl Namespace {
    /// The calling thread's.
    pub(crate) fn current() -> Result<Self> {
        let file =
            File::open("/proc/thread-self/ns/net").map_err(Error::kernel("open the network namespace"))?;
        Ok(Self { fd: file.into(), name: "the host's namespace".to_owned() })
    }

    /// The one with this name; `None` if there is none, or only the empty file of one that is gone.
    pub(crate) fn open(name: &str) -> Result<Option<Self>> {
        let opened = File::open(path_of(name)).and_then(|file| {
            let is_namespace = u64::try_from(rustix::fs::fstatfs(&file)?.f_type).ok() == Some(NSFS_MAGIC);
            Ok(is_namespace.then_some(file))
        });
        match opened {
            Ok(file) => Ok(file.map(|file| Self { fd: file.into(), name: name.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Kernel { action: format!("open namespace {name}"), source }),
        }
    }

    /// Makes a new one with this name, in place of a file of that name that is none.
    pub(crate) fn create(name: &str) -> Result<Self> {
        if path_of(name).exists() {
            Self::delete(name)?;
        }
        ip_netns("add", name)?;
        Self::open(name)?.ok_or_else(|| Error::Kernel {
            action: format!("open namespace {name} after making it"),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Takes the name away. The namespace itself ends with the last process, socket or tap that is in it.
    pub(crate) fn delete(name: &str) -> Result<()> {
        if path_of(name).exists() { ip_netns("delete", name) } else { Ok(()) }
    }

    /// The names of all that have one.
    pub(crate) fn names() -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(NAMED) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::kernel(format!("list {NAMED}")))?,
        };
        entries
            .map(|entry| Ok(entry.map_err(Error::kernel(format!("list {NAMED}")))?.file_name()))
            .filter_map(|name: Result<_>| name.map(|name| name.into_string().ok()).transpose())
            .collect()
    }

    /// What to call it in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Runs `act` on a thread inside.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| Error::kernel(format!("enter {}", self.name))(error.into()))?;
            act()
        })
    }

    /// Runs `act` on a thread inside a new namespace that ends with it.
    pub(crate) fn scratch<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            // SAFETY: NEWNET changes only this thread's network namespace; the thread was made for it, and no
            // descriptor table is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|error| Error::kernel("make a network namespace")(error.into()))?;
            act()
        })
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// `ip netns` knows how to share /run/netns between mount namespaces and with others doing the same.
fn ip_netns(verb: &str, name: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", verb, name]);
    let output =
        command.output().map_err(|source| Error::ToolMissing { tool: "ip", package: "iproute2", source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Tool { command: format!("ip netns {verb} {name}"), stderr })
}

fn on_own_thread<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().name("mvm-netns".to_owned()).spawn_scoped(scope, act);
        let handle = spawned.map_err(Error::kernel("start a thread"))?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
