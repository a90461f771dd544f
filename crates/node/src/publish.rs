//! Published ports: the agent listens on the host and connects from inside the tenant's namespace. A connection makes
//! its machine run, and keeps it awake while it lasts.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mvm_model::manifest::Publish;
use mvm_model::{InstanceSelector, Role, TenantId};
use mvm_protocol::proxy;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_reuseaddr, set_socket_reuseport, set_tcp_keepidle,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::Agent;
use crate::hostbound::choose;
use crate::store::TenantRow;

/// Connections that one published port carries at once: each takes two descriptors, which all tenants share.
const MAX_CONNECTIONS: usize = 1024;

/// After so long without a byte a client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A port of the host is taken.
#[derive(Debug, thiserror::Error)]
#[error("{bind} cannot be published: {why}")]
pub struct PortTaken {
    bind: SocketAddrV4,
    why: String,
}

/// The listeners of published ports.
#[derive(Debug, Default)]
pub struct Publishing {
    listeners: Mutex<HashMap<SocketAddrV4, Listener>>,
}

#[derive(Debug)]
struct Listener {
    tenant: TenantId,
    publish: Publish,
    socket: Arc<TcpListener>,
    task: AbortOnDropHandle<()>,
}

/// A port that was bound and does not lead anywhere yet.
#[derive(Debug)]
pub struct Bound {
    publish: Publish,
    listener: std::net::TcpListener,
}

/// Where a published port listens.
pub fn address(publish: &Publish) -> SocketAddrV4 {
    SocketAddrV4::new(publish.bind, publish.port)
}

impl Publishing {
    /// Takes a port, so that nobody else can until it is opened; `None` if the tenant has it already, to whatever end, or has
    /// to give up what is in its way first and could take it then.
    ///
    /// # Errors
    /// [`PortTaken`], naming the owner where it is a tenant.
    pub fn bind(&self, tenant: &TenantId, publish: &Publish) -> Result<Option<Bound>, PortTaken> {
        let bind = address(publish);
        {
            let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            let in_the_way = || listeners.values().filter(|other| other.publish.collides_with(publish));
            if let Some(other) = in_the_way().find(|other| other.tenant != *tenant) {
                return Err(PortTaken { bind, why: format!("tenant {} has it", other.tenant) });
            }
            let own: Vec<&TcpListener> = in_the_way().map(|own| &*own.socket).collect();
            if listeners.contains_key(&bind) {
                return Ok(None);
            }
            if !own.is_empty() {
                let free = could_listen(bind, &own);
                return free.map(|()| None).map_err(|error| PortTaken { bind, why: describe(&error) });
            }
        }
        let listener = std::net::TcpListener::bind(bind)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| PortTaken { bind, why: describe(&error) })?;
        Ok(Some(Bound { publish: publish.clone(), listener }))
    }

    /// Lets a bound port lead to its machines.
    pub fn open(&self, agent: &Arc<Agent>, tenant: &TenantRow, bound: Bound) {
        let Bound { publish, listener } = bound;
        // Connections have it from their port: one whose client vanished must not keep its machine awake for ever.
        let kept =
            set_socket_keepalive(&listener, true).and_then(|()| set_tcp_keepidle(&listener, KEEPALIVE));
        if let Err(error) = kept {
            tracing::warn!(port = publish.port, %error, "clients that vanish will not be noticed");
        }
        let socket = match TcpListener::from_std(listener) {
            Ok(listener) => Arc::new(listener),
            Err(error) => {
                tracing::error!(port = publish.port, %error, "a published port could not be opened");
                return;
            }
        };
        let listening = listen(Arc::clone(agent), tenant.clone(), publish.clone(), Arc::clone(&socket));
        let task = AbortOnDropHandle::new(tokio::spawn(listening));
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.insert(address(&publish), Listener { tenant: tenant.id.clone(), publish, socket, task });
    }

    /// Opens every port of a tenant that is not open; gives those that somebody else took meanwhile.
    pub fn open_all(&self, agent: &Arc<Agent>, tenant: &TenantRow) -> Vec<PortTaken> {
        let mut taken = Vec::new();
        for publish in &tenant.publish {
            match self.bind(&tenant.id, publish) {
                Ok(Some(bound)) => self.open(agent, tenant, bound),
                Ok(None) => {}
                Err(error) => taken.push(error),
            }
        }
        taken
    }

    /// The ports of a tenant at which the agent listens.
    pub fn open_ports(&self, tenant: &TenantId) -> Vec<Publish> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let own = listeners.values().filter(|listener| listener.tenant == *tenant);
        own.map(|listener| listener.publish.clone()).collect()
    }

    /// Closes the ports of a tenant that are not wanted any more, or lead elsewhere now. They are free afterwards.
    pub async fn keep_only(&self, tenant: &TenantId, wanted: &[Publish]) {
        let closed: Vec<Listener> = {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            let unwanted = |_: &SocketAddrV4, listener: &mut Listener| {
                listener.tenant == *tenant && !wanted.contains(&listener.publish)
            };
            listeners.extract_if(unwanted).map(|(_, listener)| listener).collect()
        };
        for Listener { task, socket, .. } in closed {
            task.abort();
            // The task ends as one that was told to, and has the socket until then, too.
            let _ = task.await;
            drop(socket);
        }
    }
}

fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "another process listens there; `ss -ltnp` names it".to_owned(),
        std::io::ErrorKind::AddrNotAvailable => "no interface of this host has that address".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether an address could be listened on if one's own that are in its way were closed. They go on meanwhile: a moment in
/// which the kernel lets them share the port tells it.
fn could_listen(bind: SocketAddrV4, own: &[&TcpListener]) -> std::io::Result<()> {
    let share = |on: bool| own.iter().try_for_each(|own| set_socket_reuseport(own, on));
    let shared = share(true).and_then(|()| listen_beside(bind));
    share(false).and(shared).map_err(Into::into)
}

fn listen_beside(bind: SocketAddrV4) -> rustix::io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &bind)?;
    // An address that is part of one's own is free of others, and connections to it are not to come here.
    if bind.ip().is_unspecified() { rustix::net::listen(&socket, 1) } else { Ok(()) }
}

async fn listen(agent: Arc<Agent>, tenant: TenantRow, publish: Publish, listener: Arc<TcpListener>) {
    // Connections end with their listener: one that stayed would keep a destroyed tenant's namespace alive.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // Those over the limit wait in the kernel's queue.
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (client, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: that passes.
                tracing::warn!(port = publish.port, %error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (agent, tenant, publish) = (Arc::clone(&agent), tenant.clone(), publish.clone());
        connections.spawn(async move {
            let std::net::SocketAddr::V4(peer) = peer else { return };
            if let Err(error) = carry(&agent, &tenant, &publish, client, peer).await {
                tracing::info!(tenant = %tenant.id, port = publish.port, %peer, %error, "a connection failed");
            }
        });
    }
}

/// Carries one connection to its machine. One that cannot be carried is closed.
async fn carry(
    agent: &Agent,
    tenant: &TenantRow,
    publish: &Publish,
    mut client: TcpStream,
    peer: SocketAddrV4,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let role = agent.pool(&tenant.id, &publish.pool).await?.spec.role;
    let machine = choose(agent, &tenant.id, &publish.pool, &InstanceSelector::Any).await?;
    let _lease = machine.hold().await?;
    let target = SocketAddrV4::new(machine.ip, publish.target_port);
    let mut inside = agent.hands.connect(agent.network_of(tenant), target).await?;
    if role == Role::Gateway {
        let destination = match client.local_addr()? {
            std::net::SocketAddr::V4(local) => local,
            std::net::SocketAddr::V6(_) => address(publish),
        };
        inside.write_all(&proxy::encode(peer, destination)).await?;
    }
    client.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut inside) => copied.map(drop)?,
        // Nobody is there to answer any more, or to say so: the client would wait for minutes.
        () = machine.lost_memory() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whether_ones_own_port_can_be_moved_is_found_out_while_it_is_open() {
        let at = |last: u8, port: u16| SocketAddrV4::new([127, 0, 0, last].into(), port);
        let everywhere = |port: u16| SocketAddrV4::new([0, 0, 0, 0].into(), port);
        let own = TcpListener::bind(at(2, 0)).await.unwrap();
        let port = own.local_addr().unwrap().port();
        could_listen(everywhere(port), &[&own]).unwrap();
        let foreign = std::net::TcpListener::bind(at(3, port)).unwrap();
        let taken = could_listen(everywhere(port), &[&own]).unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        drop(foreign);
        could_listen(everywhere(port), &[&own]).unwrap();
        // Nobody shares it afterwards, and it is open still.
        let beside = std::net::TcpListener::bind(everywhere(port)).unwrap_err();
        assert_eq!(beside.kind(), std::io::ErrorKind::AddrInUse);
        TcpStream::connect(at(2, port)).await.unwrap();
        drop(own);

        let own = TcpListener::bind(everywhere(0)).await.unwrap();
        let port = own.local_addr().unwrap().port();
        could_listen(at(2, port), &[&own]).unwrap();
        let none = could_listen(SocketAddrV4::new([192, 0, 2, 1].into(), port), &[&own]).unwrap_err();
        assert_eq!(none.kind(), std::io::ErrorKind::AddrNotAvailable);
    }
}
