//! `mvm new`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mvm_model::manifest::{
    Argument, Manifest, NewMistake, NewOpenClaw, Problem, RequestedNetwork, SecretSource,
};
use mvm_model::{NetId, TenantId, TenantSubnet};
use mvm_protocol::api::{ApiError, DeployMode, ErrorCode, TenantInfo};

use crate::check::{self, Rejected, Why};
use crate::connection::Connection;
use crate::deploy::{self, File};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Extent, Progress};
use crate::sources;

/// Make a tenant from a template
#[derive(Debug, Subcommand)]
pub enum New {
    Openclaw(OpenClaw),
}

/// Make a tenant of OpenClaw: an assistant for each of its users, and a gateway that wakes them
///
/// Every user has a machine of their own, asleep while they are silent. For each who is not named by an id a one-time link is
/// printed: whoever opens it first is that user. Everything is checked before anything is made.
#[derive(Debug, Args)]
pub struct OpenClaw {
    /// The tenant's name; there must be none of it yet
    tenant: TenantId,
    /// A deploy.toml: where its secrets are, its users; paths in it are relative to its folder
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The image of the users' machines: a built-in recipe's name or a recipe's folder [default: openclaw]
    #[arg(long)]
    image: Option<String>,
    /// The network number it is to have
    #[arg(long, value_name = "NUMBER", value_parser = net_id)]
    net_id: Option<NetId>,
    /// The subnet it is to have
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    subnet: Option<TenantSubnet>,
    /// Make nothing: show what would be made, key by key
    #[arg(long)]
    dry_run: bool,
    /// Do not ask Telegram and Anthropic whether they take the secrets
    #[arg(long)]
    offline: bool,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

fn net_id(text: &str) -> Result<NetId, String> {
    let number: u64 = text.parse().map_err(|_| format!("a number, 0 to {}", NetId::MAX))?;
    NetId::new(number).map_err(|error| error.to_string())
}

fn subnet(text: &str) -> Result<TenantSubnet, String> {
    let net: ipnet::Ipv4Net = text.parse().map_err(|_| "a subnet, as 10.240.7.0/24".to_owned())?;
    TenantSubnet::try_from(net).map_err(|error| error.to_string())
}

impl New {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let New::Openclaw(new) = self;
        new.run(connection).await
    }
}

impl OpenClaw {
    async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let file = File::read(&self.config)?;
        let image = self.image.as_deref().map(|image| sources::image(image, std::path::Path::new("")));
        let image = image.transpose().map_err(|why| Failure::Usage(self.at(Argument::Image, &why)))?;
        let network = RequestedNetwork { net_id: self.net_id, subnet: self.subnet };
        let new = NewOpenClaw { tenant: self.tenant.clone(), network, image };
        let mode = DeployMode { dry_run: self.dry_run, only_new: true, ..DeployMode::default() };
        let read = Manifest::openclaw(file.text(), &new);
        let manifest = read.map_err(|mistake| self.told(&file, mistake))?;
        let mut request = file.gather(&manifest, mode)?;
        let client = connection.agent().await?;
        // The agent looks again when it makes it.
        match client.get::<TenantInfo>(&format!("/v1/tenants/{}", self.tenant)).await {
            Err(Failure::Refused(ApiError { code: ErrorCode::NotFound, .. })) => {}
            Err(failure) => return Err(failure),
            Ok(_) => {
                let id = &self.tenant;
                let taken = format!("tenant {id} is there already: give the new one another name");
                return Err(Failure::NotDone(taken));
            }
        }
        if !self.offline {
            let mut progress = Progress::new();
            progress.step(
                "secrets",
                "asking Telegram and Anthropic about them",
                Extent { done: 0, total: 0 },
            );
            let given = request.secrets.take().unwrap_or_default();
            let asked = check::all(given, manifest.deployment.endpoints.clone()).await;
            progress.end();
            request.secrets = Some(asked.map_err(|rejected| file.rejected(&manifest, rejected))?);
        }
        let sent = deploy::send(&client, request, mode).await;
        let outcome = sent.map_err(|failure| match failure {
            Failure::Refused(ApiError { key: Some(key), message, .. }) => {
                self.told(&file, new.mistake(&manifest, Problem::new(key, message)))
            }
            other => other,
        })?;
        outcome.show(self.output, file.name()).map(|()| 0)
    }

    /// A mistake, at what said it.
    fn told(&self, file: &File, mistake: NewMistake) -> Failure {
        match mistake {
            NewMistake::InFile(error) => file.mistake(&error),
            NewMistake::Argument(argument, why) => Failure::NotDone(self.at(argument, &why)),
            NewMistake::Template(why) => Failure::NotDone(why),
        }
    }

    /// What is wrong with an argument, with its value.
    fn at(&self, argument: Argument, why: &str) -> String {
        let flag = match argument {
            // It is the subject of what is said.
            Argument::Tenant => return why.to_owned(),
            Argument::NetId => self.net_id.map(|id| format!("--net-id {id}")),
            Argument::Subnet => self.subnet.map(|subnet| format!("--subnet {subnet}")),
            Argument::Image => self.image.as_ref().map(|image| format!("--image {image}")),
        };
        format!("{}: {why}", flag.unwrap_or_default())
    }
}

impl File {
    /// A secret is not taken, at the key of its file; or its service cannot be asked, at its key where there is one.
    fn rejected(&self, manifest: &Manifest, Rejected { scope, why }: Rejected) -> Failure {
        match why {
            Why::Secret(why) => {
                let secrets = manifest.secrets.as_deref().unwrap_or_default();
                let key = secrets.iter().find(|secret| secret.scope == scope).map(SecretSource::file_key);
                self.mistake(&manifest.error_at(&key.unwrap_or_default(), why))
            }
            Why::Service(why) => match format!("endpoints.{scope}") {
                key if manifest.says(&key) => self.mistake(&manifest.error_at(&key, why)),
                _ => Failure::NotDone(why),
            },
        }
    }
}
