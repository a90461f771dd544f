//! The machine: who it is, what it was given, what it runs.

mod base;
mod clock;
mod data;
pub mod device;
mod drives;
mod identity;
mod network;
pub mod places;
mod prewarm;
pub mod secrets;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_model::service::{SERVICES_PATH, ServicesFile};
use mvm_model::{InstanceId, Role};
use mvm_protocol::SecretBytes;
use mvm_protocol::control::{
    Clock, ConfigFiles, Generation, GuestReply, Identity, IntegrationStatus, MachineConfig, SecretFiles,
    WorkerStatus,
};
use tokio::sync::mpsc;

use crate::agent::{HostLink, StreamLimit};
use crate::console::say;
use crate::error::{Failure, Result};
use crate::lock;
use crate::openclaw;
use crate::services::children::Children;
use crate::services::supervisor::Supervisor;
use device::Devices;

/// Everything the agent knows about the machine that it runs in.
#[derive(Debug)]
pub struct Machine {
    /// What the image says to run.
    pub services: ServicesFile,
    /// Every process that somebody waits for.
    pub children: Arc<Children>,
    /// The services.
    pub supervisor: Supervisor,
    /// Open streams.
    pub streams: Arc<StreamLimit>,
    /// The session with the host.
    pub host: HostLink,
    /// Where one of its services is OpenClaw.
    openclaw: Option<openclaw::Worker>,
    /// Its devices.
    pub devices: Arc<Devices>,
    prewarming: prewarm::Prewarming,
    person: Mutex<Person>,
    drives: Mutex<drives::Drives>,
    work: Mutex<Work>,
    shutdown: mpsc::UnboundedSender<Duration>,
}

/// What Personalize said.
#[derive(Debug, Default)]
struct Person {
    generation: Generation,
    identity: Option<Identity>,
}

#[derive(Debug, Default)]
struct Work {
    role: Role,
    is_ready: bool,
    /// When services were last told to work, in seconds since 1970.
    last_busy_at: u64,
}

impl Machine {
    /// The machine as it is after boot. What comes out beside it are requests to switch it off, with the time that
    /// services may take.
    ///
    /// # Errors
    /// Something is missing without which it could never be personalized.
    pub fn new(devices: Devices) -> Result<(Self, mpsc::UnboundedReceiver<Duration>)> {
        let (shutdown, requested) = mpsc::unbounded_channel();
        let children = Arc::new(Children::default());
        let services = read_services();
        let machine = Self {
            openclaw: openclaw::Worker::of(&services)?,
            services,
            supervisor: Supervisor::new(Arc::clone(&children)),
            children,
            streams: Arc::default(),
            host: HostLink::default(),
            devices: Arc::new(devices),
            prewarming: prewarm::Prewarming::default(),
            person: Mutex::default(),
            drives: Mutex::default(),
            work: Mutex::default(),
            shutdown,
        };
        Ok((machine, requested))
    }

    /// The last generation, and who the machine is.
    pub fn who(&self) -> (Generation, Option<InstanceId>) {
        let person = lock(&self.person);
        (person.generation, person.identity.as_ref().map(|identity| identity.instance_id))
    }

    /// Runs the image's prewarm, where it has one and it was not done, and looks whether the machine may become a base; the inner
    /// error says why not.
    ///
    /// # Errors
    /// The machine is somebody's already, or the prewarm runs.
    pub async fn prewarm(&self) -> Result<Result<()>> {
        let turn = {
            let person = lock(&self.person);
            if person.generation > 0 {
                let reason = "the machine was personalized: only one that is nobody's yet is prewarmed";
                return Err(Failure::new("prewarming", reason));
            }
            self.prewarming.begin()?
        };
        let Some(turn) = turn else { return Ok(Ok(())) };
        let ServicesFile { prewarm, users, .. } = &self.services;
        Ok(turn.run(prewarm.as_ref(), users, &self.children, self.devices.base_check()?).await)
    }

