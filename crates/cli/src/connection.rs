//! Where the agent and its data are.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use crate::background;
use crate::client::Client;
use crate::failure::Failure;

/// Where the agent and its data are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where the agent is")]
pub struct Connection {
    /// Folder of everything that is kept
    #[arg(
        long,
        global = true,
        env = "MVM_DATA_DIR",
        hide_env_values = true,
        value_name = "FOLDER",
        default_value = "/var/lib/mvm"
    )]
    pub data_dir: PathBuf,
    /// Folder of sockets and of what a reboot may forget
    #[arg(
        long,
        global = true,
        env = "MVM_RUN_DIR",
        hide_env_values = true,
        value_name = "FOLDER",
        default_value = "/run/mvm"
    )]
    pub run_dir: PathBuf,
    /// Address of the agent [default: unix:<run dir>/agent.sock, where one is started if none runs]
    #[arg(long, global = true, env = "MVM_HOST", hide_env_values = true, value_name = "ADDRESS")]
    host: Option<Host>,
}

impl Connection {
    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        match &self.host {
            Some(Host(socket)) => socket.clone(),
            None => self.run_dir.join("agent.sock"),
        }
    }

    /// Whether somebody said where the agent is, so that none is started.
    pub fn is_configured(&self) -> bool {
        self.host.is_some()
    }

    /// A client of the agent, whether it runs or not.
    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    /// A client of the agent. Where none runs and none is configured, one is started.
    ///
    /// # Errors
    /// If it does not start; where an address is configured, its absence shows with the first request.
    pub async fn agent(&self) -> Result<Client, Failure> {
        let client = self.client();
        if !self.is_configured() && !client.is_listened_to().await? {
            background::start(self, &client).await?;
        }
        Ok(client)
    }
}

/// An agent's address: `unix:/run/mvm/agent.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host(PathBuf);

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").map(Path::new);
        match path.filter(|path| path.is_absolute()) {
            Some(path) => Ok(Self(path.to_owned())),
            None => Err("an agent is reached at unix:/path/to/agent.sock".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_absolute_path_of_a_socket() {
        assert_eq!("unix:/run/x.sock".parse(), Ok(Host("/run/x.sock".into())));
        for bad in ["/run/x.sock", "unix:x.sock", "https://example.org", "unix:", ""] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }
}
