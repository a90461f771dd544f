//! Machines: one task owns each instance's state and does one act at a time.
//!
//! ```text
//!  person, Hold, policy ──▶ mailbox ──▶ Task { row, session } ──▶ host (VMM, network, disks)
//!                                          │
//!                                          └──▶ view: what listings and selectors see
//! ```
//! Whatever arrives during an act waits in the mailbox. That is what makes twenty messages to a sleeping machine
//! one wake: the first wakes it, the others find it running. And a message that arrives while its machine goes to
//! sleep finds it asleep, and wakes it.

mod backup;
mod came_up;
mod come_up;
mod idle;
mod lease;
mod recover;
mod restore;
mod sleep;
mod start;
mod stop;
mod task;
mod timer;
mod upgrade;
mod warm;

use std::net::Ipv4Addr;
use std::sync::Arc;

use mvm_host::{MachineEnded, NewDisk, ProcessIdentity};
use mvm_model::state::Refused;
use mvm_model::{InstanceId, InstanceState, Profile, RestartPolicy};
use mvm_protocol::control::Generation;
use tokio::sync::{mpsc, oneshot, watch};

pub use backup::{BackupEnd, DiskRead};
pub use came_up::CameUp;
pub use lease::Lease;
pub use task::spawn;

use crate::session::Link;
use crate::store::{InstanceRow, Intent, Place};
use lease::Leases;

/// Why an act on a machine was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ActError {
    /// The state table does not have it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A person stopped the machine: messages do not start it.
    #[error("{address} was stopped by a person; `mvm instance start {address}` starts it")]
    Stopped {
        /// The machine.
        address: String,
    },
    /// Its pool's restart policy leaves it to a person.
    #[error("{address} has failed and its pool's restart policy is never: {reason}")]
    NeverRestarted {
        /// The machine.
        address: String,
        /// Why it failed.
        reason: String,
    },
    /// A quota does not admit it.
    #[error(transparent)]
    Quota(#[from] mvm_model::quota::QuotaExceeded),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
    /// The machine was destroyed meanwhile.
    #[error("the instance is gone")]
    Gone,
}

/// Who wants an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A command.
    Person,
    /// A message, by a Hold or a published port.
    Message,
    /// The agent itself: where new instances begin, restarts, sleep of what is idle.
    Policy,
    /// Its own workload, which had planned it when it fell asleep.
    Timer,
}

impl Asker {
    const ALL: [Self; 4] = [Self::Person, Self::Message, Self::Policy, Self::Timer];

    fn as_str(self) -> &'static str {
        match self {
            Asker::Person => "a person",
            Asker::Message => "a message",
            Asker::Policy => "policy",
            Asker::Timer => "its timer",
        }
    }

    /// What the audit log says of an act of his that has nothing else to say.
    pub fn purpose(self) -> String {
        format!("for {}", self.as_str())
    }
}

/// What an act came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The goal held already.
    Already,
}

/// Where an act says what it is doing.
pub type Said = mpsc::UnboundedSender<String>;

type Reply<T> = oneshot::Sender<Result<T, ActError>>;

/// What is asked of a machine's task. Every mailbox keeps room for some commands, each as large as the largest: what is large is
/// boxed.
enum Command {
    Run { asker: Asker, reply: Reply<Outcome> },
    Hold { reply: Reply<Lease> },
    HoldAgain { generation: Generation, reply: Reply<Lease> },
    Sleep { asker: Asker, reply: Reply<Outcome> },
    Warm { asker: Asker, reply: Reply<Outcome> },
    Stop { reply: Reply<Outcome> },
    Restart { reply: Reply<Outcome> },
    Backup { said: Said, reply: Reply<DiskRead> },
    Restore { other: Box<OtherDisk>, reply: Reply<InstanceState> },
    Upgrade { order: Box<UpgradeOrder>, reply: Reply<Outcome> },
    Destroy { reply: Reply<()> },
    Session { reply: Reply<(Link, Lease)> },
    Settled { reply: Reply<()> },
    Refresh { reply: Reply<bool> },
    Timer { reply: Reply<()> },
    Ended(Box<MachineEnded>),
}

const _: () = assert!(size_of::<Command>() <= 24);

/// A data disk that a machine is to have in place of its own.
struct OtherDisk {
    disk: NewDisk,
    /// Where it comes from, for people.
    from: String,
    said: Said,
}

/// That a machine is to have the image that its pool has now.
struct UpgradeOrder {
    /// What its pool had before.
    before: PoolImage,
    said: Said,
}

/// A pool's image, as it is wanted and as it was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolImage {
    /// As the pool names it.
    pub image: String,
    /// The pool's profile.
    pub profile: Profile,
    /// The revision that was built of it.
    pub revision: String,
}

/// What others may see of a machine.
#[derive(Debug, Clone)]
pub struct View {
    /// Its row, as committed.
    pub row: InstanceRow,
    /// What is being done to it.
    pub act: Option<Intent>,
    /// What an earlier agent left is not finished or undone yet.
    pub settling: bool,
    /// A way to talk to its guest, as long as its control session is open.
    pub link: Option<Link>,
}