    /// Becomes a machine, or the same one at another time. May block.
    ///
    /// # Errors
    /// A generation that is not higher, an identity that does not fit, or a step that failed. The generation counts as
    /// taken even then.
    pub fn personalize(
        &self,
        generation: Generation,
        identity: Option<Identity>,
        clock: Clock,
        seed: &SecretBytes,
    ) -> Result<GuestReply> {
        let mut person = lock(&self.person);
        let refuse = |reason: String| Err(Failure::new("personalizing", reason));
        if generation <= person.generation {
            return refuse(format!("generation {generation} is not higher than {}", person.generation));
        }
        match (&person.identity, &identity) {
            (None, None) => return refuse("the machine has no identity yet: send one".to_owned()),
            (Some(old), Some(new)) if old.instance_id != new.instance_id => {
                return refuse(format!("the machine is {} and cannot become another", old.instance_id));
            }
            _ => {}
        }
        self.prewarming.require_rest("personalizing")?;
        person.generation = generation;
        // Whatever was made of the generator before may have been made in another machine too.
        self.devices.credit(seed)?;
        self.devices.step_clock(clock)?;
        let identity_applied = identity.is_some();
        // One that was applied is in place as a whole: a wake has nothing to do for it.
        if let Some(new) = identity.filter(|new| person.identity.as_ref() != Some(new)) {
            self.devices.take_identity(&new, person.identity.as_ref(), &self.services.users)?;
            person.identity = Some(new);
        }
        self.prewarming.signal_remains()?;
        Ok(GuestReply::Personalized { generation, seed_credited: true, identity_applied })
    }

    fn require_identity(&self, doing: &str) -> Result<()> {
        match lock(&self.person).identity {
            Some(_) => Ok(()),
            None => Err(Failure::new(doing, "the machine is not personalized yet: send Personalize first")),
        }
    }

    /// Replaces config or secrets, or both at once. May block.
    ///
    /// # Errors
    /// Too much, names that are none, or no room: everything is as it was then. Or OpenClaw cannot be given what is its:
    /// all else is as it was sent.
    pub fn update(&self, config: Option<ConfigFiles>, secrets: Option<SecretFiles>) -> Result<()> {
        self.require_identity("updating config and secrets")?;
        let role = match &config {
            Some(files) => role_of(files)?,
            None => None,
        };
        let mut drives = lock(&self.drives);
        let is_new = drives.replace(&self.services, config, secrets)?;
        let configured = match (&self.openclaw, drives.config("config.json")) {
            (Some(openclaw), Some(config)) => openclaw.configure(config, drives.secret(openclaw::TOKEN)),
            _ => Ok(()),
        };
        drop(drives);
        if let Some(role) = role {
            lock(&self.work).role = role;
            self.streams.set_gateway(role == Role::Gateway);
        }
        if is_new {
            self.supervisor.routes_changed();
        }
        configured
    }

    /// Starts the services, or those that are down, and waits until all are ready; the inner error says which one
    /// was not.
    ///
    /// # Errors
    /// The machine is not personalized, or with another generation; a service that cannot be started at all.
    pub async fn wake(
        &self,
        generation: Generation,
        cancelled: bool,
    ) -> Result<std::result::Result<(), String>> {
        self.require_identity("waking")?;
        let current = self.who().0;
        if generation != current {
            let reason = format!("generation {generation} was named, but the last Personalize had {current}");
            return Err(Failure::new("waking", reason));
        }
        if let Some(openclaw) = &self.openclaw {
            openclaw.resume().await;
        }
        if cancelled {
            // Nothing was stopped for the sleep, so there is nothing to start.
            return Ok(Ok(()));
        }
        let role = {
            let mut work = lock(&self.work);
            work.last_busy_at = self.devices.now_seconds();
            work.role
        };
        self.supervisor.start(&self.services, role == Role::Gateway)?;
        let ready = self.supervisor.ready().await;
        lock(&self.work).is_ready = ready.is_ok();
        Ok(ready)
    }

