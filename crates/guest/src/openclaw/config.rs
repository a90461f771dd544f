//! OpenClaw's config file. Some of its keys are the machine's, the rest belongs to the person: what the assistant changed
//! there stays as it is.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use mvm_protocol::openclaw::{
    BOT_API_PATH, MODEL_API_PATH, WEBHOOK_PATH, WORKER_PORT, WorkerConfig, webhook_secret, worker_bot_token,
};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Uid, fchown, mkdirat, openat, renameat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use super::Places;
use crate::console::say;
use crate::error::{Doing as _, Failure, Result};

/// What an assistant answers with that has not chosen another model.
const DEFAULT_MODEL: &str = "anthropic/claude-sonnet-5";
/// What of OpenClaw is loaded beside what the person added.
const PLUGINS: [&str; 4] = ["admin-http-rpc", "anthropic", "memory-core", "telegram"];
/// The largest config file that is read, in bytes.
const LARGEST: u64 = 4 * 1024 * 1024;

/// The files with secrets that the config refers to, by name and content.
pub(super) fn secret_files(token: &str, telegram: Option<i64>) -> [(&'static str, String); 3] {
    [
        ("gateway", token.to_owned()),
        ("telegram-bot", worker_bot_token(token)),
        ("telegram-webhook", webhook_secret(token, telegram)),
    ]
}

/// The config file's new content, from what it says now.
pub(super) fn merged(mut config: Value, worker: &WorkerConfig, places: &Places, secrets: &Path) -> Value {
    if !config.is_object() {
        config = Value::Object(Map::new());
    }
    let allowed = allowed_plugins(&config);
    overlay(&mut config, fixed(worker, places, secrets));
    overlay(&mut config, json!({ "plugins": { "allow": allowed } }));
    fill(&mut config, defaults(worker, places));
    config
}

/// What holds whatever the file says.
fn fixed(worker: &WorkerConfig, places: &Places, secrets: &Path) -> Value {
    let gateway = |path: &str| format!("http://{}:{WORKER_PORT}{path}", worker.gateway_ip);
    let provider =
        |name: &str| json!({ "source": "file", "path": secrets.join(name), "mode": "singleValue" });
    let secret = |name: &str| json!({ "source": "file", "provider": name, "id": "value" });
    let senders: Vec<String> = worker.telegram.iter().map(i64::to_string).collect();
    json!({
        "gateway": {
            "mode": "local",
            // The webhook has a port of its own: nothing outside speaks with this one.
            "bind": "loopback",
            "port": places.control_port,
            "auth": { "mode": "token", "token": secret("mvm-gateway") },
            "controlUi": { "enabled": false },
            "http": { "endpoints": { "chatCompletions": { "enabled": true } } },
        },
        "secrets": { "providers": {
            "mvm-gateway": provider("gateway"),
            "mvm-telegram-bot": provider("telegram-bot"),
            "mvm-telegram-webhook": provider("telegram-webhook"),
        } },
        "plugins": { "entries": { "admin-http-rpc": { "enabled": true } } },
        "models": { "providers": { "anthropic": {
            "baseUrl": gateway(MODEL_API_PATH),
            "api": "anthropic-messages",
            "apiKey": secret("mvm-gateway"),
        } } },
        "channels": { "telegram": {
            "enabled": true,
            "botToken": secret("mvm-telegram-bot"),
            "apiRoot": gateway(BOT_API_PATH),
            // Only for its path: who is told of it is the gateway, which knows the machine by its address.
            "webhookUrl": format!("https://worker.invalid{WEBHOOK_PATH}"),
            "webhookSecret": secret("mvm-telegram-webhook"),
            "webhookPath": WEBHOOK_PATH,
            "webhookHost": "0.0.0.0",
            "webhookPort": places.webhook_port,
            // An empty list is refused.
            "dmPolicy": if senders.is_empty() { "disabled" } else { "allowlist" },
            "allowFrom": senders,
            "groupPolicy": "disabled",
            "streaming": { "mode": "off" },
            "network": { "dangerouslyAllowPrivateNetwork": true },
        } },
    })
}

/// What holds unless the file says something else. Nothing that would wake a machine which nobody asked for.
fn defaults(worker: &WorkerConfig, places: &Places) -> Value {
    let mut defaults = json!({
        "agents": { "defaults": { "model": { "primary": DEFAULT_MODEL }, "heartbeat": { "every": "0m" } } },
        "logging": { "file": places.folder.join("openclaw.log") },
        // Those that OpenClaw knows.
        "models": { "providers": { "anthropic": { "models": [] } } },
        "plugins": { "entries": { "memory-core": { "config": { "dreaming": { "enabled": false } } } } },
        "skills": { "workshop": { "autonomous": { "mode": "propose" } } },
        "update": { "checkOnStart": false },
    });
    if let Some(telegram) = worker.telegram {
        overlay(&mut defaults, json!({ "commands": { "ownerAllowFrom": [format!("telegram:{telegram}")] } }));
    }
    defaults
}

/// What was allowed, and what is needed.
fn allowed_plugins(config: &Value) -> Vec<Value> {
    let mut allowed = config["plugins"]["allow"].as_array().cloned().unwrap_or_default();
    for plugin in PLUGINS {
        if !allowed.iter().any(|there| there == plugin) {
            allowed.push(plugin.into());
        }
    }
    allowed
}

/// Puts `above` over `below`, key by key.
fn overlay(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                overlay(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

/// Adds the keys of `defaults` that are not there.
fn fill(config: &mut Value, defaults: Value) {
    let (Value::Object(config), Value::Object(defaults)) = (config, defaults) else { return };
    for (key, value) in defaults {
        match config.get_mut(&key) {
            Some(there) => fill(there, value),
            None => drop(config.insert(key, value)),
        }
    }
}

/// The folder of the config file, opened, so that its owner cannot lead a write elsewhere.
pub(super) struct Folder {
    fd: OwnedFd,
    uid: u32,
}

impl Folder {
    /// Opens the folder, which is made where it is not there, and gives it to its owner.
    ///
    /// # Errors
    /// Something else is there.
    pub(super) fn open(path: &Path, uid: u32) -> Result<Self> {
        let doing = || format!("making {}", path.display());
        match mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(doing()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = openat(CWD, path, flags, Mode::empty()).doing(doing())?;
        let folder = Self { fd, uid };
        folder.give(&folder.fd).doing(doing())?;
        Ok(folder)
    }

    /// Opens a folder that is there and stays its owner's; what is written to it is another user's.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn of_root(path: &Path, uid: u32) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = openat(CWD, path, flags, Mode::empty()).doing(format_args!("opening {}", path.display()))?;
        Ok(Self { fd, uid })
    }

    fn give(&self, file: &OwnedFd) -> io::Result<()> {
        Ok(fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.uid)))?)
    }

    /// What a file in it says; nothing where it is not there.
    ///
    /// # Errors
    /// It is no regular file, or too large.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>> {
        // A pipe without a writer would otherwise never be opened.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).doing(format_args!("opening {name}")),
        };
        let is_readable = file.metadata().is_ok_and(|found| found.is_file() && found.len() <= LARGEST);
        if !is_readable {
            return Err(Failure::new(format_args!("reading {name}"), "it is no file of at most 4 MiB"));
        }
        let mut text = String::new();
        file.take(LARGEST).read_to_string(&mut text).doing(format_args!("reading {name}"))?;
        Ok(Some(text))
    }

    /// Replaces a file as a whole.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn write(&self, name: &str, mode: u32, text: &[u8]) -> Result<()> {
        let written = self.new_file(&format!("{name}.mvm-new"), mode).and_then(|(new, mut file)| {
            file.write_all(text)?;
            file.sync_all()?;
            renameat(&self.fd, &new, &self.fd, name)?;
            Ok(rustix::fs::fsync(&self.fd)?)
        });
        written.doing(format_args!("writing {name}"))
    }

    /// A file that was not there; its owner may have put anything under the first names.
    fn new_file(&self, name: &str, mode: u32) -> io::Result<(String, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for name in names(name) {
            // One of an earlier try. Where it stays the next name is taken.
            let _ = unlinkat(&self.fd, &name, AtFlags::empty());
            match openat(&self.fd, &name, flags, Mode::from_raw_mode(mode)) {
                Ok(fd) => {
                    self.give(&fd)?;
                    return Ok((name, File::from(fd)));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Sets aside what cannot be gone on with, whatever it is, under a name that is free, and says which.
    ///
    /// # Errors
    /// The disk's, or no name is free.
    pub(super) fn set_aside(&self, name: &str) -> Result<String> {
        let doing = format!("setting {name} aside");
        for aside in names(&format!("{name}.unreadable")) {
            match renameat_with(&self.fd, name, &self.fd, &aside, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(aside),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).doing(doing),
            }
        }
        Err(Failure::new(doing, "there are a hundred of such already: remove them"))
    }
}

/// A name, and some more where it is taken.
fn names(name: &str) -> impl Iterator<Item = String> {
    let more = (2..=100).map(move |number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(more)
}

/// Brings the config file up to date, and tells whether it changed.
///
/// # Errors
/// The disk's.
pub(super) fn write(places: &Places, uid: u32, worker: &WorkerConfig, secrets: &Path) -> Result<bool> {
    let folder = Folder::open(&places.folder, uid)?;
    let name = places.config_name.as_str();
    let parse = |text: Option<String>| text.as_deref().map_or(Ok(Value::Null), serde_json::from_str);
    let read = folder.read(name).map_err(|failure| failure.to_string());
    let config = match read.and_then(|text| parse(text).map_err(|error| format!("{name}: {error}"))) {
        Ok(config) => config,
        Err(reason) => {
            let aside = folder.set_aside(name)?;
            say(format_args!("{reason}: it is kept as {aside}, and a new one is written"));
            Value::Null
        }
    };
    let new = merged(config.clone(), worker, places, secrets);
    if new == config {
        return Ok(false);
    }
    let mut text = serde_json::to_string_pretty(&new).doing(format_args!("writing {name}"))?;
    text.push('\n');
    folder.write(name, 0o600, text.as_bytes())?;
    Ok(true)
}
