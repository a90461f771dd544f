//! The image's prewarm: a command that runs in the machine from which others are cloned, before it is anyone's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_model::service::{Prewarm, ReseedSignal, ServiceUser};
use rustix::process::Signal;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::base::BaseCheck;
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
    /// Runs it to its end, where there is one. Whatever was started is killed, but what may stay after a success; that is one
    /// only where the machine is then as a base has to be.
    ///
    /// # Errors
    /// Why it failed, with the end of its output, or what it left.
    pub(super) async fn run(
        self,
        prewarm: Option<&Prewarm>,
        users: &[ServiceUser],
        children: &Arc<Children>,
        check: Option<BaseCheck>,
    ) -> Result<()> {
        let remains = match prewarm {
            Some(prewarm) => carry_out(prewarm, users, children).await?,
            None => None,
        };
        check.map_or(Ok(()), BaseCheck::end)?;
        *lock(&self.0.0) = State::Done(remains);
        Ok(())
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

async fn carry_out(
    prewarm: &Prewarm,
    users: &[ServiceUser],
    children: &Arc<Children>,
) -> Result<Option<Remains>> {
    let group = ControlGroup::create(NAME)?;
    let (mut child, output) = start(prewarm, users, children, &group)?;
    let log = Arc::new(Mutex::new(RotatingLog::of(NAME, tokio::sync::watch::Sender::new(()))?));
    let keeping = tokio::spawn(output::keep(output, Arc::clone(&log)));
    let time = Duration::from_secs(prewarm.timeout_seconds.into());
    let ending = match timeout(time, child.wait()).await {
        Ok(Exit::Code(0)) => return settle(group, prewarm.reseed_signal).await,
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
    Ok(Some(Remains { group, signal }))
}

fn number(signal: ReseedSignal) -> Signal {
    match signal {
        ReseedSignal::Hup => Signal::HUP,
        ReseedSignal::Usr1 => Signal::USR1,
        ReseedSignal::Usr2 => Signal::USR2,
        ReseedSignal::Winch => Signal::WINCH,
    }
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
}
