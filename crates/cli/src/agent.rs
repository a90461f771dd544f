//! `mvm agent`

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::{Args, Subcommand};
use mvm_protocol::api::AgentInfo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open, setsid};
use serde::Deserialize;

use crate::client::Client;
use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{self, Output, properties};
use crate::serve::serve;
use crate::view::by_state;

/// How long an agent may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands about the agent.
#[derive(Debug, Subcommand)]
pub enum Agent {
    /// Run the agent here, in the foreground
    Serve(Serve),
    /// Show how the agent is; never starts one
    Status {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
    /// Stop the agent; machines keep running, and the next agent finds them
    Stop,
}

/// Run the agent.
#[derive(Debug, Args)]
pub struct Serve {
    /// In a session of its own, as other commands start it
    #[arg(long, hide = true)]
    background: bool,

    /// Whom to ask for the names that machines may reach, instead of the resolvers of /etc/resolv.conf
    #[arg(long, env = "MVM_RESOLVER", value_name = "IP[:PORT]", value_delimiter = ',', value_parser = resolver)]
    resolver: Vec<SocketAddr>,
}

/// A resolver's address; its port is that of the DNS where it has none.
fn resolver(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    text.parse()
        .or_else(|_| alone())
        .map_err(|_| "write an address, as 192.0.2.53 or 192.0.2.53:5353".to_owned())
}

impl Agent {
    /// Whether this is the agent itself.
    pub fn serves(&self) -> bool {
        matches!(self, Agent::Serve(_))
    }

    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        match self {
            Agent::Serve(options) => options.run(connection).await?,
            Agent::Status { output } => {
                let info: AgentInfo = connection.client().get("/v1/agent").await?;
                output.show(&info, details)?;
            }
            Agent::Stop => output::write(stop(&connection.client()).await?.as_bytes())?,
        }
        Ok(0)
    }
}

impl Serve {
    async fn run(self, connection: &Connection) -> Result<(), Failure> {
        if self.background {
            // Without its starter's terminal, whose Ctrl-C is not meant for it.
            setsid().map_err(|error| Failure::io("cannot begin a session", error.into()))?;
        }
        serve(connection, self.resolver).await
    }
}

/// What an agent answers when it is told to stop.
#[derive(Deserialize)]
struct Stopping {}

/// Stops the agent and waits for its end: a next one may be started at once.
async fn stop(client: &Client) -> Result<String, Failure> {
    if !client.is_listened_to().await? {
        return Ok(format!("no agent runs at unix:{}\n", client.socket().display()));
    }
    let info: AgentInfo = client.get("/v1/agent").await?;
    let process = process(info.pid);
    let Stopping {} = client.post("/v1/agent/stop").await?;
    if let Some(process) = process {
        let waited = tokio::task::spawn_blocking(move || has_ended(&process)).await;
        if !waited.unwrap_or(false) {
            let seconds = PATIENCE.as_secs();
            return Err(Failure::NotDone(format!(
                "the agent (pid {}) has not ended after {seconds} s",
                info.pid
            )));
        }
    }
    Ok(format!("the agent has stopped; instances stay as they are: {}\n", by_state(&info.instances)))
}

/// A descriptor of a process, if it can be seen from here.
fn process(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for a process's end; a zombie has ended.
fn has_ended(process: &OwnedFd) -> bool {
    let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready > 0)
}

fn details(info: &AgentInfo) -> String {
    let mine = env!("CARGO_PKG_VERSION");
    let version = if info.version == mine {
        info.version.clone()
    } else {
        format!("{} (this command is {mine}: restart the agent)", info.version)
    };
    properties([
        ("version", Some(version)),
        ("pid", Some(info.pid.to_string())),
        ("up", Some(clock::age(clock::now(), info.started_at))),
        ("engine", Some(info.engine.clone())),
        ("data_dir", Some(info.data_dir.clone())),
        ("run_dir", Some(info.run_dir.clone())),
        ("tenants", Some(info.tenants.to_string())),
        ("instances", Some(by_state(&info.instances))),
    ])
}