/// Every machine has a view.
const _: () = assert!(size_of::<Option<Link>>() == size_of::<usize>());

/// A machine, for everyone but its task.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its id.
    pub id: InstanceId,
    /// Where it belongs.
    pub place: Place,
    /// Its address.
    pub ip: Ipv4Addr,
    mailbox: mpsc::UnboundedSender<Command>,
    view: watch::Receiver<View>,
    leases: Arc<Leases>,
}

/// One run of a machine, from a start or a wake to its end.
#[derive(Debug)]
pub struct Run {
    view: watch::Receiver<View>,
    process: Option<ProcessIdentity>,
    last: Stay,
}

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// It does.
    Stays,
    /// An act has begun that ends it, once what is in hand is done.
    Leaving,
    /// It has ended.
    Gone,
}

impl Run {
    /// Resolves when the answer is another than the last time.
    pub async fn changed(&mut self) -> Stay {
        let (process, last) = (&self.process, self.last);
        let stay = |view: &View| {
            if view.row.state != InstanceState::Running || view.row.process != *process {
                return Stay::Gone;
            }
            match view.act {
                Some(
                    Intent::Sleep
                    | Intent::Warm
                    | Intent::Stop
                    | Intent::Restore
                    | Intent::Upgrade
                    | Intent::Destroy,
                ) => Stay::Leaving,
                Some(Intent::Start | Intent::Wake | Intent::Resume) | None => Stay::Stays,
            }
        };
        // A task that is gone has taken its machine along.
        self.last = match self.view.wait_for(|view| stay(view) != last).await {
            Ok(view) => stay(&view),
            Err(_) => Stay::Gone,
        };
        self.last
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Run { .. } => "Run",
            Command::Hold { .. } => "Hold",
            Command::HoldAgain { .. } => "HoldAgain",
            Command::Sleep { .. } => "Sleep",
            Command::Warm { .. } => "Warm",
            Command::Stop { .. } => "Stop",
            Command::Restart { .. } => "Restart",
            Command::Backup { .. } => "Backup",
            Command::Restore { .. } => "Restore",
            Command::Upgrade { .. } => "Upgrade",
            Command::Destroy { .. } => "Destroy",
            Command::Session { .. } => "Session",
            Command::Settled { .. } => "Settled",
            Command::Refresh { .. } => "Refresh",
            Command::Timer { .. } => "Timer",
            Command::Ended(_) => "Ended",
        })
    }
}

