//! `mvm deploy`

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use mvm_model::manifest::{Manifest, ManifestError, Problem};
use mvm_protocol::api::{ApiError, DeployMode, DeployRequest};

use crate::client::Client;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::outcome::{Outcome, follow};
use crate::output::Output;
use crate::{sources, watch};

/// Make a tenant as a manifest describes it, or change it to that
///
/// What is missing is created, what can be changed in place is changed, and what differs otherwise is listed.
/// Nothing is destroyed, and no machine is restarted unless --restart is given. Without a change nothing is done. A
/// mistake in the manifest is told with its line and key, and then nothing is created or changed.
#[derive(Debug, Args)]
pub struct Deploy {
    /// The manifest, a deployment.toml; paths in it are relative to its folder
    file: PathBuf,
    /// Change nothing: show what would change, key by key
    #[arg(long, conflicts_with = "watch")]
    dry_run: bool,
    /// Restart machines that run or sleep with another image or other resources than are wanted: one at a time, gateways
    /// first; memory that they slept with is lost
    #[arg(long)]
    restart: bool,
    /// Apply it again whenever the file changes, and at the interval, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// How many seconds to wait before it is applied again without a change
    #[arg(long, value_name = "SECONDS", requires = "watch", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

impl Deploy {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let mode = DeployMode { dry_run: self.dry_run, restart: self.restart, ..DeployMode::default() };
        if self.watch {
            return watch::until_told(connection, &self.file, mode, self.interval, self.output).await;
        }
        let file = File::read(&self.file)?;
        let outcome = file.apply(connection, mode).await?;
        outcome.show(self.output, file.name()).map(|()| 0)
    }
}

/// Sends what is asked for, and shows how it goes.
///
/// # Errors
/// What the agent says.
pub async fn send(client: &Client, request: DeployRequest, mode: DeployMode) -> Result<Outcome, Failure> {
    let outcome = Outcome::new(&request.deployment.tenant, mode);
    follow(client, "/v1/deploy", &request, outcome).await
}

/// A manifest's file.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    name: String,
    folder: PathBuf,
    text: String,
}

impl File {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|error| Failure::io(format!("cannot read {name}"), error))?;
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { name, folder, text })
    }

    /// As it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the tenant as it says.
    ///
    /// # Errors
    /// Its mistake, or what the agent says.
    pub async fn apply(&self, connection: &Connection, mode: DeployMode) -> Result<Outcome, Failure> {
        let manifest = Manifest::parse(&self.text).map_err(|error| self.mistake(&error))?;
        let request = self.gather(&manifest, mode)?;
        // Only now: a manifest with a mistake starts no agent.
        let client = connection.agent().await?;
        send(&client, request, mode).await.map_err(|failure| self.at_its_key(&manifest, failure))
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// With everything that it names outside of itself.
    ///
    /// # Errors
    /// What is missing, at its key.
    pub fn gather(&self, manifest: &Manifest, mode: DeployMode) -> Result<DeployRequest, Failure> {
        sources::gather(manifest, &self.folder, mode).map_err(|error| self.mistake(&error))
    }

    /// A mistake in it.
    pub fn mistake(&self, error: &ManifestError) -> Failure {
        Failure::manifest(&self.name, &self.text, error)
    }

    /// Where the agent names a key, its place in the file.
    fn at_its_key(&self, manifest: &Manifest, failure: Failure) -> Failure {
        match failure {
            Failure::Refused(ApiError { key: Some(key), message, .. }) => {
                let error = manifest.locate(Problem::new(key, message));
                self.mistake(&error)
            }
            other => other,
        }
    }
}
