//! The agent: answers the host over the control channel and keeps the services running.

mod channel;
mod copy;
mod exec;
mod forward;
mod host_socket;
mod limits;
mod logs;
mod port;
mod requests;
mod session;
mod terminal;

pub use host_socket::HostLink;
pub use limits::StreamLimit;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::console::say;
use crate::error::{Doing as _, Result};
use crate::machine::Machine;
use crate::machine::device::Devices;

/// Where the native form listens.
const CONTROL_SOCKET: &str = "control.sock";
/// How long services may take to end where nobody says so.
const DEFAULT_GRACE: Duration = Duration::from_secs(15);
/// How long a thread for what may block waits for more: longer than any machine runs.
const KEPT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How long the host may take to receive what was answered before the end.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Runs until the machine is to be switched off; with a folder as its native form, whose host connects to a socket in it.
pub fn run(native: Option<&Path>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(KEPT)
        .build()
        .doing("starting the runtime")?;
    // Started here and kept, so that a clone or a machine that wakes does not have to start a thread.
    drop(runtime.spawn_blocking(|| ()));
    runtime.block_on(run_until_shutdown(native))
}

async fn run_until_shutdown(native: Option<&Path>) -> Result<()> {
    let devices = native.map_or_else(Devices::of_machine, Devices::native)?;
    let (machine, mut shutdown) = Machine::new(devices)?;
    let machine = Arc::new(machine);
    let mut children = signal(SignalKind::child()).doing("watching for ended processes")?;
    let mut terminate = signal(SignalKind::terminate()).doing("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).doing("watching for SIGINT")?;
    if let Err(failure) = host_socket::start(&machine) {
        say(failure);
    }
    let (mut sessions, outbox) = match native {
        None => port::start(port::open()?)?,
        Some(folder) => port::listen(&folder.join(CONTROL_SOCKET))?,
    };
    let mut current: Option<JoinHandle<()>> = None;
    let grace = loop {
        tokio::select! {
            Some(channel) = sessions.recv() => {
                if let Some(earlier) = current.take() {
                    earlier.abort();
                }
                current = Some(tokio::spawn(session::serve(channel, Arc::clone(&machine))));
            }
            Some(()) = children.recv() => machine.children.reap(),
            Some(grace) = shutdown.recv() => break grace,
            () = either(&mut terminate, &mut interrupt) => break DEFAULT_GRACE,
        }
    };
    stop(&machine, &mut children, grace).await;
    outbox.drained(LAST_WORDS).await;
    Ok(())
}

/// The first of two signals.
async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// Ends the services while their ends are still reaped.
async fn stop(machine: &Arc<Machine>, children: &mut Signal, grace: Duration) {
    let stopping = machine.stop(grace);
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            () = &mut stopping => break,
            Some(()) = children.recv() => machine.children.reap(),
        }
    }
}
