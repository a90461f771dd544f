//! Published ports: the agent listens on the host and connects from inside the tenant's namespace. A connection makes
//! its machine run, and keeps it awake while it lasts.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mvm_model::manifest::Publish;
use mvm_model::{InstanceSelector, Role, TenantId};
use mvm_protocol::proxy;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
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
    /// Takes a port, so that nobody else can until it is opened; `None` if the tenant has it already, to whatever end.
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
            if in_the_way().next().is_some() {
                return Ok(None);
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
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(port = publish.port, %error, "a published port could not be opened");
                return;
            }
        };
        let task = tokio::spawn(listen(Arc::clone(agent), tenant.clone(), publish.clone(), listener));
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.insert(
            address(&publish),
            Listener { tenant: tenant.id.clone(), publish, task: AbortOnDropHandle::new(task) },
        );
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
        for Listener { task, .. } in closed {
            task.abort();
            // Its socket goes with the task, which ends as one that was told to.
            let _ = task.await;
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

async fn listen(agent: Arc<Agent>, tenant: TenantRow, publish: Publish, listener: TcpListener) {
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
