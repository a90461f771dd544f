//! The agent in this process.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mvm_node::Config;
use tracing_subscriber::EnvFilter;

use crate::connection::Connection;
use crate::failure::Failure;

/// What is logged where nothing is said.
const DEFAULT_LOG: &str = "info";

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it cannot be started, or ends by itself.
pub async fn serve(connection: &Connection, resolvers: Vec<SocketAddr>) -> Result<(), Failure> {
    log_to_stderr()?;
    let config = Config {
        data_dir: absolute(&connection.data_dir)?,
        run_dir: absolute(&connection.run_dir)?,
        socket: absolute(&connection.socket())?,
        resolvers,
    };
    mvm_node::serve(config).await.map_err(|error| Failure::NotDone(error.to_string()))
}

/// Folders are handed on to other processes, which may be elsewhere.
///
/// # Errors
/// Where this process's folder is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io(format!("cannot find {}", path.display()), error))
}

fn log_to_stderr() -> Result<(), Failure> {
    let filter = std::env::var("MVM_LOG").unwrap_or_else(|_| DEFAULT_LOG.to_owned());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| Failure::Usage(format!("MVM_LOG=`{filter}` is not a filter: {error}")))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let log = log.with_ansi(io::stderr().is_terminal()).try_init();
    log.map_err(|error| Failure::NotDone(format!("cannot log: {error}")))
}
