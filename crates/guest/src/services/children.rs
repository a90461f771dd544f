//! Child processes. As process 1 this program inherits every orphan, so all are waited for in one place.

use std::collections::HashMap;
use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
use tokio::sync::oneshot;

use crate::lock;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it.
    Unknown,
}

impl Exit {
    /// As one number: 128 and the signal's where a signal ended it.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
            Exit::Unknown => 255,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "ended with code {code}"),
            Exit::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Exit::Unknown => write!(f, "ended"),
        }
    }
}

/// What becomes of a process group when its first process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterLeader {
    /// It is killed.
    Kill,
    /// It goes on.
    Leave,
}

/// Every child that somebody waits for.
#[derive(Debug, Default)]
pub struct Children {
    waited_for: Mutex<HashMap<Pid, Entry>>,
}

#[derive(Debug)]
struct Entry {
    exited: oneshot::Sender<Exit>,
    after_leader: AfterLeader,
}

/// The pipes of a child, as they were asked for.
#[derive(Debug)]
pub struct Pipes {
    /// To its standard input.
    pub stdin: Option<ChildStdin>,
    /// From its standard output.
    pub stdout: Option<ChildStdout>,
    /// From its standard error.
    pub stderr: Option<ChildStderr>,
}

/// A child process, the first of its process group. Dropped before it ended, the group is killed.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    exited: oneshot::Receiver<Exit>,
    children: Arc<Children>,
}

impl Children {
    /// Starts a program, which the command puts into a process group of its own.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn spawn(
        self: &Arc<Self>,
        command: &mut Command,
        after_leader: AfterLeader,
    ) -> io::Result<(Child, Pipes)> {
        // Held until the child is known: it may end, and be waited for, at any time.
        let mut waited_for = lock(&self.waited_for);
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the kernel gave no process id"))?;
        let (sender, exited) = oneshot::channel();
        waited_for.insert(pid, Entry { exited: sender, after_leader });
        let pipes =
            Pipes { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() };
        Ok((Child { pid, exited, children: Arc::clone(self) }, pipes))
    }

    /// Waits for every process that has ended and tells those who wait.
    pub fn reap(&self) {
        while let Some(pid) = crate::sys::ended_child().and_then(Pid::from_raw) {
            let mut waited_for = lock(&self.waited_for);
            let entry = waited_for.remove(&pid);
            if entry.as_ref().is_some_and(|entry| entry.after_leader == AfterLeader::Kill) {
                // Not waited for yet, so the number still means this group.
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let status = waitpid(Some(pid), WaitOptions::NOHANG).ok().flatten().map(|(_, status)| status);
            let exit = status.map_or(Exit::Unknown, |status| {
                let code = status.exit_status().map(Exit::Code);
                code.or(status.terminating_signal().map(Exit::Signal)).unwrap_or(Exit::Unknown)
            });
            if let Some(entry) = entry {
                // Whoever started it may have stopped waiting.
                let _ = entry.exited.send(exit);
            }
        }
    }
}

impl Child {
    /// Waits until it has ended.
    pub async fn wait(&mut self) -> Exit {
        (&mut self.exited).await.unwrap_or(Exit::Unknown)
    }

    /// Sends a signal to its process group, unless it has ended.
    pub fn signal_group(&self, signal: Signal) {
        let waited_for = lock(&self.children.waited_for);
        if waited_for.contains_key(&self.pid) {
            // It can only fail because all have ended.
            let _ = kill_process_group(self.pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal_group(Signal::KILL);
    }
}
