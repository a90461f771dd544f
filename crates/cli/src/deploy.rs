//! `mvm deploy`

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use mvm_model::manifest::{Manifest, Problem};
use mvm_protocol::api::{ApiError, DeployEvent, DeployRequest};
use serde::Serialize;

use crate::client::Client;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Extent, Progress};
use crate::sources;
use crate::view::counted;

/// Make a tenant as a manifest describes it, or change it to that
///
/// What is missing is created, what can be changed in place is changed, and what differs otherwise is listed.
/// Nothing is destroyed and no machine is restarted. Without a change nothing is done. A mistake in the manifest
/// is told with its line and key, and then nothing is created or changed.
#[derive(Debug, Args)]
pub struct Deploy {
    /// The manifest, a deployment.toml; paths in it are relative to its folder
    file: PathBuf,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

/// What a deployment came to.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) tenant: String,
    pub(crate) changes: usize,
    pub(crate) changed: Vec<Line>,
    differs: Vec<Line>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) how: String,
}

impl Deploy {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let file = File::read(&self.file)?;
        let (manifest, request) = file.parse()?;
        // Only now: a manifest with a mistake starts no agent.
        let client = connection.agent().await?;
        let outcome = Outcome { tenant: request.deployment.tenant.to_string(), ..Outcome::default() };
        let outcome = follow(&client, "/v1/deploy", &request, outcome)
            .await
            .map_err(|failure| file.at_its_key(&manifest, failure))?;
        self.output.show(&outcome, |outcome| outcome.text(&file.name))?;
        Ok(0)
    }
}

/// A manifest's file.
struct File {
    name: String,
    folder: PathBuf,
    text: String,
}

impl File {
    fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|error| Failure::io(format!("cannot read {name}"), error))?;
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { name, folder, text })
    }

    fn parse(&self) -> Result<(Manifest, DeployRequest), Failure> {
        let manifest = Manifest::parse(&self.text);
        let parsed = manifest.and_then(|manifest| {
            let request = sources::gather(&manifest, &self.folder)?;
            Ok((manifest, request))
        });
        parsed.map_err(|error| Failure::manifest(&self.name, &self.text, &error))
    }

    /// Where the agent names a key, its place in the file.
    fn at_its_key(&self, manifest: &Manifest, failure: Failure) -> Failure {
        match failure {
            Failure::Refused(ApiError { key: Some(key), message, .. }) => {
                let error = manifest.locate(Problem::new(key, message));
                Failure::manifest(&self.name, &self.text, &error)
            }
            other => other,
        }
    }
}

/// Sends what is wanted and shows how it goes.
pub(crate) async fn follow(
    client: &Client,
    path: &str,
    request: &impl Serialize,
    mut outcome: Outcome,
) -> Result<Outcome, Failure> {
    let mut lines = client.post_for_lines(path, request).await?;
    let mut progress = Progress::new();
    let result = loop {
        let event = match lines.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break Err(client.broken("it stopped in the middle of it")),
            Err(failure) => break Err(failure),
        };
        match event {
            DeployEvent::Step { what, doing, done, total } => {
                progress.step(&what, &doing, Extent { done, total });
            }
            DeployEvent::Changed { what, how } => {
                progress.finished(&what);
                outcome.changed.push(Line { what, how });
            }
            DeployEvent::Differs { what, how } => outcome.differs.push(Line { what, how }),
            DeployEvent::Done { changes } => {
                outcome.changes = changes;
                break Ok(outcome);
            }
            DeployEvent::Failed { error } => break Err(Failure::Refused(error)),
        }
    };
    progress.end();
    result
}

impl Outcome {
    fn text(&self, file: &str) -> String {
        let mut lines: Vec<_> =
            self.changed.iter().map(|Line { what, how }| format!("{what}: {how}")).collect();
        lines.push(match self.changes {
            0 if self.differs.is_empty() => format!("nothing to do: {} is as {file} says", self.tenant),
            0 => format!("nothing to do: what differs from {file} stays as it is"),
            changes => format!("{}: {} made", self.tenant, counted(changes, "change")),
        });
        lines.extend(self.differs.iter().map(|Line { what, how }| format!("differs: {what}: {how}")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(what: &str, how: &str) -> Line {
        Line { what: what.into(), how: how.into() }
    }

    #[test]
    fn an_outcome_says_what_changed_and_what_differs() {
        let mut outcome = Outcome { tenant: "alice".into(), ..Outcome::default() };
        assert_eq!(outcome.text("d.toml"), "nothing to do: alice is as d.toml says");
        outcome.differs.push(line("alice/workers", "3 instances, 2 wanted"));
        let differs = "differs: alice/workers: 3 instances, 2 wanted";
        let only = format!("nothing to do: what differs from d.toml stays as it is\n{differs}");
        assert_eq!(outcome.text("d.toml"), only);
        outcome.changed.push(line("alice/gateways", "created"));
        outcome.changes = 1;
        let both = format!("alice/gateways: created\nalice: 1 change made\n{differs}");
        assert_eq!(outcome.text("d.toml"), both);
    }
}
