//! One service: started, watched, started again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_model::service::Service;
use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::account::Account;
use super::backoff::Backoff;
use super::children::{AfterLeader, Child, Children};
use super::gateway_service;
use super::log::RotatingLog;
use super::output;
use super::ready::{Check, pauses};
use crate::error::{Doing as _, Result};
use crate::lock;
use crate::machine::secrets::read_for_service;

/// How many lines of its log explain why a service is not ready.
const EXPLAINING_LINES: usize = 10;

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    Down(String),
}

/// A service of this machine.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) service: Service,
    account: Account,
    check: Check,
    log: Arc<Mutex<RotatingLog>>,
    state: watch::Sender<State>,
    /// Ends the wait before the next start.
    now: Notify,
    signals: tokio::sync::mpsc::UnboundedSender<Signal>,
}

impl Unit {
    /// Starts a service, and again whenever it ends, until `stop` says how long it may take to end.
    pub(super) fn start(
        service: Service,
        account: Account,
        check: Check,
        log: RotatingLog,
        children: Arc<Children>,
        stop: watch::Receiver<Option<Duration>>,
    ) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let (signals, queue) = tokio::sync::mpsc::unbounded_channel();
        let state = watch::Sender::new(State::Down("is not started".to_owned()));
        let unit = Arc::new(Self {
            service,
            account,
            check,
            log: Arc::new(Mutex::new(log)),
            state,
            now: Notify::new(),
            signals,
        });
        let task = tokio::spawn(Arc::clone(&unit).supervise(children, stop, queue));
        (unit, task)
    }

    async fn supervise(
        self: Arc<Self>,
        children: Arc<Children>,
        mut stop: watch::Receiver<Option<Duration>>,
        mut signals: tokio::sync::mpsc::UnboundedReceiver<Signal>,
    ) {
        let mut backoff = Backoff::default();
        while stop.borrow().is_none() {
            let begun = Instant::now();
            let ending = match self.launch(&children) {
                Ok(child) => {
                    self.state.send_replace(State::Running);
                    self.watch(child, &mut stop, &mut signals).await
                }
                Err(failure) => failure.to_string(),
            };
            self.note(format_args!("-- {} {ending}\n", self.service.name));
            self.state.send_replace(State::Down(ending));
            tokio::select! {
                () = sleep(backoff.after(begun.elapsed())) => {}
                () = self.now.notified() => {}
                _ = stop.wait_for(Option::is_some) => {}
            }
        }
    }

    /// Watches a run and says how it ended.
    async fn watch(
        &self,
        mut child: Child,
        stop: &mut watch::Receiver<Option<Duration>>,
        signals: &mut tokio::sync::mpsc::UnboundedReceiver<Signal>,
    ) -> String {
        let grace = loop {
            tokio::select! {
                exit = child.wait() => return exit.to_string(),
                Some(signal) = signals.recv() => child.signal_group(signal),
                grace = stop.wait_for(Option::is_some) => {
                    break grace.ok().and_then(|grace| *grace).unwrap_or_default();
                }
            }
        };
        child.signal_group(Signal::TERM);
        if let Ok(exit) = tokio::time::timeout(grace, child.wait()).await {
            return exit.to_string();
        }
        child.signal_group(Signal::KILL);
        child.wait().await.to_string()
    }

    fn launch(self: &Arc<Self>, children: &Arc<Children>) -> Result<Child> {
        if matches!(self.check, Check::Gateway) {
            gateway_service::forget_earlier_run();
        }
        let mut program = self.account.command(&self.service.command)?;
        program.envs(&self.service.environment);
        for wanted in &self.service.env_from_secrets {
            let (key, value) = read_for_service(&self.service.name, wanted)?;
            program.env(key, value);
        }
        let (child, output) = output::spawn(children, program, AfterLeader::Kill)
            .doing(format_args!("starting {}", self.service.command.join(" ")))?;
        tokio::spawn(output::keep(output, Arc::clone(&self.log)));
        Ok(child)
    }

    fn note(&self, line: impl std::fmt::Display) {
        // A log that cannot be written is no reason to stop a service.
        let _ = lock(&self.log).append(line.to_string().as_bytes());
    }

    /// What it wrote.
    pub(super) fn log(&self) -> Arc<Mutex<RotatingLog>> {
        Arc::clone(&self.log)
    }

    /// Starts it at once if it is down.
    pub(super) fn nudge(&self) {
        if *self.state.borrow() != State::Running {
            self.now.notify_one();
        }
    }

    /// Sends it a signal if it runs.
    pub(super) fn signal(&self, signal: Signal) {
        if *self.state.borrow() == State::Running {
            let _ = self.signals.send(signal);
        }
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// Why it was not within its time, with the last lines of its log.
    pub(super) async fn ready(&self, children: &Arc<Children>) -> std::result::Result<(), String> {
        let timeout = self.check.timeout();
        let deadline = Instant::now() + timeout;
        let mut reason = String::new();
        for pause in pauses() {
            match timeout_at(deadline, self.attempt(children)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(not_yet)) => reason = not_yet,
                Err(_) => break,
            }
            if Instant::now() + pause > deadline {
                break;
            }
            sleep(pause).await;
        }
        Err(format!(
            "service `{}` was not ready after {} s: {reason}; the end of its log:\n{}",
            self.service.name,
            timeout.as_secs(),
            lock(&self.log).last_lines(EXPLAINING_LINES)
        ))
    }

    async fn attempt(&self, children: &Arc<Children>) -> std::result::Result<(), String> {
        let down = match &*self.state.borrow() {
            State::Running => None,
            State::Down(ending) => Some(ending.clone()),
        };
        match down {
            Some(ending) => Err(ending),
            None => self.check.attempt(&self.account, children).await,
        }
    }
}
