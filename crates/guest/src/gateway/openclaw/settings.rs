//! Who is served, by which worker, with which keys.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use mvm_model::Endpoints;
use mvm_model::openclaw::{SCOPE, TOKEN_KEY};
use mvm_protocol::openclaw::{
    AssignedWorker, GatewayConfig, OpenClaw, Served, worker_bot_token, worker_token,
};
use serde::Deserialize;
use tokio::time::Instant;

use super::super::{GatewayError, note};
use super::OpenClawConfig;
use crate::lock;

/// Where the bot's token is, below the secrets.
pub(super) const BOT_TOKEN: &str = "telegram/TELEGRAM_BOT_TOKEN";
/// Where the key of the models is.
pub(super) const MODEL_KEY: &str = "anthropic/ANTHROPIC_API_KEY";

/// A snapshot; a call that began with it ends with it.
pub(super) struct Settings {
    pub(super) endpoints: Endpoints,
    pub(super) people: Vec<Person>,
    /// None: Telegram is left alone.
    pub(super) bot: Option<BotToken>,
    /// None: there are no models.
    pub(super) model_key: Option<String>,
    /// Those of the keys that a service has refused.
    refused: Mutex<BTreeSet<&'static str>>,
}

/// Somebody who is served.
pub(super) struct Person {
    pub(super) served: Served,
    /// None where they have no worker at present.
    pub(super) worker: Option<Worker>,
}

/// Their worker, and what it knows.
pub(super) struct Worker {
    pub(super) assigned: AssignedWorker,
    /// What it says to the model API.
    pub(super) token: String,
    /// What it says to the Bot API.
    pub(super) bot_token: String,
    /// What it knew before, and may still say.
    former: Vec<Former>,
}

/// A worker's tokens from before the key was replaced that they are made of.
#[derive(Clone)]
struct Former {
    token: String,
    bot_token: String,
    until: Instant,
}

/// A token of Telegram's: `<bot id>:<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct BotToken {
    id: u64,
    text: String,
}

#[derive(Deserialize)]
struct MachineFile {
    #[serde(default)]
    openclaw: Option<OpenClaw>,
}

impl Settings {
    /// None where the machine is no gateway of an OpenClaw tenant.
    ///
    /// # Errors
    /// A file that cannot be read or is not what it should be.
    pub(super) async fn load(config: &OpenClawConfig) -> Result<Option<Settings>, GatewayError> {
        let Some(gateway) = read_block(&config.machine_config).await? else { return Ok(None) };
        let secret = async |name: &str| read_secret(&config.secrets.join(name)).await;
        let path = config.secrets.join(SCOPE).join(TOKEN_KEY);
        let Some(key) = read_secret(&path).await? else {
            return Err(GatewayError::File { path, source: io::ErrorKind::NotFound.into() });
        };
        let bot = secret(BOT_TOKEN).await?;
        // The rest works without it.
        let bot =
            bot.and_then(|text| BotToken::parse(&text).inspect_err(|error| note(&error.to_string())).ok());
        let model_key = secret(MODEL_KEY).await?;
        let model_key = model_key.map(|key| String::from_utf8_lossy(&key).trim().to_owned());
        let people = gateway.users.into_iter().map(|served| Person::new(served, &key)).collect();
        let refused = Mutex::default();
        Ok(Some(Settings { endpoints: gateway.endpoints, people, bot, model_key, refused }))
    }

    /// A service has refused a key, [`BOT_TOKEN`] or [`MODEL_KEY`]; whether for the first time.
    pub(super) fn refuse(&self, key: &'static str) -> bool {
        lock(&self.refused).insert(key)
    }

