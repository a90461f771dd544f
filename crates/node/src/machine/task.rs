//! The task that owns one machine: its row, its session, and one act at a time.

mod restart;
mod row;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mvm_host::MachineEnded;
use mvm_kill_point::{KillPoint, reached};
use mvm_model::{InstanceState, Operation, PoolSpec, RestartPolicy};
use mvm_protocol::control::{Clock, Generation, GuestRequest};
use tokio::sync::{mpsc, watch};

use super::idle::Idle;
use super::lease::{Lease, Leases};
use super::{ActError, Asker, Command, Machine, Outcome, Reply, View};
use crate::agent::{Admission, Agent};
use crate::destroy::want_no_more;
use crate::session::{Link, Session};
use crate::store::{Audit, Goal, InstanceRow, Intent, Place, TenantRow, now_millis, remove_instance};
use restart::Restart;

/// How often a running guest's clock is set straight.
const CLOCK_EVERY: Duration = Duration::from_secs(60);
/// How long a guest may take to do it, on a busy host; its session is opened again then.
const CLOCK_WITHIN: Duration = Duration::from_secs(20);
/// How long a guest may take to switch to new config and secrets.
const REFRESHED: Duration = Duration::from_secs(20);

/// Owns one machine.
pub(super) struct Task {
    pub(super) agent: Arc<Agent>,
    pub(super) tenant: TenantRow,
    pub(super) row: InstanceRow,
    pub(super) ip: Ipv4Addr,
    pub(super) leases: Arc<Leases>,
    /// Set by [`set_session`](Self::set_session), so that others see it.
    session: Option<Session>,
    pub(super) admission: Option<Admission>,
    pub(super) mailbox: mpsc::UnboundedReceiver<Command>,
    /// Commands that were taken out of the mailbox and are still to be done.
    pub(super) pending: VecDeque<Command>,
    view: watch::Sender<View>,
    settling: bool,
    /// Its tenant or pool was being destroyed when the agent began.
    pub(super) doomed: bool,
    restart: Restart,
    /// In a run; most machines are in none.
    pub(super) idle: Option<Box<Idle>>,
    /// Files of a consumed snapshot are to be removed when whoever waits for the wake has been answered.
    pub(super) discard_later: bool,
}

/// Starts the task of an instance and gives the handle to it. The task first finishes or undoes what an earlier agent
/// left, unless its tenant or pool is `doomed`, then takes commands.
pub fn spawn(agent: Arc<Agent>, tenant: TenantRow, row: InstanceRow, ip: Ipv4Addr, doomed: bool) -> Machine {
    let (sender, mailbox) = mpsc::unbounded_channel();
    let (view_sender, view) =
        watch::channel(View { row: row.clone(), act: row.intent, settling: true, link: None });
    if row.wake_at.is_some() {
        agent.alarms.set(row.id, row.wake_at);
    }
    let leases = Leases::new();
    let machine = Machine {
        id: row.id,
        place: row.place.clone(),
        ip,
        mailbox: sender,
        view,
        leases: Arc::clone(&leases),
    };
    let task = Task {
        agent,
        tenant,
        row,
        ip,
        leases,
        session: None,
        admission: None,
        mailbox,
        pending: VecDeque::new(),
        view: view_sender,
        settling: true,
        doomed,
        restart: Restart::default(),
        idle: None,
        discard_later: false,
    };
    tokio::spawn(task.run());
    machine
}

