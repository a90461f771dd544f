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

use mvm_model::openclaw::{SCOPE, WORKER_TOKEN_KEY};
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
pub const TOKEN: (&str, &str) = (SCOPE, WORKER_TOKEN_KEY);
/// Where the files are that the config refers to.
const SECRETS: &str = "/run/openclaw";
/// Who asks for a suspension. The same name renews one that got lost on the way.
const REQUEST_ID: &str = "mvm-guest";
/// Pause before it is asked again whether it has nothing in hand any more: it takes 30 such questions a minute.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// For so long an answer about its work is not asked for again.
const FRESH: Duration = Duration::from_secs(10);
/// Without a resume it goes on by itself so long after it was suspended.
const LASTS: Duration = Duration::from_secs(120);
/// How often a resume is tried, with what pause.
const RESUME_TRIES: u32 = 4;
const RESUME_PAUSE: Duration = Duration::from_millis(500);
/// How long a resume, or a question what it does, may take with all its calls.
const ACT: Duration = Duration::from_secs(15);
/// How much longer than its drain a suspension may take.
const BEYOND: Duration = Duration::from_secs(5);
/// One that does not run for so long is no longer waited for.
const STARTS_WITHIN: Duration = Duration::from_secs(300);

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

/// With what it is asked, and what its secrets are made of; nothing before the machine has them.
#[derive(Debug, Default)]
struct Access {
    token: Option<String>,
    telegram: Option<i64>,
    /// Counts what they were made of. It is part of the files' place, so that new ones are a new config, which OpenClaw
    /// watches, and one that it has not taken over yet never leads to them.
    version: u64,
}

#[derive(Debug, Default)]
struct Admission {
    /// The suspension that is in force, as far as is known.
    suspension: Option<Suspension>,
    /// It was to be resumed, and that came to nothing so far.
    to_resume: bool,
    /// Since when it does not run.
    down_since: Option<Instant>,
    /// When it wants to go on, as it said last, in seconds since 1970.
    next_wake: Option<u64>,
    /// What it did when it was last asked, and when that was.
    asked: Option<(Instant, Activity)>,
}

#[derive(Debug)]
struct Suspension {
    id: String,
    ends: Instant,
}

impl Admission {
    fn suspend(&mut self, id: String) {
        self.suspension = Some(Suspension { id, ends: Instant::now() + LASTS });
        self.to_resume = false;
    }

    fn is_suspended(&self) -> bool {
        self.suspension.as_ref().is_some_and(|suspension| Instant::now() < suspension.ends)
    }

    /// It does not run: whether it may be about to.
    fn may_start(&mut self) -> bool {
        self.down_since.get_or_insert_with(Instant::now).elapsed() < STARTS_WITHIN
    }
}

