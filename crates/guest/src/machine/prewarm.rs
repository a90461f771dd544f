//! The image's prewarm: a command that runs in the machine from which others are cloned, before it is anyone's.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_model::service::{Prewarm, ReseedSignal, ServiceUser};
use rustix::process::Signal;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::error::{Doing as _, Failure, Result};
use crate::lock;
use crate::services::account::Account;
use crate::services::children::{AfterLeader, Child, Children, Exit};
use crate::services::control_group::ControlGroup;
use crate::services::log::RotatingLog;
use crate::services::output;

/// Of its control group, and of its log: no service can have it.
const NAME: &str = "_prewarm";
/// How many lines of its output explain why it failed.
const EXPLAINING_LINES: usize = 10;
/// How long the last output of processes that were killed may take.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How far the prewarm is.
#[derive(Debug, Default)]
pub(super) struct Prewarming(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NotDone,
    Running,
    Done(Option<Remains>),
}

/// What it left running, and what has that draw fresh randomness.
#[derive(Debug)]
struct Remains {
    group: ControlGroup,
    signal: Signal,
}

/// The right to run it. Dropped before [`Turn::run`] succeeded, it was not done.
pub(super) struct Turn<'a>(&'a Prewarming);

impl Prewarming {
    /// Begins it; `None` where it was done already.
    ///
    /// # Errors
    /// It runs.
    pub(super) fn begin(&self) -> Result<Option<Turn<'_>>> {
        self.require_rest("prewarming")?;
        let mut state = lock(&self.0);
        if matches!(*state, State::Done(_)) {
            return Ok(None);
        }
        *state = State::Running;
        Ok(Some(Turn(self)))
    }

    /// Nothing may become of a machine in the middle of it.
    ///
    /// # Errors
    /// It runs.
    pub(super) fn require_rest(&self, doing: &str) -> Result<()> {
        match *lock(&self.0) {
            State::Running => Err(Failure::new(doing, "the prewarm runs: wait for its end")),
            _ => Ok(()),
        }
    }

    /// Tells what it left running that the kernel's generator began anew.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn signal_remains(&self) -> Result<()> {
        match &*lock(&self.0) {
            State::Done(Some(remains)) => remains.group.signal(remains.signal),
            _ => Ok(()),
        }
    }
}

impl Turn<'_> {
    /// Runs it to its end. Whatever was started is killed, but what may stay after a success.
    ///
    /// # Errors
    /// Why it failed, with the end of its output.
    pub(super) async fn run(
        self,
        prewarm: &Prewarm,
        users: &[ServiceUser],
        children: &Arc<Children>,
    ) -> Result<()> {
        let group = ControlGroup::create(NAME)?;
        let (mut child, output) = start(prewarm, users, children, &group)?;
        let log = Arc::new(Mutex::new(RotatingLog::of(NAME, tokio::sync::watch::Sender::new(()))?));
        let keeping = tokio::spawn(output::keep(output, Arc::clone(&log)));
        let time = Duration::from_secs(prewarm.timeout_seconds.into());
        let ending = match timeout(time, child.wait()).await {
            Ok(Exit::Code(0)) => {
                *lock(&self.0.0) = State::Done(settle(group, prewarm.reseed_signal).await?);
                return Ok(());
            }
            Ok(exit) => exit.to_string(),
            Err(_) => format!("did not end within {} s", time.as_secs()),
        };
        group.end().await?;
        // Nobody is left who could write more.
        let _ = timeout(LAST_OUTPUT, keeping).await;
        let output = lock(&log).last_lines(EXPLAINING_LINES);
        let reason = format!("{} {ending}; the end of its output:\n{output}", prewarm.command.join(" "));
        Err(Failure::new("prewarming", reason))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        if matches!(*state, State::Running) {
            *state = State::NotDone;
        }
    }
}

fn start(
    prewarm: &Prewarm,
    users: &[ServiceUser],
    children: &Arc<Children>,
    group: &ControlGroup,
) -> Result<(Child, pipe::Receiver)> {
    let account = Account::find(users, prewarm.user.as_deref())?;
    let mut program = account.command(&prewarm.command)?;
    group.take_in(&mut program)?;
    output::spawn(children, program, AfterLeader::Leave)
        .doing(format_args!("starting {}", prewarm.command.join(" ")))
}

/// Ends what was left running, unless it can be told that it is in another machine.
async fn settle(group: ControlGroup, signal: Option<ReseedSignal>) -> Result<Option<Remains>> {
    let Some(signal) = signal.map(number) else { return group.end().await.map(|()| None) };
    if group.members()?.is_empty() {
        return group.end().await.map(|()| None);
    }
    match open_sockets()? {
        0 => Ok(Some(Remains { group, signal })),
        count => Err(Failure::new(
            "prewarming",
            format_args!(
                "the processes that it left running have {count} network sockets open, which every machine \
                 would share: open them on the reseed signal"
            ),
        )),
    }
}

fn number(signal: ReseedSignal) -> Signal {
    match signal {
        ReseedSignal::Hup => Signal::HUP,
        ReseedSignal::Usr1 => Signal::USR1,
        ReseedSignal::Usr2 => Signal::USR2,
        ReseedSignal::Winch => Signal::WINCH,
    }
}

/// The machine's IP sockets. Nothing else runs in it, so they are the prewarm's.
fn open_sockets() -> Result<usize> {
    let kinds = ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"].map(|kind| format!("/proc/net/{kind}"));
    kinds.iter().filter(|path| Path::new(path).exists()).try_fold(0, |count, path| {
        let table = fs::read_to_string(path).doing(format_args!("reading {path}"))?;
        Ok(count + sockets(&table))
    })
}

/// The sockets of a table of /proc/net that a process has: others, as closed connections, have no inode.
fn sockets(table: &str) -> usize {
    let inode = |line: &str| line.split_ascii_whitespace().nth(9).is_some_and(|inode| inode != "0");
    table.lines().skip(1).filter(|line| inode(line)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_runs_and_only_once() {
        let prewarming = Prewarming::default();
        let turn = prewarming.begin().unwrap().unwrap();
        assert!(prewarming.begin().is_err() && prewarming.require_rest("personalizing").is_err());
        drop(turn);
        assert!(prewarming.begin().unwrap().is_some(), "one that failed may be tried again");
        *lock(&prewarming.0) = State::Done(None);
        assert!(prewarming.begin().unwrap().is_none());
        assert!(prewarming.require_rest("personalizing").is_ok() && prewarming.signal_remains().is_ok());
    }

    #[test]
    fn sockets_are_those_that_somebody_has() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0\n\
            1: 0100007F:1F90 0100007F:8000 06 00000000:00000000 03:00001771 00000000     0        0 0 3 0\n";
        assert_eq!((sockets(table), sockets("")), (1, 0));
    }
}
