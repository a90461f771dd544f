//! What the guest does for a service that is OpenClaw: it makes its config file, suspends it before a sleep and resumes it
//! after, and asks it what it does.
//!
//! It is suspended by asking until it has nothing in hand, and not by having it drain: a turn that has only just begun when
//! a drain does is answered with an excuse ("Gateway is restarting", 2026.9.6). A question that it says "busy" to changes
//! nothing. Messages that come meanwhile, and while it is suspended, it takes durably and answers after it was resumed.

mod config;
mod rpc;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use mvm_model::service::{Adapter, Service, ServicesFile};
use mvm_protocol::SecretBytes;
use mvm_protocol::control::{IntegrationStatus, MachineConfig};
use mvm_protocol::openclaw::{CONTROL_PORT, OpenClaw, WEBHOOK_PORT};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::console::say;
use crate::error::{Doing as _, Failure, Result};
use crate::lock;
use crate::services::account::Account;
use rpc::{Rpc, RpcError};

/// The secret with which a worker's OpenClaw is asked, as scope and key.
pub const TOKEN: (&str, &str) = ("openclaw", "OPENCLAW_GATEWAY_TOKEN");
/// Where the files are that the config refers to.
const SECRETS: &str = "/run/openclaw";
/// Who asks for a suspension. The same name renews one that got lost on the way.
const REQUEST_ID: &str = "mvm-guest";
/// Pause before it is asked again whether it has nothing in hand any more: it takes 30 such questions a minute.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// For so long an answer about its work is not asked for again.
const FRESH: Duration = Duration::from_secs(10);
/// How often a resume is tried. Without any it goes on by itself two minutes after it was suspended.
const RESUME_TRIES: u32 = 3;

/// Where things of OpenClaw are.
#[derive(Debug, Clone)]
struct Places {
    /// The config file's folder, which is its state folder too, and the file's name in it.
    folder: PathBuf,
    config_name: String,
    secrets: PathBuf,
    control_port: u16,
    webhook_port: u16,
}

impl Places {
    fn of(service: &Service) -> Result<Self> {
        let path = service.environment.get("OPENCLAW_CONFIG_PATH").map(Path::new);
        let parts = path.and_then(|path| Some((path.parent()?, path.file_name()?.to_str()?)));
        let (folder, name) = parts.ok_or_else(|| {
            let remedy = "its environment must say in OPENCLAW_CONFIG_PATH where its config file is";
            Failure::new(format_args!("configuring service `{}`", service.name), remedy)
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            config_name: name.to_owned(),
            secrets: SECRETS.into(),
            control_port: CONTROL_PORT,
            webhook_port: WEBHOOK_PORT,
        })
    }
}

/// The machine's OpenClaw.
#[derive(Debug)]
pub struct Worker {
    places: Places,
    uid: u32,
    access: Mutex<Access>,
    /// Held by whoever opens or closes it to new work.
    admission: tokio::sync::Mutex<Admission>,
}

/// With what it is asked; nothing before the machine has its secrets.
#[derive(Debug, Default)]
struct Access {
    token: Option<String>,
    /// Counts tokens. It is part of the files' place, so that a new one is a new config, which OpenClaw watches.
    version: u64,
}

#[derive(Debug, Default)]
struct Admission {
    /// The suspension that is in force, as far as is known.
    suspension: Option<String>,
    /// What it did when it was last asked, and when that was.
    asked: Option<(Instant, Activity)>,
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// It has work in hand.
    pub is_busy: bool,
    /// When something last happened in a conversation, in seconds since 1970; 0 where that is not known.
    pub last_activity: u64,
}

/// What comes of a question whether it has nothing in hand.
enum Answer {
    Suspended(String),
    Busy { with: String },
    Later { reason: String, after: Duration },
    Down,
}

impl Worker {
    /// The adapter of an image that has such a service.
    ///
    /// # Errors
    /// The service does not say where its config is, or its user is unknown.
    pub fn of(services: &ServicesFile) -> Result<Option<Self>> {
        let is_openclaw = |service: &&Service| service.adapter == Some(Adapter::OpenClaw);
        let Some(service) = services.services.iter().find(is_openclaw) else { return Ok(None) };
        let account = Account::find(&services.users, service.user.as_deref())?;
        Ok(Some(Self::new(Places::of(service)?, account.uid)))
    }

    fn new(places: Places, uid: u32) -> Self {
        Self { places, uid, access: Mutex::default(), admission: tokio::sync::Mutex::default() }
    }

