//! What an agent has to do with systemd where that started it: a socket that was opened for it, and word of how it is. Elsewhere
//! none of this does anything. Protocols: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::agent::Agent;

/// The socket that was opened ahead, if it is the one that the agent is to have.
pub(crate) fn opened_ahead(socket: &Path) -> Option<UnixListener> {
    let listener = ListenFd::from_env().take_unix_listener(0).ok().flatten()?;
    let address = listener.local_addr().ok()?;
    if address.as_pathname() == Some(socket) {
        return Some(listener);
    }
    tracing::warn!(?address, wanted = %socket.display(), "a socket was opened ahead that is not the agent's");
    None
}

/// The agent serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says again and again that the agent is well, as long as its store answers, if anyone wants to know.
pub(crate) async fn keep_watched(agent: Arc<Agent>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut turns = tokio::time::interval((limit / 3).max(Duration::from_millis(1)));
    loop {
        turns.tick().await;
        match agent.store.read(|_| Ok(())).await {
            Ok(()) => tell(&[NotifyState::Watchdog]),
            Err(error) => {
                tracing::error!(%error, "the store does not answer: systemd is not told that all is well")
            }
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
