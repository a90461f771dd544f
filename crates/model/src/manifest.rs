//! `deployment.toml`, parsed with the place of every mistake. No I/O: whoever read the file reports what only it can
//! see (a missing secret file, a port in use) at a key's place with [`Manifest::error_at`].
//!
//! Parsing has three steps, and every mistake of the last two is a [`Problem`]: a key and what is wrong with it. Where
//! the key stands in the file is looked up at the end, in one way for all of them.
//!
//! | step | module |
//! |---|---|
//! | text to a tree whose keys know their place | [`toml`] |
//! | tree to [`Deployment`]: types, names, ranges, unknown keys | `reader`, `sections`, `routing`, `secrets` |
//! | rules between the parts; the agent checks them again | `check` |
//!
//! `template` makes the manifest of a new tenant from less than a manifest says, and `origin` knows what said each of its keys. The other way, from a deployment to a manifest's keys, goes `document`; `change` is how commands change some of them.

mod change;
mod check;
mod deployment;
mod document;
mod origin;
mod place;
mod reader;
mod routing;
mod secrets;
mod sections;
mod template;
#[cfg(test)]
mod tests;

pub use change::{Change, ChangeOf, KeyChanges, PortChanges, RouteChanges, Verb};
pub use deployment::{Deployment, Publish, RequestedNetwork};
pub use document::Difference;
pub use origin::{Argument, NewMistake};
pub use place::{ManifestError, Place};
pub use secrets::{SecretSource, name_of_secret, secret_named};
pub use template::NewOpenClaw;

use place::Places;
use serde::{Deserialize, Serialize};

/// A key and what is wrong with it. The agent answers with these: it knows the deployment, not the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{key}: {message}")]
pub struct Problem {
    /// The key, dotted and counted from 0: `pools[1].egress[0]`.
    pub key: String,
    /// What is wrong with it, and what to do about it.
    pub message: String,
}

impl Problem {
    /// A problem of a key.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

/// A pool's image that is a recipe's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFolder {
    /// The pool's index in [`Deployment::pools`].
    pub pool: usize,
    /// The folder, as it was written: relative to the manifest's folder.
    pub folder: String,
}

impl ImageFolder {
    /// The manifest's key that names the folder, for [`Manifest::error_at`].
    pub fn key(&self) -> String {
        format!("pools[{}].image", self.pool)
    }
}

/// A manifest that was read and checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// What it asks for. Images that are folders are still as written; see [`Manifest::image_folders`].
    pub deployment: Deployment,
    /// Its secrets, in the order of their names; none where it has no such section, which leaves them as they are.
    pub secrets: Option<Vec<SecretSource>>,
    places: Places,
}

impl Manifest {
    /// Reads and checks the text of a `deployment.toml`.
    ///
    /// # Errors
    /// One mistake with its place: what is not TOML, an unknown key, a wrong type or value, or parts that do not fit
    /// together.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let (places, tree) = Places::of(text)?;
        let read = || {
            let (deployment, secrets) = sections::document(tree.get_ref())?;
            deployment.check()?;
            deployment.check_secret_scopes(|scope, key| match &secrets {
                Some(given) => given.iter().any(|secret| secret.scope == scope && secret.key == key),
                // Those that there are, the agent knows; nobody has one that no name gives.
                None => name_of_secret(scope, key).is_some(),
            })?;
            Ok((deployment, secrets))
        };
        match read() {
            Ok((deployment, secrets)) => Ok(Self { deployment, secrets, places }),
            Err(problem) => Err(places.locate(problem)),
        }
    }

    /// Whether its text says this key.
    pub fn says(&self, key: &str) -> bool {
        self.places.has(key)
    }

    /// Where a key stands; where it is absent, the nearest key that holds it.
    pub fn place(&self, key: &str) -> Place {
        self.places.find(key)
    }

    /// A mistake at a key that only the caller could see.
    pub fn error_at(&self, key: &str, message: impl Into<String>) -> ManifestError {
        self.places.locate(Problem::new(key, message))
    }

    /// The place of a problem that the agent answered with.
    pub fn locate(&self, problem: Problem) -> ManifestError {
        self.places.locate(problem)
    }

    /// The pools whose image is a recipe's folder, not a built-in recipe's name. Before the deployment is sent to the
    /// agent, each one's `image` has to be made absolute.
    pub fn image_folders(&self) -> Vec<ImageFolder> {
        let pools = self.deployment.pools.iter().enumerate();
        pools
            .filter(|(_, pool)| is_folder(&pool.image))
            .map(|(index, pool)| ImageFolder { pool: index, folder: pool.image.clone() })
            .collect()
    }
}

/// Whether an image is written as a path and not as a built-in recipe's name.
pub fn is_folder(image: &str) -> bool {
    image.contains('/') || image.starts_with('.')
}
