//! The gateway as a service under PID 1.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::{AccessLog, Config, Gateway, GatewayError, Limits, note};

/// Runs until SIGTERM or SIGINT; SIGHUP reads the routes, the config and the secrets again. The access log goes to standard output.
///
/// # Errors
/// What keeps the gateway from starting; later troubles are noted on standard error and survived.
pub fn run(config: Config) -> Result<(), GatewayError> {
    raise_descriptor_limit(&config.limits);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(GatewayError::Runtime)?
        .block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), GatewayError> {
    // Before anything else: a signal that comes early must not end the process.
    let mut reload = signal(SignalKind::hangup()).map_err(GatewayError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(GatewayError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(GatewayError::Runtime)?;
    let ready = config.ready.clone();
    remove(&ready)?;
    let (log, writer) = AccessLog::to(io::stdout());
    let mut gateway = Gateway::start(config, log).await?;
    announce(&ready)?;
    loop {
        tokio::select! {
            _ = reload.recv() => match gateway.reload().await {
                Ok(()) => note("routes read again"),
                Err(error) => note(&format!("the old routes stay: {error}")),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    remove(&ready)?;
    gateway.shutdown().await;
    writer.finish();
    Ok(())
}

fn announce(ready: &Path) -> Result<(), GatewayError> {
    let folder = ready.parent().map_or(Ok(()), fs::create_dir_all);
    folder
        .and_then(|()| fs::write(ready, b""))
        .map_err(|source| GatewayError::File { path: ready.to_owned(), source })
}

/// An earlier gateway may have ended without the time to do so.
fn remove(ready: &Path) -> Result<(), GatewayError> {
    match fs::remove_file(ready) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(GatewayError::File { path: ready.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// A connection needs a descriptor, a Hold two more, and workers of OpenClaw and the services outside the rest; what a service is given by default is less than that.
fn raise_descriptor_limit(limits: &Limits) {
    let needed = (limits.connections + 2 * limits.holds + 1024) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let wanted = maximum.map_or(needed, |maximum| needed.min(maximum));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    if wanted < needed || raised.is_err() {
        note(&format!("{needed} descriptors are needed at full load; the limit is {wanted}"));
    }
}
