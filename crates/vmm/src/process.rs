//! VMM processes: recognised again after a restart of the agent, watched, killed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

use crate::ended::Exit;
use crate::error::{Doing, Error, Result};
use crate::sys;

/// What tells a process from every other, also across reboots: a pid alone is used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot.
    pub start_ticks: u64,
    /// The boot in which that was.
    pub boot_id: String,
}

/// The host's boot id.
///
/// # Errors
/// If /proc is not mounted.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).doing(|| format!("read {path}"))?.trim().to_owned())
}

impl ProcessIdentity {
    /// The identity of the live process with this pid.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is none, or only a zombie without threads that go on.
    pub fn of(pid: u32) -> Result<Self> {
        let start_ticks = live_since(pid)?.ok_or(Error::Gone { pid })?;
        Ok(Self { pid, start_ticks, boot_id: boot_id()? })
    }

    /// Whether the process still lives. A zombie does not.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(self.open()?.is_some())
    }

    /// Writes it to a file, which appears whole or not at all.
    pub(crate) fn record(&self, path: &Path) -> Result<()> {
        let doing = || format!("write {}", path.display());
        let text = serde_json::to_vec(self).map_err(io::Error::from).doing(doing)?;
        let partial = path.with_extension("partial");
        fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).doing(doing)
    }

    /// What such a file says, if there is one and the process still lives.
    pub(crate) fn recorded(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.doing(|| format!("read {}", path.display()))?,
        };
        let identity: Self = serde_json::from_slice(&text)
            .map_err(|error| Error::Answer(format!("{}: {error}", path.display())))?;
        Ok(identity.is_alive()?.then_some(identity))
    }

    /// A descriptor of the process if it still lives.
    pub(crate) fn open(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let descriptor = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other.doing(|| format!("open process {pid:?}"))?,
        };
        // Looked at after opening: from here on the descriptor cannot come to mean another process.
        Ok((live_since(self.pid)? == Some(self.start_ticks)).then_some(descriptor))
    }
}

/// The start time of a process, in ticks; nothing if it has ended or is a zombie.
fn live_since(pid: u32) -> Result<Option<u64>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error).doing(|| format!("read the state of process {pid}")),
    }
}

/// Reads the fields `state`, `num_threads` and `starttime` of proc(5)'s stat line; the name before them may hold anything.
///
/// A process whose first thread alone has ended is a zombie with threads: it has not ended, and must not get away so.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    if matches!(state, "Z" | "X") && threads <= 1 { None } else { fields.nth(1)?.parse().ok() }
}

/// Kills a process and waits until it has ended. Returns whether it was still alive.
///
/// For what a crash of the agent left behind; a machine that one holds is ended through it.
///
/// # Errors
/// If the process may not be killed.
pub async fn kill_process(identity: &ProcessIdentity) -> Result<bool> {
    let Some(descriptor) = identity.open()? else { return Ok(false) };
    kill(&descriptor)?;
    wait_for_exit(descriptor).await?;
    Ok(true)
}

/// Sends SIGKILL; a process that has ended already is fine.
pub(crate) fn kill(descriptor: impl AsFd) -> Result<()> {
    match pidfd_send_signal(descriptor, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.doing(|| "kill the VMM".into()),
    }
}

/// Waits for the end of a process; its status is known only to its parent.
pub(crate) async fn wait_for_exit(descriptor: OwnedFd) -> Result<Exit> {
    let watched = sys::watch_readable(descriptor).doing(|| "watch the VMM's process".into())?;
    let _ready = watched.readable().await.doing(|| "wait for the VMM's end".into())?;
    let found = waitid(WaitId::PidFd(watched.get_ref().as_fd()), WaitIdOptions::EXITED);
    Ok(match found {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Exited(code),
            (None, Some(signal)) => Exit::Signaled(signal),
            (None, None) => Exit::StatusUnknown,
        },
        _ => Exit::StatusUnknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_confuse() {
        let rest = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let alone = rest.replace(" 20 ", " 1 ");
        assert_eq!(parse_stat(&format!("7 (a) Z (b) S {rest}")), Some(22));
        assert_eq!(parse_stat(&format!("7 (a) S {alone}")), Some(22));
        assert_eq!(parse_stat(&format!("7 (a) Z {alone}")), None);
        assert_eq!(parse_stat(&format!("7 (a) Z {rest}")), Some(22), "its other threads go on");
        assert_eq!(parse_stat("7 (cut"), None);
    }

    #[test]
    fn this_process_is_itself_and_nobody_else() {
        let me = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(me.is_alive().unwrap());
        assert!(!ProcessIdentity { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive().unwrap());
        assert!(!ProcessIdentity { boot_id: "another".into(), ..me }.is_alive().unwrap());
    }

    #[tokio::test]
    async fn a_process_without_its_first_thread_is_killed_all_the_same() {
        // In Python, as only a program's own first thread can end so.
        let program = "import ctypes, threading, time\n\
                       threading.Thread(target=time.sleep, args=(1000,)).start()\n\
                       ctypes.CDLL(None).syscall(60, 0)";
        let mut child = std::process::Command::new("python3").args(["-c", program]).spawn().unwrap();
        let state = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        while !state().contains(") Z ") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(kill_process(&identity).await.unwrap());
        // Whoever waited first.
        let _ = child.wait();
        assert!(!identity.is_alive().unwrap());
    }

    #[tokio::test]
    async fn a_killed_child_tells_its_signal_and_a_zombie_has_ended() {
        #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        let descriptor = identity.open().unwrap().unwrap();
        kill(&descriptor).unwrap();
        // Nobody has waited for it yet: it is at most a zombie.
        let watched = sys::watch_readable(descriptor).unwrap();
        watched.readable().await.unwrap().retain_ready();
        assert!(!identity.is_alive().unwrap());
        assert_eq!(wait_for_exit(watched.into_inner()).await.unwrap(), Exit::Signaled(9));
        assert!(!kill_process(&identity).await.unwrap());
    }
}