impl Machine {
    /// Makes it run: a start or a wake.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn run(&self, asker: Asker) -> Result<Outcome, ActError> {
        self.ask(|reply| Command::Run { asker, reply }).await
    }

    /// Makes it run and keeps it awake while the lease lives.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn hold(&self) -> Result<Lease, ActError> {
        self.ask(|reply| Command::Hold { reply }).await
    }

    /// Keeps it awake while the lease lives, where it still runs in this generation.
    ///
    /// # Errors
    /// [`ActError`] where it does not: it is not made to run.
    pub async fn hold_again(&self, generation: Generation) -> Result<Lease, ActError> {
        self.ask(|reply| Command::HoldAgain { generation, reply }).await
    }

    /// Puts it to sleep.
    ///
    /// # Errors
    /// [`ActError`]; it runs on then.
    pub async fn sleep(&self, asker: Asker) -> Result<Outcome, ActError> {
        self.ask(|reply| Command::Sleep { asker, reply }).await
    }

    /// Pauses it.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn warm(&self, asker: Asker) -> Result<Outcome, ActError> {
        self.ask(|reply| Command::Warm { asker, reply }).await
    }

    /// Shuts it down, or discards its snapshot.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn stop(&self) -> Result<Outcome, ActError> {
        self.ask(|reply| Command::Stop { reply }).await
    }

    /// Has it start anew from its disk, where it runs, is paused or sleeps, and be the same again.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn restart(&self) -> Result<Outcome, ActError> {
        self.ask(|reply| Command::Restart { reply }).await
    }

    /// Has its data disk hold still to be read, putting it to sleep for it where it runs or is paused. It is again as it
    /// was when the disk is let go of.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn back_up(&self, said: Said) -> Result<DiskRead, ActError> {
        self.ask(|reply| Command::Backup { said, reply }).await
    }

    /// Gives it another data disk, which comes from somewhere, and starts it anew if it was up; it is again as it was.
    ///
    /// # Errors
    /// [`ActError`].
    pub async fn restore(&self, disk: NewDisk, from: String, said: Said) -> Result<InstanceState, ActError> {
        let other = Box::new(OtherDisk { disk, from, said });
        self.ask(|reply| Command::Restore { other, reply }).await
    }

    /// Gives it the image that its pool has now, where it runs, is paused or sleeps with another: it is shut down, started with that
    /// on its data disk, and is as it was once it is ready. Where it does not get ready, it and its pool have what they had `before`.
    ///
    /// # Errors
    /// [`ActError`]: why it has not the new image.
    pub async fn upgrade(&self, before: PoolImage, said: Said) -> Result<Outcome, ActError> {
        let order = Box::new(UpgradeOrder { before, said });
        self.ask(|reply| Command::Upgrade { order, reply }).await
    }

    /// Ends it and removes everything it had.
    ///
    /// # Errors
    /// [`ActError`]; it is tried again when the agent starts.
    pub async fn destroy(&self) -> Result<(), ActError> {
        self.ask(|reply| Command::Destroy { reply }).await
    }

    /// A way to talk to its guest, while it runs.
    ///
    /// # Errors
    /// [`ActError`] where it does not run.
    pub async fn session(&self) -> Result<(Link, Lease), ActError> {
        self.ask(|reply| Command::Session { reply }).await
    }

    /// A way to talk to its guest without having a say in what is done to it: as soon as there is one, in the middle of an act too.
    /// None where there is none when everything that was asked of it before is done.
    ///
    /// # Errors
    /// [`ActError::Gone`].
    pub async fn link(&self) -> Result<Option<Link>, ActError> {
        let now = || self.view.borrow().link.clone();
        if let Some(link) = now() {
            return Ok(Some(link));
        }
        tokio::select! {
            reachable = self.reachable() => reachable?,
            settled = self.settled() => settled?,
        }
        Ok(now())
    }

    /// Resolves when there is a way to talk to its guest.
    ///
    /// # Errors
    /// [`ActError::Gone`] where it is destroyed before.
    pub async fn reachable(&self) -> Result<(), ActError> {
        let mut view = self.view.clone();
        let ended = |view: &View| view.link.is_some() || view.row.state == InstanceState::Destroyed;
        match view.wait_for(ended).await {
            Ok(view) if view.link.is_some() => Ok(()),
            _ => Err(ActError::Gone),
        }
    }

    /// Resolves when everything that was asked of it before is done.
    ///
    /// # Errors
    /// [`ActError::Gone`].
    pub async fn settled(&self) -> Result<(), ActError> {
        self.ask(|reply| Command::Settled { reply }).await
    }

    /// Has it take what is wanted of it anew, after the acts that were asked for before: egress, config, secrets. Tells whether
    /// it has: one that does not run takes it when it comes up.
    ///
    /// # Errors
    /// [`ActError`]; it runs on with what it had.
    pub async fn refresh(&self) -> Result<bool, ActError> {
        self.ask(|reply| Command::Refresh { reply }).await
    }

    /// Makes it run if the time that its workload named has come.
    ///
    /// # Errors
    /// [`ActError`]; it is tried again later, where it may be.
    pub async fn wake_for_its_timer(&self) -> Result<(), ActError> {
        self.ask(|reply| Command::Timer { reply }).await
    }

    /// Tells it that its VMM has ended.
    pub fn ended(&self, event: MachineEnded) {
        let _ = self.mailbox.send(Command::Ended(Box::new(event)));
    }

    /// What it is now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Its state now.
    pub fn state(&self) -> InstanceState {
        self.view.borrow().row.state
    }

    /// Resolves when its memory is gone, and with it the other end of every connection to it. Asleep it is not.
    pub async fn lost_memory(&self) {
        let mut view = self.view.clone();
        let lost = |view: &View| match view.row.state {
            InstanceState::Running | InstanceState::Warm | InstanceState::Sleeping => false,
            InstanceState::Created
            | InstanceState::Ready
            | InstanceState::Stopped
            | InstanceState::Failed
            | InstanceState::Destroyed => true,
        };
        // A task that is gone has taken its machine along.
        let _ = view.wait_for(lost).await;
    }

    /// How much longer it runs, told as it changes.
    pub fn run_of(&self) -> Run {
        let process = self.view.borrow().row.process.clone();
        Run { view: self.view.clone(), process, last: Stay::Stays }
    }

    /// Keeps it from sleeping while the lease lives. One that does not run is not made to.
    pub fn lease(&self) -> Lease {
        self.leases.take()
    }

    /// How many leases keep it awake.
    pub fn holds(&self) -> usize {
        self.leases.count()
    }

    /// When a message last held it since the agent's start, in milliseconds since 1970.
    pub fn last_message(&self) -> Option<u64> {
        self.leases.last_message()
    }

    /// Whether a message may make it run.
    pub fn wakeable(&self, restart: RestartPolicy) -> bool {
        let row = self.view().row;
        match row.state {
            InstanceState::Destroyed | InstanceState::Created => false,
            // One that is being restarted is on its way.
            InstanceState::Stopped => row.goal.is_some(),
            InstanceState::Failed => restart != RestartPolicy::Never,
            _ => true,
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ActError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(command(reply)).map_err(|_| ActError::Gone)?;
        answer.await.map_err(|_| ActError::Gone)?
    }
}