    /// Has the workload finish or park what it has in hand, within this, and brings everything to the disk.
    pub async fn prepare_sleep(&self, drain: Duration) -> GuestReply {
        let suspended = match &self.openclaw {
            Some(openclaw) => openclaw.suspend(drain).await,
            None => Ok(None),
        };
        let refused = |detail| GuestReply::SleepPrepAck { success: false, detail, wake_at: None };
        let wake_at = match suspended {
            Ok(wake_at) => wake_at,
            Err(detail) => return refused(detail),
        };
        let devices = Arc::clone(&self.devices);
        let flushed = match tokio::task::spawn_blocking(move || devices.flush()).await {
            Ok(flushed) => flushed.map_err(|failure| failure.to_string()),
            Err(ended) => Err(ended.to_string()),
        };
        match flushed {
            Ok(()) => GuestReply::SleepPrepAck { success: true, detail: String::new(), wake_at },
            Err(detail) => {
                if let Some(openclaw) = &self.openclaw {
                    openclaw.resume().await;
                }
                refused(detail)
            }
        }
    }

    /// Whether the workload has work. One that cannot say so counts as idle when it is ready.
    pub async fn worker_status(&self) -> GuestReply {
        let activity = match &self.openclaw {
            Some(openclaw) => Some(openclaw.activity().await),
            None => None,
        };
        let mut work = lock(&self.work);
        let status = match activity {
            Some(activity) if activity.is_busy => {
                work.last_busy_at = self.devices.now_seconds();
                WorkerStatus::Busy
            }
            Some(activity) if activity.is_starting => WorkerStatus::Starting,
            _ if work.is_ready => WorkerStatus::Idle,
            _ => WorkerStatus::Starting,
        };
        let last_activity = activity.map_or(0, |activity| activity.last_activity);
        work.last_busy_at = work.last_busy_at.max(last_activity);
        GuestReply::WorkerStatus { status, last_busy_at: work.last_busy_at }
    }

    /// The integrations that the workload knows, and how they are.
    pub async fn integrations(&self) -> BTreeMap<String, IntegrationStatus> {
        match &self.openclaw {
            Some(openclaw) => openclaw.integrations().await,
            None => BTreeMap::new(),
        }
    }

    /// Whether the state of integrations is safe, so that a sleep loses none of it. OpenClaw keeps theirs on the data disk
    /// as it takes each message, so those that it knows are.
    pub async fn checkpoint(&self, names: &[String]) -> GuestReply {
        let failed: Vec<String> = match &self.openclaw {
            Some(openclaw) => {
                let known = openclaw.integrations().await;
                names.iter().filter(|name| !known.contains_key(*name)).cloned().collect()
            }
            None => Vec::new(),
        };
        let detail = if failed.is_empty() { "" } else { "OpenClaw has no such channel" };
        GuestReply::CheckpointResult { success: failed.is_empty(), failed, detail: detail.to_owned() }
    }

    /// Asks for the end of the machine.
    pub fn shut_down(&self, grace: Duration) {
        // Nobody receives once the end has begun.
        let _ = self.shutdown.send(grace);
    }

    /// Ends services and every other process, and takes /data out of use.
    pub async fn stop(&self, grace: Duration) {
        self.supervisor.stop(grace).await;
        crate::sys::signal_everyone(libc::SIGKILL);
        self.devices.release().await;
    }
}

/// An image without a list of services runs none.
fn read_services() -> ServicesFile {
    let read = fs::read(SERVICES_PATH).map_err(|error| error.to_string());
    let parsed = read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
    parsed.unwrap_or_else(|reason| {
        say(format_args!("{SERVICES_PATH}: {reason}; no services are started"));
        ServicesFile::default()
    })
}

/// The role that a config names; none where there is no `config.json`.
fn role_of(files: &ConfigFiles) -> Result<Option<Role>> {
    let Some(text) = files.get("config.json") else { return Ok(None) };
    serde_json::from_str::<MachineConfig>(text)
        .map(|config| Some(config.role))
        .map_err(|error| Failure::new("reading config.json", error))
}