/// What it does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// It does not run, and should soon.
    pub is_starting: bool,
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
        let is_new = (access.token.as_deref(), access.telegram) != (Some(token), worker.telegram);
        let version = access.version + u64::from(is_new);
        let folder = self.places.secrets.join(version.to_string());
        if is_new {
            self.write_secrets(&folder, token, worker.telegram)?;
        }
        // Its folder is its user's, who may have put anything there: nothing else is to suffer from that.
        if let Err(failure) = config::write(&self.places, self.uid, &worker, &folder) {
            say(format_args!("{failure}; OpenClaw goes on with the config that it has"));
            if access.token.is_some() {
                // And with the secrets to which that refers.
                return Ok(());
            }
        }
        *access = Access { token: Some(token.to_owned()), telegram: worker.telegram, version };
        self.remove_secrets_but(version);
        Ok(())
    }

    fn write_secrets(&self, folder: &Path, token: &str, telegram: Option<i64>) -> Result<()> {
        let doing = || format!("making {}", folder.display());
        // Of an earlier try.
        let _ = fs::remove_dir_all(folder);
        DirBuilder::new().recursive(true).mode(0o755).create(folder).doing(doing())?;
        let files = config::Folder::of_root(folder, self.uid)?;
        config::secret_files(token, telegram)
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

    fn rpc(&self, within: Duration) -> Option<Rpc> {
        let token = lock(&self.access).token.clone()?;
        Some(Rpc { port: self.places.control_port, token, until: Instant::now() + within })
    }

    /// Waits until it has nothing in hand and suspends it, and says when it wants to go on, in seconds since 1970. One that
    /// has not run for minutes is as good as suspended.
    ///
    /// # Errors
    /// What it has in hand, or why it cannot be asked. It goes on as before then.
    pub async fn suspend(&self, within: Duration) -> std::result::Result<Option<u64>, String> {
        let Some(rpc) = self.rpc(within + BEYOND) else { return Ok(None) };
        let deadline = Instant::now() + within;
        let Ok(mut admission) = tokio::time::timeout(within + BEYOND, self.admission.lock()).await else {
            return Err("OpenClaw is being asked something else".to_owned());
        };
        resume(&rpc, &mut admission).await;
        loop {
            let answer = match note_next_wake(&rpc, &mut admission).await {
                Ok(()) => ask(&rpc).await,
                Err(RpcError::Down) => Ok(Answer::Down),
                Err(error) => Err(error),
            };
            let (reason, pause) = match answer {
                Ok(Answer::Suspended(id)) => {
                    admission.suspend(id);
                    return Ok(admission.next_wake);
                }
                Ok(Answer::Down) if !admission.may_start() => return Ok(admission.next_wake),
                Ok(Answer::Down) => ("OpenClaw does not run: it starts, or should".to_owned(), ASK_AGAIN),
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
        if let Some(rpc) = self.rpc(ACT)
            && let Ok(mut admission) = tokio::time::timeout(ACT, self.admission.lock()).await
        {
            resume(&rpc, &mut admission).await;
        }
    }

    /// What it does. One that is suspended, has not run for minutes, or cannot be asked, has nothing to do.
    pub async fn activity(&self) -> Activity {
        let idle = Activity::default();
        let Some(rpc) = self.rpc(ACT) else { return idle };
        let Ok(mut admission) = self.admission.try_lock() else {
            // Somebody waits until it has nothing in hand.
            return Activity { is_busy: true, ..idle };
        };
        if admission.to_resume {
            resume(&rpc, &mut admission).await;
        }
        if admission.is_suspended() {
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
        let Some(rpc) = self.rpc(ACT) else { return BTreeMap::new() };
        let is_suspended = self.admission.try_lock().is_ok_and(|admission| admission.is_suspended());
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

/// Asks when its scheduler wants to go on. Heartbeats are among its jobs. Not answered any more once it is suspended.
async fn note_next_wake(rpc: &Rpc, admission: &mut Admission) -> std::result::Result<(), RpcError> {
    let status = rpc.call("cron.status", json!({})).await?;
    let next = status["nextWakeAtMs"].as_u64().filter(|_| status["enabled"] == true);
    admission.next_wake = next.map(|millis| millis / 1000);
    admission.down_since = None;
    Ok(())
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
    let mut activity = Activity::default();
    match rpc.call("status", json!({})).await {
        Ok(status) => activity.last_activity = last_activity(&status),
        Err(RpcError::Down) => return Ok(Activity { is_starting: admission.may_start(), ..activity }),
        Err(error) => return Err(error),
    }
    admission.down_since = None;
    // For when it is gone without a word. A suspension that was not resumed refuses it.
    match note_next_wake(rpc, admission).await {
        Ok(()) | Err(RpcError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    match ask(rpc).await? {
        Answer::Suspended(id) => {
            admission.suspend(id);
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

/// Its id is given up only when it is known to be of no use any more.
async fn resume(rpc: &Rpc, admission: &mut Admission) {
    let Some(Suspension { id, .. }) = &admission.suspension else { return };
    let params = json!({ "suspensionId": id });
    // What it did was before the sleep.
    admission.asked = None;
    admission.to_resume = true;
    for _ in 0..RESUME_TRIES {
        let pause = match rpc.call("gateway.suspend.resume", params.clone()).await {
            Ok(_) | Err(RpcError::Down) => None,
            Err(RpcError::Refused { retry_after: Some(after), .. }) => Some(after.min(ASK_AGAIN)),
            Err(error @ RpcError::Refused { .. }) => {
                say(format_args!("resuming OpenClaw: {error}"));
                None
            }
            Err(error @ RpcError::Broken { .. }) => {
                say(format_args!("resuming OpenClaw: {error}"));
                Some(RESUME_PAUSE)
            }
        };
        let left = rpc.until.saturating_duration_since(Instant::now());
        match pause {
            None => {
                (admission.suspension, admission.to_resume) = (None, false);
                return;
            }
            Some(pause) if pause < left => sleep(pause).await,
            Some(_) => break,
        }
    }
    say("resuming OpenClaw: it does not take it yet, and goes on by itself in two minutes at most");
}