    /// Takes over from `earlier` what workers still know, whose turns in hand go on with it for `how_long`.
    pub(super) fn follow(&mut self, earlier: &Settings, how_long: Duration) {
        let now = Instant::now();
        for worker in self.people.iter_mut().filter_map(|person| person.worker.as_mut()) {
            let mut earlier = earlier.people.iter().filter_map(|person| person.worker.as_ref());
            let Some(before) = earlier.find(|it| it.assigned.instance_id == worker.assigned.instance_id)
            else {
                continue;
            };
            worker.former = before.former.iter().filter(|former| now < former.until).cloned().collect();
            if before.token != worker.token {
                let (token, bot_token) = (before.token.clone(), before.bot_token.clone());
                worker.former.push(Former { token, bot_token, until: now + how_long });
            }
        }
    }

    /// Whose private chat this is.
    pub(super) fn by_telegram(&self, id: i64) -> Option<&Person> {
        self.people.iter().find(|person| person.served.telegram == Some(id))
    }

    /// The worker that has this address, and whose it is.
    pub(super) fn by_address(&self, ip: Ipv4Addr) -> Option<(&Person, &Worker)> {
        let mut workers = self.people.iter().filter_map(|person| Some((person, person.worker.as_ref()?)));
        workers.find(|(_, worker)| worker.assigned.ip == ip)
    }

    /// Somebody by name.
    pub(super) fn by_name(&self, user: &str) -> Option<&Person> {
        self.people.iter().find(|person| person.served.user == user)
    }
}

/// Keys are not for logs.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("people", &self.people.len()).finish_non_exhaustive()
    }
}

impl Person {
    fn new(served: Served, key: &[u8]) -> Person {
        let worker = served.worker.clone().map(|assigned| {
            let token = worker_token(key, assigned.instance_id);
            Worker { bot_token: worker_bot_token(&token), token, assigned, former: Vec::new() }
        });
        Person { served, worker }
    }
}

impl Worker {
    /// Whether this is what it says to the model API.
    pub(super) fn has_token(&self, token: &str) -> bool {
        self.is_any_of(token, &self.token, |former| &former.token)
    }

    /// Whether this is what it says to the Bot API.
    pub(super) fn has_bot_token(&self, token: &str) -> bool {
        self.is_any_of(token, &self.bot_token, |former| &former.bot_token)
    }

    fn is_any_of(&self, token: &str, now: &str, before: impl Fn(&Former) -> &String) -> bool {
        let valid = self.former.iter().filter(|former| Instant::now() < former.until);
        same_secret(token, now) | valid.fold(false, |same, former| same | same_secret(token, before(former)))
    }
}

impl BotToken {
    fn parse(text: &[u8]) -> Result<BotToken, GatewayError> {
        let text = String::from_utf8_lossy(text).trim().to_owned();
        let parts = text.split_once(':');
        let secret =
            |secret: &str| secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let id =
            parts.filter(|(_, rest)| !rest.is_empty() && secret(rest)).and_then(|(id, _)| id.parse().ok());
        id.map(|id| BotToken { id, text }).ok_or_else(|| GatewayError::Variable {
            name: BOT_TOKEN,
            value: "(not shown)".to_owned(),
            expected: "a token as @BotFather gives it, <number>:<letters>,",
        })
    }

    /// The bot's own id, which stays when its token is changed.
    pub(super) fn bot_id(&self) -> u64 {
        self.id
    }

    /// All of it.
    pub(super) fn expose(&self) -> &str {
        &self.text
    }
}

async fn read_block(path: &Path) -> Result<Option<GatewayConfig>, GatewayError> {
    let text = match tokio::fs::read(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| GatewayError::File { path: path.to_owned(), source })?,
    };
    let file: MachineFile = serde_json::from_slice(&text)
        .map_err(|source| GatewayError::MachineConfig { path: path.to_owned(), source })?;
    Ok(match file.openclaw {
        Some(OpenClaw::Gateway(gateway)) => Some(gateway),
        Some(OpenClaw::Worker(_)) | None => None,
    })
}

/// None where there is no such file, or nothing in it.
async fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, GatewayError> {
    match tokio::fs::read(path).await {
        Ok(content) => Ok(Some(content).filter(|content| !content.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GatewayError::File { path: path.to_owned(), source }),
    }
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
fn same_secret(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}
