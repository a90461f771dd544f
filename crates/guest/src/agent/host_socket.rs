//! Port 53: a socket in the machine whose connections become streams to the host.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use mvm_protocol::control::HostReply;
use mvm_protocol::{Mux, Port, frame};
use tokio::net::{UnixListener, UnixStream};

use super::limits::Slot;
use crate::console::say;
use crate::error::{Doing as _, Result};
use crate::lock;
use crate::machine::{Machine, places};

/// The session that streams to the host are opened on.
#[derive(Debug, Default)]
pub struct HostLink {
    current: Mutex<(u64, Option<Mux>)>,
}

impl HostLink {
    /// Makes this session the current one, until the guard is dropped or another is announced.
    pub fn announce(&self, mux: Mux) -> impl Drop + use<'_> {
        let mut current = lock(&self.current);
        *current = (current.0 + 1, Some(mux));
        Announced { link: self, number: current.0 }
    }

    fn current(&self) -> Option<Mux> {
        lock(&self.current).1.clone()
    }
}

struct Announced<'a> {
    link: &'a HostLink,
    number: u64,
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        let mut current = lock(&self.link.current);
        if current.0 == self.number {
            current.1 = None;
        }
    }
}

/// Listens on [`places::HOST_SOCKET`].
pub(super) fn start(machine: &Arc<Machine>) -> Result<()> {
    let path = places::HOST_SOCKET;
    let listener = UnixListener::bind(path).doing(format_args!("listening on {path}"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .doing(format_args!("closing {path} to others"))?;
    let machine = Arc::clone(machine);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => forward(&machine, connection),
                Err(error) => {
                    say(format_args!("accepting on {path}: {error}"));
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

/// Without a session the connection is closed: whoever asked may try again until the host is back. Without a place it is
/// told so, as the host itself would.
fn forward(machine: &Arc<Machine>, connection: UnixStream) {
    let Some(mux) = machine.host.current() else { return };
    match machine.streams.take_for_guest() {
        Some(slot) => tokio::spawn(pipe(mux, connection, slot)),
        None => tokio::spawn(refuse(connection)),
    };
}

async fn refuse(mut connection: UnixStream) {
    let message = "too many streams are open on this machine: try again in a moment".to_owned();
    // Fails only where nobody waits for it any more.
    let _ = frame::write(&mut connection, &HostReply::Error { message }).await;
}

async fn pipe(mux: Mux, mut connection: UnixStream, _slot: Slot) {
    let Ok(mut stream) = mux.open(Port::Host).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut connection, &mut stream) => {}
        () = mux.ended() => {}
    }
}
