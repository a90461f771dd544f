//! One-time links: whoever opens one first is its user from then on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use mvm_protocol::control::{HostReply, HostRequest};
use mvm_protocol::frame::{self, FrameError};
use sha2::{Digest as _, Sha256};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::durable;
use super::super::settings::{Person, Settings};
use crate::gateway::note;
use crate::lock;

/// How long the host may take.
const ASK: Duration = Duration::from_secs(30);

/// Who has become a user since the config was last given, in memory and on disk: the host says it once, and the config that
/// does comes later.
#[derive(Debug)]
pub(in super::super) struct Claims {
    path: PathBuf,
    made: Mutex<BTreeMap<i64, String>>,
    /// Held while they are written.
    writing: tokio::sync::Mutex<()>,
}

/// A link that somebody opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) code: String,
    /// Whose link it is.
    pub(super) user: String,
    pub(super) telegram: i64,
}

/// The host's word.
#[derive(Debug)]
pub(super) enum Claimed {
    /// They are this user.
    Is(String),
    /// They are not.
    Refused(String),
}

impl Claims {
    /// As they were written last. A file that cannot be read is left until somebody becomes a user.
    pub(in super::super) async fn open(path: PathBuf) -> Claims {
        let read = durable::read(&path).await.and_then(|text| match text {
            Some(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            None => Ok(BTreeMap::new()),
        });
        let made = read.unwrap_or_else(|error| {
            note(&format!("who has opened a link lately is not known: {}: {error}", path.display()));
            BTreeMap::new()
        });
        Claims { path, made: Mutex::new(made), writing: tokio::sync::Mutex::default() }
    }

    /// Whose private chat this is, those who have only just claimed it included.
    pub(in super::super) fn person<'a>(&self, settings: &'a Settings, telegram: i64) -> Option<&'a Person> {
        let known = settings.by_telegram(telegram);
        known.or_else(|| {
            let user = lock(&self.made).get(&telegram).cloned()?;
            settings.by_name(&user).filter(|person| person.served.telegram.is_none())
        })
    }

    /// Who they are to Telegram.
    pub(in super::super) fn telegram_of(&self, person: &Person) -> Option<i64> {
        person.served.telegram.or_else(|| {
            let made = lock(&self.made);
            made.iter().find(|(_, user)| **user == person.served.user).map(|(telegram, _)| *telegram)
        })
    }

    /// Whose link this code is of, if it can still be claimed.
    pub(super) fn find<'a>(&self, settings: &'a Settings, code: &str) -> Option<&'a str> {
        let digest = hex(&Sha256::digest(code));
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(u64::MAX, |since| since.as_secs());
        let person = settings.people.iter().find(|person| {
            let link = person.served.link.as_ref();
            link.is_some_and(|link| link.code_sha256.eq_ignore_ascii_case(&digest) && now < link.expires_at)
        })?;
        self.telegram_of(person).is_none().then_some(&person.served.user)
    }

    /// Whether this code has made them the user that they are.
    pub(super) fn has_opened(&self, settings: &Settings, telegram: i64, code: &str) -> bool {
        let user = lock(&self.made).get(&telegram).cloned();
        let person = user.and_then(|user| settings.by_name(&user));
        let link = person.and_then(|person| person.served.link.as_ref());
        link.is_some_and(|link| link.code_sha256.eq_ignore_ascii_case(&hex(&Sha256::digest(code))))
    }

    /// Somebody is a user; that is on disk then.
    ///
    /// # Errors
    /// It is not, and they are none.
    pub(super) async fn add(&self, telegram: i64, user: String) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        let mut with = lock(&self.made).clone();
        with.insert(telegram, user.clone());
        durable::replace(self.path.clone(), serde_json::to_vec(&with)?).await?;
        lock(&self.made).insert(telegram, user);
        Ok(())
    }

    /// Forgets those whom the new settings know, and those who are not served any more.
    pub(in super::super) async fn settle(&self, settings: &Settings) {
        let is_open =
            |user: &str| settings.by_name(user).is_some_and(|person| person.served.telegram.is_none());
        let _writing = self.writing.lock().await;
        let text = {
            let mut made = lock(&self.made);
            let before = made.len();
            made.retain(|_, user| is_open(user));
            if made.len() == before {
                return;
            }
            serde_json::to_vec(&*made)
        };
        let written = match text {
            Ok(text) => durable::replace(self.path.clone(), text).await,
            Err(error) => Err(error.into()),
        };
        // The next start forgets them, too.
        if let Err(error) = written {
            note(&format!("{}: {error}", self.path.display()));
        }
    }
}

/// Asks the host, on port 53.
///
/// # Errors
/// No answer; it may be asked again.
pub(super) async fn ask(host_socket: &Path, claim: &Claim) -> Result<Claimed, FrameError> {
    let request = HostRequest::ClaimUser { code: claim.code.clone(), telegram: claim.telegram };
    let asking = async {
        let mut stream = UnixStream::connect(host_socket).await?;
        frame::write(&mut stream, &request).await?;
        frame::read(&mut stream).await
    };
    match timeout(ASK, asking)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?
    {
        Some(HostReply::UserClaimed { user }) => Ok(Claimed::Is(user)),
        Some(HostReply::Error { message }) => Ok(Claimed::Refused(message)),
        Some(_) => Ok(Claimed::Refused("a reply to something else".to_owned())),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
