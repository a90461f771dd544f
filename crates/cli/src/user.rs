//! `mvm user`

use std::str::FromStr;

use clap::Subcommand;
use mvm_model::{InvalidId, TenantId, UserName};
use mvm_protocol::api::{UserLink, UserSummary, Worker};

use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::outcome::Link;
use crate::output::{Output, table};
use crate::view::state_cell;

/// Commands about the people that a tenant serves.
#[derive(Debug, Subcommand)]
pub enum User {
    /// List users: everyone, or a tenant's
    List {
        /// Only this tenant's
        tenant: Option<TenantId>,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Make another one-time link for a user who has not opened theirs; the one before it is not valid any more
    Link {
        /// The user, as alice/bob
        user: UserAddress,
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
}

/// A user: `alice/bob`.
#[derive(Debug, Clone)]
pub struct UserAddress {
    tenant: TenantId,
    name: UserName,
}

/// What is not a user's address.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InvalidUserAddress {
    /// Too few parts.
    #[error("a user is named <tenant>/<user>, as alice/bob")]
    Shape,
    /// A part is no name.
    #[error(transparent)]
    Name(#[from] InvalidId),
}

impl FromStr for UserAddress {
    type Err = InvalidUserAddress;

    fn from_str(text: &str) -> Result<Self, InvalidUserAddress> {
        let (tenant, name) = text.split_once('/').ok_or(InvalidUserAddress::Shape)?;
        Ok(Self { tenant: tenant.parse()?, name: name.parse()? })
    }
}

impl User {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let client = connection.agent().await?;
        match self {
            User::List { tenant, output } => {
                let query = tenant.map_or(String::new(), |tenant| format!("?tenant={tenant}"));
                let users: Vec<UserSummary> = client.get(&format!("/v1/users{query}")).await?;
                output.show(&users, |users| listing(users))?;
            }
            User::Link { user: UserAddress { tenant, name }, output } => {
                let link: UserLink = client.post(&format!("/v1/users/{tenant}/{name}/link")).await?;
                output.show(&Link::from(link), |Link { url, expires_at, .. }| {
                    format!("{url}, valid until {}", clock::utc(*expires_at))
                })?;
            }
        }
        Ok(0)
    }
}

fn listing(users: &[UserSummary]) -> String {
    let rows = users.iter().map(|user| {
        let known = match (user.user.telegram, user.link_expires_at) {
            (Some(telegram), _) => telegram.to_string(),
            (None, Some(expires)) => format!("link valid until {}", clock::utc(expires)),
            (None, None) => "unknown".to_owned(),
        };
        let (worker, state) = match &user.worker {
            Some(Worker { pool, id, state }) => (format!("{pool}/{id}"), state_cell(*state, None)),
            None => ("none".to_owned(), "".into()),
        };
        [user.tenant.as_str().into(), user.user.name.as_str().into(), known.into(), worker.into(), state]
    });
    table(["TENANT", "USER", "TELEGRAM", "WORKER", "STATE"], rows, "no users")
}
