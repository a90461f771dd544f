//! `[secrets]`: under which name machines find each, and whether what pools name is there.

use super::reader::{Keys, Value};
use super::{Deployment, Problem};
use crate::openclaw;
use crate::role::{Need, Role};

/// A secret of `[secrets]`: where its value is and under which name machines find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSource {
    /// Its key in `[secrets]`: `anthropic_key`.
    pub name: String,
    /// Its scope, as in `/run/secrets/<scope>/<KEY>`.
    pub scope: String,
    /// Its key there.
    pub key: String,
    /// The file with its value, as it was written: relative to the manifest's folder.
    pub file: String,
}

impl SecretSource {
    /// The manifest's key that names the file, for [`super::Manifest::error_at`].
    pub fn file_key(&self) -> String {
        format!("secrets.{}.file", self.name)
    }
}

/// Secrets of well-known services: name, scope, key.
const WELL_KNOWN: [(&str, &str, &str); 4] = [
    ("anthropic_key", "anthropic", "ANTHROPIC_API_KEY"),
    ("telegram_token", "telegram", "TELEGRAM_BOT_TOKEN"),
    ("discord_token", "discord", "DISCORD_BOT_TOKEN"),
    ("openclaw_token", openclaw::SCOPE, openclaw::TOKEN_KEY),
];

/// The scope of every other secret.
const DEFAULT_SCOPE: &str = "default";

/// The longest name: it becomes a file's.
const MAX_NAME: usize = 64;

/// The scope and key of the secret with a name of `[secrets]`: of `anthropic_key` `anthropic` and `ANTHROPIC_API_KEY`.
///
/// # Errors
/// What is no name, in words.
pub fn secret_named(name: &str) -> Result<(String, String), String> {
    if is_name(name) { Ok(scope_and_key(name)) } else { Err(no_name()) }
}

fn no_name() -> String {
    format!("a secret's name is 1 to {MAX_NAME} of a-z, 0-9 and _")
}

fn scope_and_key(name: &str) -> (String, String) {
    match WELL_KNOWN.iter().find(|(known, ..)| *known == name) {
        Some((_, scope, key)) => ((*scope).to_owned(), (*key).to_owned()),
        None => (DEFAULT_SCOPE.to_owned(), name.to_ascii_uppercase()),
    }
}

/// The name in `[secrets]` that gives a secret, if one does.
pub fn name_of_secret(scope: &str, key: &str) -> Option<String> {
    let name = match WELL_KNOWN.iter().find(|(_, s, k)| *s == scope && *k == key) {
        Some((name, ..)) => (*name).to_owned(),
        None => key.to_ascii_lowercase(),
    };
    let gives_it = is_name(&name) && scope_and_key(&name) == (scope.to_owned(), key.to_owned());
    gives_it.then_some(name)
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Reads `[secrets]`.
pub(super) fn read(section: Value<'_, '_>) -> Result<Vec<SecretSource>, Problem> {
    const SECRET: Keys = Keys { known: &["file"], later: &[] };
    let source = |secret: Value<'_, '_>| {
        let name = secret.name();
        if !is_name(name) {
            return Err(secret.problem(no_name()));
        }
        if !secret.is_table() {
            // Nothing of a value is repeated: it may be the secret itself.
            return Err(secret.problem("secrets are not written here: give a file, as { file = \"./x\" }"));
        }
        let (scope, key) = scope_and_key(name);
        let file = secret.table(&SECRET)?.required("file", |file| file.filled_text())?;
        Ok(SecretSource { name: name.to_owned(), scope, key, file })
    };
    section.entries()?.into_iter().map(source).collect()
}

impl Deployment {
    /// Whether OpenClaw runs in it: then it has a token, given or not.
    pub fn runs_openclaw(&self) -> bool {
        self.pools.iter().any(|pool| pool.role == Role::CapabilityOpenclaw)
    }

    /// Checks that every secret that a pool names is there, and that its role is given any. OpenClaw's token is made
    /// where OpenClaw runs, and so are the workers' tokens.
    ///
    /// # Errors
    /// The first that is not, at the manifest's key.
    pub fn check_secret_scopes(&self, is_there: impl Fn(&str, &str) -> bool) -> Result<(), Problem> {
        let is_there = |scope: &str, key: &str| {
            let of_openclaw =
                scope == openclaw::SCOPE && [openclaw::TOKEN_KEY, openclaw::WORKER_TOKEN_KEY].contains(&key);
            is_there(scope, key)
                || of_openclaw && (self.runs_openclaw() || is_there(scope, openclaw::TOKEN_KEY))
        };
        for (p, pool) in self.pools.iter().enumerate() {
            let scopes = pool.secret_scopes.as_deref().unwrap_or_default();
            if pool.role.secrets() == Need::No && !scopes.is_empty() {
                let message = format!("machines of role {} are never given secrets: leave it out", pool.role);
                return Err(Problem::new(format!("pools[{p}].secret_scopes"), message));
            }
            for (s, scope) in scopes.iter().enumerate() {
                for (k, key) in scope.keys.iter().enumerate() {
                    if !is_there(&scope.integration, key) {
                        let place = format!("pools[{p}].secret_scopes[{s}].keys[{k}]");
                        return Err(Problem::new(place, missing(&scope.integration, key)));
                    }
                }
            }
        }
        Ok(())
    }
}

fn missing(scope: &str, key: &str) -> String {
    let remedy = match name_of_secret(scope, key) {
        Some(name) => format!("add `{name} = {{ file = \"…\" }}` under [secrets]"),
        None => "no name there gives it: the scope is `default` but for well-known services".to_owned(),
    };
    format!("[secrets] does not give `{scope}/{key}`: {remedy}")
}
