//! `mvm-guest gateway`: accepts messages, finds their route, and wakes the machine they are for.
//!
//! | file | does |
//! |---|---|
//! | `config` | where files are, limits |
//! | `run` | the service: signals, the ready file |
//! | `listen` | ports |
//! | `connection` | one connection: HTTP/1.1 or HTTP/2 |
//! | `peer` | who is at the other end of a connection: PROXY protocol |
//! | `exchange` | one request: route, Hold, forward |
//! | `hold` | asks the host for a machine, on port 53 |
//! | `upstream` | connects to that machine and passes the request on |
//! | `tunnel`, `websocket` | a connection that has switched protocols |
//! | `headers`, `body`, `refusal` | what is changed on the way, streaming, answers of the gateway's own |
//! | `access_log` | a line for each request |
//! | `openclaw` | Telegram, and the APIs of workers, for a tenant of OpenClaw |
//!
//! Each request, also on a reused connection, takes a [Hold](hold::Hold) of its own and gives it back when the
//! last byte of the answer has gone out or the client has left.

mod access_log;
mod body;
mod config;
mod connection;
mod exchange;
mod headers;
mod hold;
mod listen;
mod openclaw;
mod peer;
mod refusal;
mod run;
#[cfg(test)]
mod tests;
mod tunnel;
mod upstream;
mod websocket;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mvm_model::RoutingTable;
use mvm_model::routes::InvalidRoutes;

pub use access_log::AccessLog;
pub use config::{Config, Limits};
pub use openclaw::OpenClawConfig;
pub use peer::TrustedProxy;
pub use run::run;

use listen::{Listeners, Shared};

/// Why a gateway does not start, or keeps its old routes.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A variable of the environment is not what it should be.
    #[error("{name}={value}: {expected} is expected")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The routes are not JSON of the right shape.
    #[error("{path} is not a routing table: {source}")]
    Table {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// `config.json` is not JSON of the right shape.
    #[error("{path} is not understood: {source}; are host and guest of different versions?")]
    MachineConfig {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The routes cannot decide.
    #[error("{path}: {source}")]
    Routes {
        /// The file.
        path: PathBuf,
        /// Which route and why.
        source: InvalidRoutes,
    },
    /// A port that a route names is not to be had.
    #[error("cannot listen on port {port}: {source}; does a service of this machine use it?")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// The runtime or its signals could not be set up.
    #[error("cannot start the gateway: {0}")]
    Runtime(io::Error),
}

/// A gateway at work.
pub struct Gateway {
    routes: PathBuf,
    shared: Arc<Shared>,
    listeners: Listeners,
    listen: Ipv4Addr,
    host_socket: PathBuf,
    openclaw_config: OpenClawConfig,
    /// Where the machine is of a tenant of OpenClaw.
    openclaw: Option<openclaw::OpenClaw>,
}

impl Gateway {
    /// Reads the routes and listens on every port they name. A file that does not exist is a table without routes.
    ///
    /// # Errors
    /// Routes that are not valid, a port that is taken.
    pub async fn start(config: Config, log: AccessLog) -> Result<Gateway, GatewayError> {
        let table = match read_table(&config.routes).await {
            Err(GatewayError::File { source, path }) if source.kind() == io::ErrorKind::NotFound => {
                note(&format!("{} does not exist: no routes", path.display()));
                RoutingTable::default()
            }
            read => read?,
        };
        let listen = config.listen;
        let mut gateway = Gateway {
            routes: config.routes.clone(),
            listeners: Listeners::on(listen),
            listen,
            host_socket: config.host_socket.clone(),
            openclaw_config: config.openclaw.clone(),
            openclaw: None,
            shared: Shared::new(config, log),
        };
        gateway.adopt(table).await?;
        gateway.adopt_openclaw().await?;
        Ok(gateway)
    }

    /// Reads the routes again: opens new ports, closes those that are gone. Connections are left alone.
    ///
    /// # Errors
    /// As for [`Gateway::start`]; then the routes are as they were.
    pub async fn reload(&mut self) -> Result<(), GatewayError> {
        // Neither waits for the other to be mended.
        let openclaw = self.adopt_openclaw().await;
        let table = read_table(&self.routes).await?;
        self.adopt(table).await?;
        openclaw
    }

    async fn adopt_openclaw(&mut self) -> Result<(), GatewayError> {
        let running = self.openclaw.take();
        let (config, socket) = (&self.openclaw_config, &self.host_socket);
        match openclaw::adopt(running, &self.shared, config, self.listen, socket).await {
            Ok(running) => {
                self.openclaw = running;
                Ok(())
            }
            Err((running, error)) => {
                self.openclaw = running;
                Err(error)
            }
        }
    }

    /// Stops accepting, lets requests in flight finish for as long as [`Limits::drain`] says, then ends them.
    pub async fn shutdown(mut self) {
        self.listeners.close_all().await;
        // What workers have in hand is among the connections that are drained.
        let mut openclaw = self.openclaw.take();
        let stopping = async {
            if let Some(openclaw) = &mut openclaw {
                openclaw.stop().await;
            }
        };
        tokio::join!(stopping, self.shared.drain());
        if let Some(openclaw) = openclaw {
            openclaw.finish().await;
        }
    }

    async fn adopt(&mut self, table: RoutingTable) -> Result<(), GatewayError> {
        let ports = table.ports();
        self.listeners.open(&ports, &self.shared)?;
        self.shared.replace_table(table);
        self.listeners.close_all_but(&ports).await;
        Ok(())
    }
}

async fn read_table(path: &Path) -> Result<RoutingTable, GatewayError> {
    let text =
        tokio::fs::read(path).await.map_err(|source| GatewayError::File { path: path.to_owned(), source })?;
    let table: RoutingTable = serde_json::from_slice(&text)
        .map_err(|source| GatewayError::Table { path: path.to_owned(), source })?;
    table.validate().map_err(|source| GatewayError::Routes { path: path.to_owned(), source })?;
    Ok(table)
}

/// A line for the person who looks after the gateway. Standard output has the access log only.
fn note(line: &str) {
    use io::Write;
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr(), "gateway: {line}");
}
