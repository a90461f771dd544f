//! `mvm tenant secrets`

use std::io;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use mvm_model::TenantId;
use mvm_model::manifest::{name_of_secret, secret_named};
use mvm_protocol::api::{
    Delivery, SecretInfo, SecretTaker, SecretValue, SecretsRequest, SecretsSet, TenantInfo,
};

use crate::check::{self, Why};
use crate::client::Client;
use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::sources;
use crate::view::{bytes, list};

/// Commands about a tenant's secrets.
#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// List a tenant's secrets: when each was last changed, out of which file, its size; never its value
    List {
        /// The tenant
        tenant: TenantId,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Set one secret, and hand it to the machines that are given it
    ///
    /// Machines that run take it at once, the others when they run again. The other secrets stay. A key that its service does not
    /// take changes nothing.
    Set {
        /// The tenant
        tenant: TenantId,
        /// The secret, as in a manifest: anthropic_key, telegram_token, api_key
        name: String,
        /// The file with its value; - reads standard input
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Do not ask Telegram and Anthropic whether they take it
        #[arg(long)]
        offline: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Read secrets again out of the files that they came from, and hand those that changed to the machines that are given them
    ///
    /// Nothing is changed where no file has changed, one cannot be read, or a service does not take its key.
    Rotate {
        /// The tenant
        tenant: TenantId,
        /// Only these, as in a manifest [default: all that came out of files]
        name: Vec<String>,
        /// Do not ask Telegram and Anthropic whether they take them
        #[arg(long)]
        offline: bool,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
}

impl Secrets {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        match self {
            Secrets::List { tenant, output } => {
                let secrets = all(&connection.agent().await?, &tenant).await?;
                output.show(&secrets, |secrets| listing(secrets))?;
            }
            Secrets::Set { tenant, name, file, offline, output } => {
                let mut secrets = vec![read(&name, &file)?];
                let client = connection.agent().await?;
                if !offline {
                    secrets = ask_services(&client, &tenant, secrets).await?;
                }
                give(&client, &tenant, secrets, output, "the value is as it was").await?;
            }
            Secrets::Rotate { tenant, name: names, offline, output } => {
                let client = connection.agent().await?;
                let mut secrets = read_again(&tenant, &all(&client, &tenant).await?, &names)?;
                if !offline {
                    secrets = ask_services(&client, &tenant, secrets).await?;
                }
                give(&client, &tenant, secrets, output, "the files have the values that are set").await?;
            }
        }
        Ok(0)
    }
}

fn path(tenant: &TenantId) -> String {
    format!("/v1/tenants/{tenant}/secrets")
}

async fn all(client: &Client, tenant: &TenantId) -> Result<Vec<SecretInfo>, Failure> {
    client.get(&path(tenant)).await
}

/// A secret that somebody names, out of a file or standard input.
fn read(name: &str, file: &Path) -> Result<SecretValue, Failure> {
    let (scope, key) =
        secret_named(name).map_err(|why| Failure::Usage(format!("`{name}` is no secret's name: {why}")))?;
    let secret = if file == Path::new("-") {
        let value = sources::secret_value(io::stdin().lock(), "standard input");
        value.map(|value| SecretValue { scope, key, value, file: None, account: None })
    } else {
        sources::secret(&scope, &key, file)
    };
    secret.map_err(|why| Failure::NotDone(format!("{name}: {why}")))
}

/// Those that are named, or all, out of the files that they came from. One that cannot be read keeps all from being changed.
fn read_again(
    tenant: &TenantId,
    there: &[SecretInfo],
    names: &[String],
) -> Result<Vec<SecretValue>, Failure> {
    let named = |wanted: &String| {
        let found = there.iter().find(|info| info.name.as_ref() == Some(wanted) || info.secret == *wanted);
        found.ok_or_else(|| {
            let help = format!("`mvm tenant secrets list {tenant}` shows those there are");
            Failure::NotDone(format!("{tenant} has no secret `{wanted}`; {help}"))
        })
    };
    let chosen: Vec<&SecretInfo> = match names {
        [] => there.iter().filter(|info| info.file.is_some()).collect(),
        names => names.iter().map(named).collect::<Result<_, _>>()?,
    };
    if chosen.is_empty() {
        let help = format!("`mvm tenant secrets set {tenant} NAME --file FILE` gives one");
        return Err(Failure::NotDone(format!("{tenant} has no secret that came out of a file; {help}")));
    }
    chosen.into_iter().map(|info| one_again(tenant, info)).collect()
}

fn one_again(tenant: &TenantId, info: &SecretInfo) -> Result<SecretValue, Failure> {
    let SecretInfo { secret, name, file, .. } = info;
    let name = name.as_ref().unwrap_or(secret);
    let Some(file) = file else {
        let help = format!("`mvm tenant secrets set {tenant} {name} --file FILE` gives it another value");
        return Err(Failure::NotDone(format!("{name} did not come out of a file; {help}")));
    };
    let (scope, key) = secret.split_once('/').unwrap_or(("", secret));
    sources::secret(scope, key, Path::new(file))
        .map_err(|why| Failure::NotDone(format!("{name} ({secret}): {why}; nothing was changed")))
}

/// Before anything is changed: whether the services outside take those that they are asked about, and whose they are.
async fn ask_services(
    client: &Client,
    tenant: &TenantId,
    secrets: Vec<SecretValue>,
) -> Result<Vec<SecretValue>, Failure> {
    let info: TenantInfo = client.get(&format!("/v1/tenants/{tenant}")).await?;
    let asked = check::all(secrets.clone(), info.endpoints).await;
    asked.map_err(|rejected| {
        let why = match rejected.why {
            Why::Secret(why) => {
                let secret = secrets.iter().find(|secret| secret.scope == rejected.scope);
                let name = secret.and_then(|secret| name_of_secret(&secret.scope, &secret.key));
                format!("{}: {why}", name.unwrap_or(rejected.scope))
            }
            Why::Service(why) => why,
        };
        Failure::NotDone(format!("{why}; nothing was changed"))
    })
}

/// Has these set and handed over, and says what came of it.
async fn give(
    client: &Client,
    tenant: &TenantId,
    secrets: Vec<SecretValue>,
    output: Output,
    unchanged: &str,
) -> Result<(), Failure> {
    let set: SecretsSet = client.post_with(&path(tenant), &SecretsRequest { secrets }).await?;
    output.show(&set, |set| text(tenant, set, unchanged))?;
    let failed = set.machines.iter().filter(|machine| machine.delivery == Delivery::Failed);
    let failed: Vec<&str> = failed.map(|machine| machine.instance.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let goes_on = "what is set stays set: they take it when they start or wake, or when this is done again";
    Err(Failure::NotDone(format!("not every machine could take it: {}; {goes_on}", failed.join(", "))))
}

fn text(
    tenant: &TenantId,
    SecretsSet { changed, machines: set_for }: &SecretsSet,
    unchanged: &str,
) -> String {
    let head = match changed.as_slice() {
        [] => format!("nothing to do: {unchanged}"),
        changed => format!("{tenant}: secrets changed: {}", list(changed)),
    };
    // Where nothing changed, only who could not take what was set before is of interest.
    let told = |machine: &&SecretTaker| !changed.is_empty() || machine.delivery == Delivery::Failed;
    let machines =
        set_for.iter().filter(told).map(|SecretTaker { instance, delivery, why }| match delivery {
            Delivery::Taken => format!("{instance} has taken it"),
            Delivery::Later => format!("{instance} takes it when it runs again"),
            Delivery::Failed => {
                format!(
                    "{instance} goes on with what it had: {}",
                    why.as_deref().unwrap_or("it does not say why")
                )
            }
        });
    let mut lines: Vec<String> = std::iter::once(head).chain(machines).collect();
    if !changed.is_empty() && set_for.is_empty() {
        lines.push("no machine is given it".to_owned());
    }
    lines.join("\n")
}

fn listing(secrets: &[SecretInfo]) -> String {
    let rows = secrets.iter().map(|SecretInfo { secret, name, set_at, file, bytes: size }| {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            secret.into(),
            or_none(name).into(),
            set_at.map_or("-".to_owned(), clock::utc).into(),
            bytes(*size as u64).into(),
            or_none(file).into(),
        ]
    });
    table(["SECRET", "NAME", "SET", "SIZE", "FILE"], rows, "no secrets")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, secret: &str, file: Option<&Path>) -> SecretInfo {
        SecretInfo {
            secret: secret.to_owned(),
            name: Some(name.to_owned()),
            set_at: None,
            file: file.map(|file| file.display().to_string()),
            bytes: 1,
        }
    }

    #[test]
    fn one_file_that_cannot_be_read_keeps_all_from_being_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let (good, missing) = (folder.path().join("good"), folder.path().join("missing"));
        std::fs::write(&good, "value\n").unwrap();
        let alice: TenantId = "alice".parse().unwrap();
        let mut there = vec![
            info("api_key", "default/API_KEY", Some(&good)),
            info("anthropic_key", "anthropic/ANTHROPIC_API_KEY", Some(&missing)),
            info("said", "default/SAID", None),
        ];
        let again = |there: &[SecretInfo], names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            read_again(&alice, there, &names).map_err(|failure| failure.to_string())
        };
        let refused = again(&there, &[]).unwrap_err();
        assert!(refused.contains("anthropic_key (anthropic/ANTHROPIC_API_KEY): cannot read"), "{refused}");
        assert!(refused.contains(&missing.display().to_string()), "{refused}");
        for name in ["api_key", "default/API_KEY"] {
            let read = again(&there, &[name]).unwrap();
            let [secret] = read.as_slice() else { panic!("{read:?}") };
            assert_eq!((secret.scope.as_str(), secret.key.as_str()), ("default", "API_KEY"));
            assert_eq!(secret.value.expose(), b"value");
            assert_eq!(secret.file.as_deref(), good.to_str());
        }
        assert!(again(&there, &["said"]).unwrap_err().contains("did not come out of a file"));
        assert!(again(&there, &["other"]).unwrap_err().contains("no secret `other`"));
        assert!(again(&there.split_off(2), &[]).unwrap_err().contains("no secret that came out of a file"));
    }

    #[test]
    fn what_came_of_it_is_told_machine_by_machine() {
        let taker = |instance: &str, delivery, why: Option<&str>| SecretTaker {
            instance: instance.to_owned(),
            delivery,
            why: why.map(str::to_owned),
        };
        let mut set = SecretsSet {
            changed: vec!["default/API_KEY".to_owned()],
            machines: vec![
                taker("a/w/i-1", Delivery::Taken, None),
                taker("a/w/i-2", Delivery::Later, None),
                taker("a/w/i-3", Delivery::Failed, Some("no answer")),
            ],
        };
        let alice = "alice".parse().unwrap();
        let expected = "alice: secrets changed: default/API_KEY\na/w/i-1 has taken it\na/w/i-2 takes it when it runs again\n\
             a/w/i-3 goes on with what it had: no answer";
        assert_eq!(text(&alice, &set, ""), expected);
        set.changed.clear();
        let expected = "nothing to do: so it is\na/w/i-3 goes on with what it had: no answer";
        assert_eq!(text(&alice, &set, "so it is"), expected);
        // A name that was misspelt is nobody's.
        let nobodys = SecretsSet { changed: vec!["default/APY_KEY".to_owned()], machines: Vec::new() };
        assert_eq!(
            text(&alice, &nobodys, ""),
            "alice: secrets changed: default/APY_KEY\nno machine is given it"
        );
        let nothing = SecretsSet { changed: Vec::new(), machines: Vec::new() };
        assert_eq!(text(&alice, &nothing, "so it is"), "nothing to do: so it is");
    }
}
