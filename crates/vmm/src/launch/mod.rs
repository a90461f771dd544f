//! Starting a VMM confined: uid of its own, no capabilities, namespaces and a root folder of its own.
//!
//! The agent starts its own binary again with [`LAUNCH_ARGUMENT`]; that process confines itself and becomes
//! the VMM by exec, so the VMM is the agent's child and keeps the pid. The plan and the descriptors come
//! through a socket that is its standard input; the same socket carries the reason back if it fails, and
//! closes at the exec if it does not.

mod child;
mod root;
mod seccomp;

use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

pub use child::launcher_main;

use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, Result, blocking};
use crate::process::{kill, wait_for_exit};

/// The first argument by which a binary knows that it is to call [`launcher_main`].
pub const LAUNCH_ARGUMENT: &str = "vmm-launch";

/// The first of the descriptors that a VMM inherits; they follow one another in the order of the plan.
pub(crate) const FIRST_DESCRIPTOR: usize = 64;
const MOST_DESCRIPTORS: usize = 16;
/// How long the confinement may take; it takes a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which program confines VMMs: one whose `main` calls [`launcher_main`] when its first argument is
/// [`LAUNCH_ARGUMENT`].
#[derive(Debug, Clone)]
pub struct Launcher {
    program: PathBuf,
}

impl Default for Launcher {
    /// The running program itself, even if its file was replaced meanwhile.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into() }
    }
}

impl Launcher {
    /// Another program.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Starts `plan` and returns the VMM's process, once it runs confined and within its limits. Who gets it
    /// has to wait for its end.
    pub(crate) async fn start(
        &self,
        plan: Plan,
        descriptors: Vec<OwnedFd>,
        log: File,
        cgroup: Cgroup,
    ) -> Result<Started> {
        let name = plan.name.clone();
        let program = self.program.clone();
        let (started, socket) = blocking(move || spawn(&program, &plan, &descriptors, log)).await?;
        let pid = started.pid;
        // Joining waits for the kernel, some 10 ms on version 1, so it goes alongside.
        let joined = blocking(move || cgroup.join(pid));
        let (confined, joined) = tokio::join!(timeout(PATIENCE, read_failure(socket)), joined);
        let failed = |reason: String| Err(Error::Launch { name, reason });
        let result = match confined {
            Ok(Ok(reason)) if reason.is_empty() => joined,
            Ok(Ok(reason)) => failed(reason),
            Ok(Err(error)) => Err(error),
            Err(_) => failed("its launcher hangs".into()),
        };
        match result {
            Ok(()) => Ok(started),
            Err(error) => {
                started.end().await;
                Err(error)
            }
        }
    }
}

/// A child process that nobody has waited for yet.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) process: OwnedFd,
}

impl Started {
    /// Kills it, if it still lives, and waits for its end.
    pub(crate) async fn end(self) {
        let killed = kill(&self.process);
        if let Err(error) = killed.and(wait_for_exit(self.process).await) {
            tracing::error!(%error, pid = self.pid, "a VMM that failed to start stays");
        }
    }
}

/// What a guest's memory is a copy of.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum MemorySource {
    /// A read-only block device, whose node is made in a folder of the VMM's own. The agent takes the node away once the VMM
    /// has opened it: a number may come to mean another device, an open one does not.
    Device {
        /// Its major and minor number.
        number: (u32, u32),
        /// The folder on the host, which the VMM sees.
        folder: PathBuf,
    },
    /// A file of its own, which QEMU opens for writing.
    File(PathBuf),
}

/// What the launcher is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The machine's name, for messages.
    pub(crate) name: String,
    /// The VMM's binary.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Uid and gid it runs as; not root.
    pub(crate) uid: u32,
    /// Where it records what process it is, before anything else.
    pub(crate) identity: PathBuf,
    /// An empty folder, on which its root folder is mounted (nobody else sees that).
    pub(crate) root: PathBuf,
    /// Files and folders it sees, read-only, and where.
    pub(crate) visible: Vec<(PathBuf, PathBuf)>,
    /// What its guest's memory is a copy of, and where it sees that.
    pub(crate) memory: Option<(MemorySource, PathBuf)>,
    /// Whether it gets /dev/kvm.
    pub(crate) kvm: bool,
    /// No file grows beyond this many bytes by its hand.
    pub(crate) file_size_limit: u64,
}

fn spawn(program: &Path, plan: &Plan, descriptors: &[OwnedFd], log: File) -> Result<(Started, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().doing(|| "make the launcher's socket".into())?;
    let log_too = log.try_clone().doing(|| "duplicate the log".into())?;
    let child = Command::new(program)
        .arg(OsString::from(LAUNCH_ARGUMENT))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(log)
        .stderr(log_too)
        .spawn()
        .doing(|| format!("start the launcher {}", program.display()))?;
    let pid = child.id();
    // Opened before anyone could have waited for it, so the pid is still its own.
    let process = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .map_or(Err(rustix::io::Errno::SRCH), |pid| pidfd_open(pid, PidfdFlags::NONBLOCK))
        .doing(|| format!("open process {pid}"))?;
    // A launcher that died at once is told by the end of the socket, not by this.
    if let Err(error) = send_plan(&ours, plan, descriptors) {
        tracing::debug!(%error, "the launcher does not take its plan");
    }
    Ok((Started { pid, process }, ours))
}

fn send_plan(mut socket: &UnixStream, plan: &Plan, descriptors: &[OwnedFd]) -> std::io::Result<()> {
    let body = serde_json::to_vec(plan)?;
    let length = u32::try_from(body.len()).map_err(std::io::Error::other)?.to_be_bytes();
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(std::os::fd::AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(std::io::Error::other("too many descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    socket.write_all(&body)
}

async fn read_failure(socket: UnixStream) -> Result<String> {
    let doing = || "listen to the launcher".to_owned();
    socket.set_nonblocking(true).doing(doing)?;
    let mut reason = String::new();
    tokio::net::UnixStream::from_std(socket)
        .doing(doing)?
        .take(64 << 10)
        .read_to_string(&mut reason)
        .await
        .doing(doing)?;
    Ok(reason)
}