    /// Makes its config from the machine's. It may run: it watches the file and takes over what is new. May block.
    ///
    /// # Errors
    /// A block that cannot be read, or the disk's.
    pub fn configure(&self, config: &str, token: Option<&SecretBytes>) -> Result<()> {
        let doing = "configuring OpenClaw";
        let config: MachineConfig = serde_json::from_str(config).doing(doing)?;
        let (Some(OpenClaw::Worker(worker)), Some(token)) = (config.openclaw, token) else {
            // A machine with this image that is nobody's worker has nothing to be told.
            return Ok(());
        };
        let token = std::str::from_utf8(token.expose()).map_err(std::io::Error::other).doing(doing)?.trim();
        let mut access = lock(&self.access);
        let is_new = access.token.as_deref() != Some(token);
        let version = access.version + u64::from(is_new);
        let folder = self.places.secrets.join(version.to_string());
        if is_new {
            self.write_secrets(&folder, token)?;
        }
        config::write(&self.places, self.uid, &worker, &folder)?;
        *access = Access { token: Some(token.to_owned()), version };
        self.remove_secrets_but(version);
        Ok(())
    }

    fn write_secrets(&self, folder: &Path, token: &str) -> Result<()> {
        let doing = || format!("making {}", folder.display());
        // Of an earlier try.
        let _ = fs::remove_dir_all(folder);
        DirBuilder::new().recursive(true).mode(0o755).create(folder).doing(doing())?;
        let files = config::Folder::open(folder, self.uid)?;
        config::secret_files(token)
            .iter()
            .try_for_each(|(name, text)| files.write(name, 0o400, text.as_bytes()))
    }

    fn remove_secrets_but(&self, version: u64) {
        for entry in fs::read_dir(&self.places.secrets).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy() == version.to_string() {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                say(format_args!("removing {}: {error}", entry.path().display()));
            }
        }
    }

    fn rpc(&self) -> Option<Rpc> {
        let token = lock(&self.access).token.clone()?;
        Some(Rpc { port: self.places.control_port, token })
    }

    /// Waits until it has nothing in hand and suspends it, and says when it wants to go on, in seconds since 1970. One that
    /// does not run is as good as suspended.
    ///
    /// # Errors
    /// What it has in hand, or why it cannot be asked. It goes on as before then.
    pub async fn suspend(&self, within: Duration) -> std::result::Result<Option<u64>, String> {
        let Some(rpc) = self.rpc() else { return Ok(None) };
        let mut admission = self.admission.lock().await;
        resume(&rpc, &mut admission).await;
        let deadline = Instant::now() + within;
        loop {
            // Not answered any more once it is suspended.
            let wake_at = match next_wake(&rpc).await {
                Ok(wake_at) => wake_at,
                Err(RpcError::Down) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            let (reason, pause) = match ask(&rpc).await {
                Ok(Answer::Suspended(id)) => {
                    admission.suspension = Some(id);
                    return Ok(wake_at);
                }
                Ok(Answer::Down) => return Ok(wake_at),
                Ok(Answer::Busy { with }) => (format!("OpenClaw is busy: {with}"), ASK_AGAIN),
                Ok(Answer::Later { reason, after }) => (reason, after),
                Err(error) => return Err(error.to_string()),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(reason);
            }
            sleep(pause.min(left)).await;
        }
    }

    /// Lets it go on where it was suspended.
    pub async fn resume(&self) {
        if let Some(rpc) = self.rpc() {
            resume(&rpc, &mut *self.admission.lock().await).await;
        }
    }

    /// What it does. One that is suspended or does not run, or cannot be asked, has nothing to do.
    pub async fn activity(&self) -> Activity {
        let idle = Activity { is_busy: false, last_activity: 0 };
        let Some(rpc) = self.rpc() else { return idle };
        let Ok(mut admission) = self.admission.try_lock() else {
            // Somebody waits until it has nothing in hand.
            return Activity { is_busy: true, ..idle };
        };
        if admission.suspension.is_some() {
            return admission.asked.map_or(idle, |(_, activity)| Activity { is_busy: false, ..activity });
        }
        let asked = admission.asked.filter(|(at, _)| at.elapsed() < FRESH);
        if let Some((_, activity)) = asked {
            return activity;
        }
        let activity = match ask_what_it_does(&rpc, &mut admission).await {
            Ok(activity) => activity,
            Err(error) => {
                say(format_args!("asking OpenClaw what it does: {error}"));
                idle
            }
        };
        admission.asked = Some((Instant::now(), activity));
        activity
    }

    /// How its channels are, by name.
    pub async fn integrations(&self) -> BTreeMap<String, IntegrationStatus> {
        let Some(rpc) = self.rpc() else { return BTreeMap::new() };
        let is_suspended = self.admission.try_lock().is_ok_and(|admission| admission.suspension.is_some());
        let all = |status| BTreeMap::from([("telegram".to_owned(), status)]);
        if is_suspended {
            return all(IntegrationStatus::Paused);
        }
        match rpc.call("channels.status", json!({})).await {
            Ok(answer) => statuses(&answer),
            Err(RpcError::Down) => all(IntegrationStatus::Pending),
            Err(error) => {
                say(error);
                all(IntegrationStatus::Error)
            }
        }
    }
}

