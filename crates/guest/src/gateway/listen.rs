//! Ports and the connections that come in on them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mvm_model::RoutingTable;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::hold::Holds;
use super::peer::TrustedProxy;
use super::{AccessLog, Config, GatewayError, Limits, note};

/// Connections that the kernel keeps for a port until they are accepted.
const BACKLOG: u32 = 1024;
/// After so long without a byte a client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Pause after a connection could not be accepted, mostly for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    table: RwLock<Arc<RoutingTable>>,
    pub(super) holds: Holds,
    pub(super) limits: Limits,
    pub(super) trusted_proxy: TrustedProxy,
    pub(super) log: AccessLog,
    places: Arc<Semaphore>,
    pub(super) connections: TaskTracker,
    /// Connections end with the request they are at.
    pub(super) closing: CancellationToken,
    /// Connections end now.
    pub(super) ending: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: Config, log: AccessLog) -> Arc<Shared> {
        let limits = config.limits;
        Arc::new(Shared {
            table: RwLock::default(),
            holds: Holds::new(config.host_socket, limits.holds, limits.hold),
            limits,
            trusted_proxy: config.trusted_proxy,
            log,
            places: Arc::new(Semaphore::new(limits.connections)),
            connections: TaskTracker::new(),
            closing: CancellationToken::new(),
            ending: CancellationToken::new(),
        })
    }

    /// The routes as they are now; a request keeps the table it began with.
    pub(super) fn table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace_table(&self, table: RoutingTable) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Lets every connection finish its request, for a while, then ends those that are left.
    pub(super) async fn drain(&self) {
        self.closing.cancel();
        self.connections.close();
        if timeout(self.limits.drain, self.connections.wait()).await.is_err() {
            note(&format!("{} connections did not finish in time", self.connections.len()));
            self.ending.cancel();
            self.connections.wait().await;
        }
    }
}

/// The ports that are open.
#[derive(Debug)]
pub(super) struct Listeners {
    address: Ipv4Addr,
    open: BTreeMap<u16, Listener>,
}

#[derive(Debug)]
struct Listener {
    closing: CancellationToken,
    accepting: JoinHandle<Option<()>>,
}

impl Listeners {
    /// None yet, all of them on `address`.
    pub(super) fn on(address: Ipv4Addr) -> Listeners {
        Listeners { address, open: BTreeMap::new() }
    }

    /// Opens those of `ports` that are not open: all of them or none.
    ///
    /// # Errors
    /// [`GatewayError::Listen`]
    pub(super) fn open(&mut self, ports: &BTreeSet<u16>, shared: &Arc<Shared>) -> Result<(), GatewayError> {
        let new: Vec<(u16, TcpListener)> = ports
            .iter()
            .filter(|port| !self.open.contains_key(port))
            .map(|&port| match listen(SocketAddrV4::new(self.address, port)) {
                Ok(listener) => Ok((port, listener)),
                Err(source) => Err(GatewayError::Listen { port, source }),
            })
            .collect::<Result<_, _>>()?;
        for (port, listener) in new {
            let closing = CancellationToken::new();
            let accept = accept(Arc::clone(shared), listener, port);
            let accepting = tokio::spawn(closing.clone().run_until_cancelled_owned(accept));
            self.open.insert(port, Listener { closing, accepting });
        }
        Ok(())
    }

    /// Closes those that are not among `ports`, and returns when they are closed.
    pub(super) async fn close_all_but(&mut self, ports: &BTreeSet<u16>) {
        let (stay, go) =
            std::mem::take(&mut self.open).into_iter().partition(|(port, _)| ports.contains(port));
        self.open = stay;
        let go: BTreeMap<u16, Listener> = go;
        for listener in go.into_values() {
            listener.closing.cancel();
            // It ended either way.
            let _ = listener.accepting.await;
        }
    }

    pub(super) async fn close_all(&mut self) {
        self.close_all_but(&BTreeSet::new()).await;
    }
}

pub(super) fn listen(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    // Connections have it from their port: a client that vanished must not keep a place for ever.
    socket.set_keepalive(true)?;
    rustix::net::sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, port: u16) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, SocketAddr::V4(peer))) => (stream, peer),
            // The port is one of IPv4.
            Ok((_, SocketAddr::V6(_))) => continue,
            Err(error) => {
                note(&format!("cannot accept a connection on port {port}: {error}"));
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&shared.places).acquire_owned().await else { return };
        let serving = Arc::clone(&shared);
        shared.connections.spawn(async move {
            let ending = serving.ending.clone();
            let served = connection::serve(&serving, stream, peer, port);
            let served = ending.run_until_cancelled_owned(served).await;
            if let Some(Err(error)) = served
                && error.is_worth_a_note()
            {
                note(&format!("connection of {peer} on port {port}: {error}"));
            }
            drop(place);
        });
    }
}
