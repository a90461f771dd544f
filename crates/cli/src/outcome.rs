//! What a deployment or a change comes to: how it goes, what it changed, how that is told.

use mvm_model::TenantId;
use mvm_model::manifest::Difference;
use mvm_protocol::api::{DeployEvent, DeployMode, UserLink};
use serde::Serialize;

use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Extent, Progress};
use crate::view::counted;

/// What a deployment came to, or would.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Outcome {
    /// The tenant.
    pub tenant: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// How many changes were made.
    pub changes: usize,
    /// What changed.
    pub changed: Vec<Line>,
    /// What is not as it is wanted, and stays.
    pub differs: Vec<Line>,
    /// Instances that were created.
    pub created: Vec<Created>,
    /// What makes people the new users: told this once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// Where nothing was done: each key that would be another.
    pub diff: Vec<Difference>,
    /// What was begun, and why it did not come to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A thing and what is to say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Line {
    /// Its address.
    pub what: String,
    /// In words.
    pub how: String,
}

/// An instance that was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Created {
    /// Its address.
    pub instance: String,
    /// Its address on the tenant's network.
    pub ip: String,
}

/// What makes whoever opens it first a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Link {
    /// The user.
    pub user: String,
    /// What to open; with `<your bot>` in the place of its name where that is not known.
    pub url: String,
    /// The code in it.
    pub code: String,
    /// Until when it is valid, in seconds since 1970.
    pub expires_at: u64,
}

impl From<UserLink> for Link {
    /// What a person opens to become a user (Telegram, "Deep linking").
    fn from(UserLink { user, bot, code, expires_at }: UserLink) -> Self {
        let url = format!("https://t.me/{}?start={code}", bot.as_deref().unwrap_or("<your bot>"));
        Self { user: user.into(), url, code, expires_at }
    }
}

/// Sends what is wanted and shows how it goes. What was done before the rest of it failed is an outcome, too.
///
/// # Errors
/// What the agent says, or that it does not.
pub async fn follow(
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
            DeployEvent::Differ(difference) => outcome.diff.push(difference),
            DeployEvent::Created { instance, ip } => {
                outcome.created.push(Created { instance, ip: ip.to_string() });
            }
            DeployEvent::Changed { what, how } => {
                progress.finished(&what);
                outcome.changed.push(Line { what, how });
            }
            DeployEvent::Differs { what, how } => outcome.differs.push(Line { what, how }),
            DeployEvent::Link(link) => outcome.links.push(link.into()),
            DeployEvent::Done { changes } => {
                outcome.changes = changes;
                break Ok(outcome);
            }
            DeployEvent::Failed { error } if outcome.is_empty() => break Err(Failure::Refused(error)),
            DeployEvent::Failed { error } => {
                outcome.changes = outcome.changed.len();
                outcome.failed = Some(error.message);
                break Ok(outcome);
            }
        }
    };
    progress.end();
    result
}

impl Outcome {
    /// Of nothing so far.
    pub fn new(tenant: &TenantId, mode: DeployMode) -> Self {
        Self { tenant: tenant.to_string(), dry_run: mode.dry_run, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        let Self { changed, created, differs, diff, .. } = self;
        changed.is_empty() && created.is_empty() && differs.is_empty() && diff.is_empty()
    }

    /// Whether it came to its end.
    ///
    /// # Errors
    /// Why it did not.
    pub fn whole(&self) -> Result<(), Failure> {
        self.failed.clone().map_or(Ok(()), |why| Err(Failure::NotDone(why)))
    }

    /// Writes it, and says whether it came to its end.
    ///
    /// # Errors
    /// Why it did not, or that it cannot be written.
    pub fn show(&self, output: Output, source: &str) -> Result<(), Failure> {
        output.show(self, |outcome| outcome.text(source))?;
        self.whole()
    }

    /// For people. Where nothing was to do, `source` is what says how it is to be: a file, a command.
    pub fn text(&self, source: &str) -> String {
        let mut lines = self.diff_lines();
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(self.changed.iter().map(|Line { what, how }| format!("{what}: {how}")));
        lines.extend(self.summary(source));
        lines.extend(self.links.iter().map(|Link { user, url, expires_at, .. }| {
            format!("user {user} is whoever opens this first, until {}: {url}", clock::utc(*expires_at))
        }));
        lines.extend(self.differs.iter().map(|Line { what, how }| format!("differs: {what}: {how}")));
        lines.join("\n")
    }

    fn summary(&self, source: &str) -> Option<String> {
        let Self { tenant, changes, .. } = self;
        Some(match changes {
            // What failed is told instead.
            0 if self.failed.is_some() => return None,
            0 if self.differs.is_empty() => format!("nothing to do: {tenant} is as {source} says"),
            0 => format!("nothing to do: what differs from {source} stays as it is"),
            _ if self.dry_run => {
                format!("{tenant}: {} would be made; nothing was done", counted(*changes, "change"))
            }
            _ => format!("{tenant}: {} made", counted(*changes, "change")),
        })
    }

    /// A line for each thing of which a key would be another, and one or two for each such key.
    fn diff_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for of_one in self.diff.chunk_by(|a, b| a.what == b.what) {
            let sign = match of_one {
                all if all.iter().all(|difference| difference.from.is_none()) => '+',
                all if all.iter().all(|difference| difference.to.is_none()) => '-',
                _ => '~',
            };
            lines.extend(of_one.first().map(|first| format!("{sign} {}", first.what)));
            for Difference { key, from, to, .. } in of_one {
                let sides = [('-', from), ('+', to)]
                    .into_iter()
                    .filter_map(|(sign, value)| Some((sign, value.as_ref()?)));
                lines.extend(sides.map(|(sign, value)| format!("{sign}   {key} = {value}")));
            }
        }
        lines
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

    #[test]
    fn what_would_be_is_told_as_a_diff() {
        let difference = |what: &str, key: &str, from: Option<i64>, to: Option<i64>| Difference {
            what: what.to_owned(),
            key: key.to_owned(),
            from: from.map(Into::into),
            to: to.map(Into::into),
        };
        let outcome = Outcome {
            tenant: "alice".into(),
            dry_run: true,
            changes: 2,
            changed: vec![line("alice/workers", "resources changed")],
            diff: vec![
                difference("alice/workers", "vcpus", Some(1), Some(2)),
                difference("alice/workers", "spares", None, Some(0)),
                difference("route x", "port", None, Some(1)),
                difference("route y", "port", Some(1), None),
            ],
            ..Outcome::default()
        };
        let expected = "~ alice/workers\n-   vcpus = 1\n+   vcpus = 2\n+   spares = 0\n+ route x\n+   port = 1\n\
             - route y\n-   port = 1\n\nalice/workers: resources changed\nalice: 2 changes would be made; nothing was done";
        assert_eq!(outcome.text("d.toml"), expected);
    }
}
