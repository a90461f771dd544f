//! The port for workers: who asks is known by the address, and proves it with a token.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use mvm_protocol::openclaw::{BOT_API_PATH, MODEL_API_PATH};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::super::{GatewayError, listen, note};
use super::outgoing::Body;
use super::{Context, bot_api, model};
use crate::lock;

/// Connections of one worker at once.
const PER_WORKER: usize = 32;
const HEAD: Duration = Duration::from_secs(75);
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Opens it.
///
/// # Errors
/// [`GatewayError::Listen`]
pub(super) fn listen(address: SocketAddrV4) -> Result<TcpListener, GatewayError> {
    listen::listen(address).map_err(|source| GatewayError::Listen { port: address.port(), source })
}

/// Serves it until what is returned is dropped; its connections last as the gateway's others do.
pub(super) fn serve(context: Arc<Context>, listener: TcpListener) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let open = Arc::new(Open::default());
        loop {
            match listener.accept().await {
                Ok((stream, SocketAddr::V4(peer))) => {
                    if let Some(place) = Place::take(&open, *peer.ip()) {
                        let connection = connection(Arc::clone(&context), stream, place);
                        context.gateway.connections.spawn(connection);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    note(&format!("cannot accept a connection of a worker: {error}"));
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }))
}

/// How many connections each worker has.
#[derive(Debug, Default)]
struct Open(Mutex<HashMap<Ipv4Addr, usize>>);

/// One of them. No worker takes the places of others.
#[derive(Debug)]
struct Place {
    open: Arc<Open>,
    source: Ipv4Addr,
}

impl Place {
    fn take(open: &Arc<Open>, source: Ipv4Addr) -> Option<Place> {
        let mut counts = lock(&open.0);
        let count = counts.entry(source).or_default();
        if *count == PER_WORKER {
            return None;
        }
        *count += 1;
        Some(Place { open: Arc::clone(open), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.open.0);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

async fn connection(context: Arc<Context>, stream: TcpStream, place: Place) {
    let _ = stream.set_nodelay(true);
    let source = place.source;
    let service = service_fn(|request| answer(&context, source, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        // A worker that has slept would find an old connection broken, and not know what became of its call.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let (closing, ending) = (context.gateway.closing.clone(), context.gateway.ending.clone());
    let ended = async {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        // A worker that leaves is a matter of course.
        let _ = connection.as_mut().await;
    };
    tokio::select! {
        () = ended => {}
        () = ending.cancelled() => {}
    }
}

async fn answer(
    context: &Arc<Context>,
    source: Ipv4Addr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(if let Some(path) = below(&path, MODEL_API_PATH) {
        model::answer(context, source, path, request).await
    } else {
        // In the Bot API's form, for what is for neither, too.
        bot_api::answer(context, source, below(&path, BOT_API_PATH).unwrap_or_default(), request).await
    })
}

fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'))
}