/// Each channel, by its account that is worst off.
fn statuses(answer: &Value) -> BTreeMap<String, IntegrationStatus> {
    let of_account = |account: &Value| {
        if account["connected"] == true {
            IntegrationStatus::Active
        } else if account["lastError"].is_string() {
            IntegrationStatus::Error
        } else {
            IntegrationStatus::Pending
        }
    };
    let channels = answer["channelAccounts"].as_object().into_iter().flatten();
    channels
        .filter_map(|(name, accounts)| {
            let statuses: Vec<_> = accounts.as_array()?.iter().map(of_account).collect();
            let worst = [IntegrationStatus::Error, IntegrationStatus::Pending, IntegrationStatus::Active];
            Some((name.clone(), worst.into_iter().find(|status| statuses.contains(status))?))
        })
        .collect()
}

/// When its scheduler wants to go on, in seconds since 1970. Heartbeats are among its jobs.
async fn next_wake(rpc: &Rpc) -> std::result::Result<Option<u64>, RpcError> {
    let status = rpc.call("cron.status", json!({})).await?;
    let next = status["nextWakeAtMs"].as_u64().filter(|_| status["enabled"] == true);
    Ok(next.map(|millis| millis / 1000))
}

/// Asks whether it has nothing in hand, and closes it to new work then.
async fn ask(rpc: &Rpc) -> std::result::Result<Answer, RpcError> {
    let answer = match rpc.call("gateway.suspend.prepare", json!({ "requestId": REQUEST_ID })).await {
        Ok(answer) => answer,
        Err(RpcError::Down) => return Ok(Answer::Down),
        Err(RpcError::Refused { message, retry_after: Some(after), .. }) => {
            return Ok(Answer::Later {
                reason: format!("OpenClaw cannot be suspended now: {message}"),
                after,
            });
        }
        Err(error) => return Err(error),
    };
    if let ("ready", Some(id)) =
        (answer["status"].as_str().unwrap_or_default(), answer["suspensionId"].as_str())
    {
        return Ok(Answer::Suspended(id.to_owned()));
    }
    Ok(Answer::Busy { with: blockers(&answer) })
}

fn blockers(answer: &Value) -> String {
    let messages = answer["blockers"].as_array().into_iter().flatten();
    let messages: Vec<_> = messages.filter_map(|blocker| blocker["message"].as_str()).collect();
    if messages.is_empty() { "it does not say with what".to_owned() } else { messages.join(", ") }
}

/// None of its answers tells of a turn that runs, but the one to whether it can be suspended. It is open again within
/// milliseconds, and messages do not need it open.
async fn ask_what_it_does(rpc: &Rpc, admission: &mut Admission) -> std::result::Result<Activity, RpcError> {
    let mut activity = Activity { is_busy: false, last_activity: 0 };
    match rpc.call("status", json!({})).await {
        Ok(status) => activity.last_activity = last_activity(&status),
        Err(RpcError::Down) => return Ok(activity),
        Err(error) => return Err(error),
    }
    match ask(rpc).await? {
        Answer::Suspended(id) => {
            admission.suspension = Some(id);
            resume(rpc, admission).await;
        }
        Answer::Busy { .. } => activity.is_busy = true,
        Answer::Later { .. } | Answer::Down => {}
    }
    Ok(activity)
}

/// Of all conversations, in seconds since 1970.
fn last_activity(status: &Value) -> u64 {
    let recent = status["sessions"]["recent"].as_array().into_iter().flatten();
    recent.filter_map(|session| session["updatedAt"].as_u64()).max().unwrap_or_default() / 1000
}

async fn resume(rpc: &Rpc, admission: &mut Admission) {
    let Some(id) = admission.suspension.take() else { return };
    // What it did was before the sleep.
    admission.asked = None;
    for _ in 0..RESUME_TRIES {
        match rpc.call("gateway.suspend.resume", json!({ "suspensionId": id })).await {
            Ok(_) | Err(RpcError::Down) => return,
            Err(RpcError::Refused { retry_after: Some(after), .. }) => sleep(after.min(ASK_AGAIN)).await,
            Err(error) => return say(format_args!("resuming OpenClaw: {error}")),
        }
    }
    say("resuming OpenClaw: it does not take it, and goes on by itself in two minutes at most");
}
