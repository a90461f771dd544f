//! What goes on as a stream of records between a client and a guest: programs, copies, connections.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mvm_model::InstanceState;
use mvm_protocol::Stream;
use mvm_protocol::api::{CopyRequest, ErrorCode, ExecRequest, ForwardRequest, UPGRADE, WOKEN};
use mvm_protocol::control::{GuestReply, GuestRequest};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, copy_buf};
use tokio::time::timeout;

use super::instances::{Address, find};
use super::{Failure, Shared, fault};
use crate::machine::{Asker, Lease, Machine};

/// How long a guest may take to begin with something, on a busy host.
pub(super) const BEGIN: Duration = Duration::from_secs(20);
/// How long a guest may say nothing when its client is gone.
const GUEST_ALONE: Duration = Duration::from_secs(30);
/// How many bytes are carried at once.
const PIECE: usize = 64 * 1024;

/// Asks a guest for something that goes on with records.
async fn begin(
    machine: &Machine,
    request: GuestRequest,
    name: &'static str,
) -> Result<(Stream, Lease), Failure> {
    let (link, lease) = machine.session().await?;
    let begun = link.begin(&request, name, BEGIN).await.map_err(|error| fault(ErrorCode::Failed, error))?;
    match begun {
        (GuestReply::Started, stream) => Ok((stream, lease)),
        _ => Err(fault(ErrorCode::Failed, format!("the guest's answer to {name} makes no sense"))),
    }
}

/// What a request that wants to become a stream asks for, and what it becomes when it is answered.
pub(super) async fn upgrading<T: DeserializeOwned>(
    request: Request<Body>,
) -> Result<(T, OnUpgrade), Failure> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let upgrade =
        upgrade.ok_or_else(|| fault(ErrorCode::Invalid, format!("this wants `Upgrade: {UPGRADE}`")))?;
    let body = axum::body::to_bytes(body, 1024 * 1024).await.map_err(|e| fault(ErrorCode::Invalid, e))?;
    Ok((serde_json::from_slice(&body).map_err(|e| fault(ErrorCode::Invalid, e))?, upgrade))
}

/// The answer after which it is a stream.
pub(super) fn upgraded() -> Response {
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, UPGRADE)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Wakes a machine where it sleeps, asks its guest, and connects the client with what goes on there.
async fn connect<T: DeserializeOwned>(
    machine: &Machine,
    request: Request<Body>,
    name: &'static str,
    ask: impl FnOnce(T) -> GuestRequest,
) -> Result<Response, Failure> {
    let (wanted, upgrade) = upgrading(request).await?;
    let woken = wake_for(machine).await?;
    let (stream, lease) = begin(machine, ask(wanted), name).await?;
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            // Either side may go first; the other then sees its end.
            let _ = carry(TokioIo::new(client), stream, lease, GUEST_ALONE).await;
        }
    });
    let mut response = upgraded();
    if let Some(millis) = woken {
        response.headers_mut().insert(WOKEN, HeaderValue::from(millis));
    }
    Ok(response)
}

/// Carries bytes until both directions have ended. A client says with a record that it has nothing more to say: where its
/// direction ends it is gone, the machine need not stay awake for it (which ends the lease), and a guest that says nothing
/// for `alone` is not waited for.
async fn carry<L>(
    client: impl AsyncRead + AsyncWrite,
    guest: impl AsyncRead + AsyncWrite,
    lease: L,
    alone: Duration,
) -> io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let client_is_gone = AtomicBool::new(false);
    let up = async {
        let copied = copy_buf(&mut BufReader::with_capacity(PIECE, from_client), &mut to_guest).await;
        client_is_gone.store(true, Ordering::Relaxed);
        drop(lease);
        copied?;
        to_guest.shutdown().await
    };
    let down = async {
        let mut piece = vec![0; PIECE];
        loop {
            let length = match timeout(alone, from_guest.read(&mut piece)).await {
                Ok(length) => length?,
                Err(_) if client_is_gone.load(Ordering::Relaxed) => return Err(ErrorKind::TimedOut.into()),
                Err(_) => continue,
            };
            if length == 0 {
                return to_client.shutdown().await;
            }
            to_client.write_all(&piece[..length]).await?;
            to_client.flush().await?;
        }
    };
    tokio::try_join!(up, down).map(drop)
}

pub async fn exec(
    State(agent): Shared,
    Path((t, p, i)): Address,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    connect(&machine, request, "Exec", |exec| {
        let ExecRequest { command, environment, user, terminal } = exec;
        GuestRequest::Exec { command, environment, user, terminal }
    })
    .await
}

pub async fn copy(
    State(agent): Shared,
    Path((t, p, i)): Address,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    let ask = |CopyRequest { path, direction }| GuestRequest::Copy { path, direction };
    connect(&machine, request, "Copy", ask).await
}

pub async fn forward(
    State(agent): Shared,
    Path((t, p, i)): Address,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    connect(&machine, request, "Forward", |ForwardRequest { port }| GuestRequest::Forward { port }).await
}

/// Whoever wants to work in a machine that sleeps or is paused wakes it: how long that took, in milliseconds.
async fn wake_for(machine: &Machine) -> Result<Option<u64>, Failure> {
    // A sleep that has begun is waited for.
    machine.settled().await?;
    if !matches!(machine.state(), InstanceState::Sleeping | InstanceState::Warm) {
        return Ok(None);
    }
    let begun = Instant::now();
    machine.run(Asker::Person).await?;
    Ok(Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_client_that_is_gone_keeps_no_machine_and_is_not_waited_for() {
        let ((mut client, here), (there, mut guest)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let lease = Arc::new(());
        let kept = Arc::downgrade(&lease);
        let alone = Duration::from_millis(100);
        let carrying = tokio::spawn(carry(here, there, lease, alone));
        let mut word = [0; 4];
        // A guest may be silent for longer while its client is there.
        tokio::time::sleep(alone * 3).await;
        client.write_all(b"asks").await.unwrap();
        guest.read_exact(&mut word).await.unwrap();
        guest.write_all(b"told").await.unwrap();
        client.read_exact(&mut word).await.unwrap();
        assert!(kept.upgrade().is_some() && !carrying.is_finished());
        drop(client);
        assert_eq!(guest.read(&mut word).await.unwrap(), 0);
        assert!(kept.upgrade().is_none());
        // It says nothing, and does not close its side.
        assert_eq!(carrying.await.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