impl Task {
    /// Acts are boxed while they last: a task that waits, as most do, is then only as large as what it waits for.
    async fn run(mut self) {
        Box::pin(self.recover()).await;
        self.settling = false;
        self.show();
        let mut clock = tokio::time::interval(CLOCK_EVERY);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if std::mem::take(&mut self.discard_later) {
                Box::pin(self.discard_snapshot()).await;
            }
            let command = if let Some(command) = self.pending.pop_front() {
                Some(command)
            } else {
                // A machine that failed is started again, one that runs may be idle: never both.
                let look_at = self.next_look();
                let restart_at = self.restart.at;
                tokio::select! {
                    command = self.mailbox.recv() => command,
                    () = until(restart_at.or(look_at)) => {
                        if restart_at.is_none() {
                            Box::pin(self.look()).await;
                            continue;
                        }
                        self.restart.at = None;
                        self.restart.attempts += 1;
                        // A failure is kept in the row, and schedules the next attempt.
                        let _ = Box::pin(self.bring_up(Asker::Policy)).await;
                        continue;
                    }
                    _ = clock.tick() => {
                        Box::pin(self.tend()).await;
                        continue;
                    }
                }
            };
            match command {
                None => return,
                Some(Command::Destroy { reply }) => {
                    let destroyed = Box::pin(self.destroy()).await;
                    let gone = destroyed.is_ok();
                    let _ = reply.send(destroyed);
                    if gone {
                        return;
                    }
                }
                Some(command) => Box::pin(self.handle(command)).await,
            }
        }
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Run { asker, reply } => {
                let done = self.run_for(asker).await;
                answer(reply, done);
            }
            Command::Hold { reply } => {
                let held = self.hold().await;
                if let Err(error) = &held {
                    self.fail_waiting_holds(error);
                }
                answer(reply, held);
            }
            Command::HoldAgain { generation, reply } => answer(reply, self.hold_again(generation)),
            Command::Sleep { asker, reply } => {
                let done = self.sleep(asker).await;
                answer(reply, done);
            }
            Command::Warm { asker, reply } => {
                let done = self.warm(asker).await;
                answer(reply, done);
            }
            Command::Stop { reply } => {
                let done = self.stop().await;
                answer(reply, done);
            }
            Command::Restart { reply } => {
                let done = self.restart().await;
                answer(reply, done);
            }
            Command::Backup { said, reply } => self.back_up(said, reply).await,
            Command::Restore { other, reply } => {
                let restored = self.restore_disk(*other).await;
                answer(reply, restored);
            }
            Command::Upgrade { order, reply } => {
                let done = self.upgrade(*order).await;
                answer(reply, done);
            }
            Command::Session { reply } => {
                let session = self.talk();
                answer(reply, session);
            }
            Command::Settled { reply } => answer(reply, Ok(())),
            Command::Refresh { reply } => {
                let done = self.refresh().await;
                self.look_soon();
                answer(reply, done);
            }
            Command::Timer { reply } => {
                let done = self.timer().await;
                answer(reply, done);
            }
            Command::Ended(ended) => self.vmm_ended(&ended).await,
            // Taken by `run`, which ends the task with it.
            Command::Destroy { .. } => {}
        }
    }

    async fn run_for(&mut self, asker: Asker) -> Result<Outcome, ActError> {
        if self.row.state == InstanceState::Running {
            self.leases.touch();
            return Ok(Outcome::Already);
        }
        if asker == Asker::Message {
            self.admit_message().await?;
        }
        self.restart = Restart::default();
        self.bring_up(asker).await?;
        Ok(Outcome::Done)
    }

    /// Makes it run, whatever state it is in, and keeps the restart policy's books.
    pub(super) async fn bring_up(&mut self, asker: Asker) -> Result<(), ActError> {
        // Quotas may have changed since.
        self.tenant = self.agent.tenant(&self.tenant.id).await.map_err(failed)?;
        if self.tenant.doomed {
            return Err(failed(format!("tenant {} is being destroyed", self.tenant.id)));
        }
        let Place { tenant, pool, .. } = &self.row.place;
        if self.agent.pool(tenant, pool).await.map_err(failed)?.doomed {
            return Err(failed(format!("pool {tenant}/{pool} is being destroyed")));
        }
        if self.row.upgrade().is_some_and(|upgrade| upgrade.failed.is_some() && !upgrade.is_back) {
            return Err(failed(format!(
                "{} has not its own data disk yet: restart the agent",
                self.row.address()
            )));
        }
        let result = match self.row.state {
            InstanceState::Running => return Ok(()),
            InstanceState::Sleeping => self.wake(asker).await,
            InstanceState::Warm => self.resume(asker).await,
            _ => self.start(asker).await,
        };
        self.keep_books(&result).await;
        result
    }

    async fn hold(&mut self) -> Result<Lease, ActError> {
        if self.row.state != InstanceState::Running {
            self.admit_message().await?;
            self.bring_up(Asker::Message).await?;
        }
        Ok(self.leases.take_for_message())
    }

    /// What was in hand in a run that is over is lost: a machine is not brought up for it.
    fn hold_again(&self, generation: Generation) -> Result<Lease, ActError> {
        if self.row.state != InstanceState::Running || self.row.generation != generation {
            return Err(failed(format!("{} has slept or stopped since it was held", self.row.address())));
        }
        Ok(self.leases.take())
    }

    /// Whether a message may make it run.
    pub(super) async fn admit_message(&self) -> Result<(), ActError> {
        match self.row.state {
            InstanceState::Stopped if self.row.goal.is_none() => {
                Err(ActError::Stopped { address: self.row.address() })
            }
            InstanceState::Failed if self.pool().await?.restart == RestartPolicy::Never => {
                Err(ActError::NeverRestarted {
                    address: self.row.address(),
                    reason: self.row.reason.clone().unwrap_or_default(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whoever asks waits for the guest by himself: one that does not answer must not keep its machine's task.
    fn talk(&self) -> Result<(Link, Lease), ActError> {
        let Some(session) = self.session() else {
            return Err(ActError::Failed(format!(
                "{} is {}: `mvm instance start {0}` makes it run",
                self.row.address(),
                self.row.state
            )));
        };
        Ok((session.link(), self.leases.take()))
    }

    /// What failed for one Hold fails for all that wait behind it: they would try the same again, one by one.
    fn fail_waiting_holds(&mut self, error: &ActError) {
        while let Ok(command) = self.mailbox.try_recv() {
            self.pending.push_back(command);
        }
        let commands = std::mem::take(&mut self.pending);
        for command in commands {
            match command {
                Command::Hold { reply } => answer(reply, Err(error.clone())),
                other => self.pending.push_back(other),
            }
        }
    }

    async fn vmm_ended(&mut self, event: &MachineEnded) {
        // An act that ended its VMM itself has said so already; and this may be about an earlier one.
        if !self.row.state.has_vmm() || self.row.process.as_ref() != Some(&event.process) {
            return;
        }
        let why = event.why.clone().unwrap_or_else(|| event.ended.to_string());
        self.lost(why).await;
    }

    /// The VMM is gone without anyone having asked for it.
    pub(super) async fn lost(&mut self, what: String) {
        self.set_session(None);
        self.admission = None;
        // What failed in an act meanwhile says only that the VMM is gone.
        let found = self.agent.hands.why_ended(self.row.id).await.ok().flatten();
        let reason = match found {
            Some(found) if !what.contains(&found) => format!("{found}; {what}"),
            _ => what,
        };
        self.agent.discard_vmm(&self.row).await;
        self.forget_memory().await;
        self.row.process = None;
        let audit = Audit::new(self.row.address(), "InstanceFailed", reason.clone());
        self.row.reason = Some(reason);
        self.settle(Operation::VmmEnded, vec![audit]).await;
        self.schedule_restart().await;
    }

    /// Every minute: the guest's clock, the console's size.
    async fn tend(&mut self) {
        let Some(session) = self.session().filter(|_| self.row.state == InstanceState::Running) else {
            return;
        };
        let clock = Clock { unix_nanos: now_millis() * 1_000_000 };
        if let Err(error) =
            session.ask(&GuestRequest::AdjustClock { clock }, "AdjustClock", CLOCK_WITHIN).await
        {
            tracing::debug!(instance = %self.row.id, %error, "the guest's clock was not adjusted");
        }
        if let Err(error) = self.agent.hands.trim_console(self.row.id).await {
            tracing::debug!(instance = %self.row.id, %error, "the console's log was not trimmed");
        }
    }

    /// Gives a machine that runs what is wanted of it now: egress, config, secrets. Another is given it when it comes up; tells
    /// whether it was given now.
    pub(super) async fn refresh(&mut self) -> Result<bool, ActError> {
        if !self.row.state.has_vmm() {
            return Ok(false);
        }
        let pool = self.pool().await?;
        let port = self.agent.port_of(&self.tenant, &self.row, self.ip, &pool);
        self.agent.hands.admit(self.agent.network_of(&self.tenant), port).await.map_err(failed)?;
        let Some(session) = self.session() else { return Ok(false) };
        let update = self.update_message().await?;
        session.ask(&update, "Update", REFRESHED).await.map_err(failed)?;
        Ok(true)
    }

    /// Its pool as it is wanted now.
    pub(super) async fn pool(&self) -> Result<PoolSpec, ActError> {
        Ok(self.agent.pool(&self.row.place.tenant, &self.row.place.pool).await.map_err(failed)?.spec)
    }

    /// The files of a snapshot that does not count any more. Left behind they would only take space.
    pub(super) async fn discard_snapshot(&self) {
        if let Err(error) = self.agent.hands.discard_snapshot(self.row.id).await {
            tracing::warn!(instance = %self.row.id, %error, "its snapshot could not be removed");
        }
    }

    /// The files of a machine's memory, when its VMM is gone and it will not be woken.
    pub(super) async fn forget_memory(&self) {
        self.discard_snapshot().await;
        if let Err(error) = self.agent.hands.discard_own(self.row.id).await {
            tracing::warn!(instance = %self.row.id, %error, "its own image could not be removed");
        }
    }

    async fn destroy(&mut self) -> Result<(), ActError> {
        self.begin(Intent::Destroy).await?;
        reached(KillPoint::DestroyBegun);
        self.set_session(None);
        self.admission = None;
        self.agent.discard_vmm(&self.row).await;
        reached(KillPoint::DestroyEnded);
        self.agent.hands.remove_machine(self.row.id).await.map_err(failed)?;
        reached(KillPoint::DestroyFilesRemoved);
        let (id, place, state) = (self.row.id, self.row.place.clone(), self.row.state);
        let audit = Audit::new(self.row.address(), "InstanceDestroyed", "with its disk and its snapshot");
        self.agent
            .store
            .write(move |tx| {
                remove_instance(tx, id)?;
                want_no_more(tx, &place, state)?;
                audit.append(tx, &place.tenant)
            })
            .await
            .map_err(failed)?;
        self.row.state = InstanceState::Destroyed;
        self.row.wake_at = None;
        self.row.intent = None;
        self.show();
        Ok(())
    }

    /// Takes it where its goal says, once: where new instances begin.
    pub(super) async fn pursue_goal(&mut self) {
        let Some(goal) = self.row.goal else { return };
        if let Err(error) = self.bring_up(Asker::Policy).await {
            if self.row.state != InstanceState::Failed {
                // Shown until it runs: a quota that is too small, for one.
                self.row.reason = Some(error.to_string());
                self.show();
            }
            return;
        }
        if goal == Goal::Sleeping
            && let Err(error) = self.sleep(Asker::Policy).await
        {
            tracing::warn!(instance = %self.row.id, %error, "it could not be put to sleep where it begins");
        }
    }
}

pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, ActError>) {
    // Whoever asked may have gone; what was done stays done.
    let _ = reply.send(result);
}

/// An act's failure in words.
pub(super) fn failed(error: impl std::fmt::Display) -> ActError {
    ActError::Failed(error.to_string())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
