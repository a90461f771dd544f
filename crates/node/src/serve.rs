//! From a configuration to a running agent, and its orderly end.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mvm_host::{Host, HostConfig, HostError, HostEvent};
use tokio::net::UnixListener;

use crate::agent::{Agent, Config};
use crate::seal::{Key, SealError};
use crate::store::{self, Store, StoreError, TenantRow};
use crate::{alarms, api, bases, destroy, spares, systemd};

/// Why an agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A folder or file of its own.
    #[error("{path}: {source}", path = .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Another agent has this data or run folder.
    #[error(
        "another agent uses {path}; `mvm agent status` shows it, `mvm agent stop` ends it. Two agents need data and run \
         folders of their own", path = .0.display()
    )]
    Taken(PathBuf),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The host is not able to run machines.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Runs an agent until it is told to stop: by `mvm agent stop`, SIGTERM or SIGINT. Machines go on running.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let _locks = prepare(&config)?;
    raise_descriptor_limit();
    let store = private(|| Store::open(&config.data_dir.join("mvm.db")))?;
    let node_key = Key::of_node(&config.data_dir.join("node.key"))?;
    let host = HostConfig { data_dir: config.data_dir.clone(), run_dir: config.run_dir.clone() };
    let (hands, mut happened) = Host::open(host).await?;
    let boot_id = mvm_host::boot_id()?;
    let agent = Arc::new(Agent::new(config, store, hands, boot_id, node_key));
    let (listener, is_ours) = match systemd::opened_ahead(&agent.config.socket) {
        Some(listener) => (take_over(listener, &agent.config.socket)?, false),
        None => (listen(&agent.config.socket)?, true),
    };
    recover(&agent).await?;
    let telling = {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move {
            while let Some(event) = happened.recv().await {
                match event {
                    HostEvent::MachineEnded(event) => {
                        if let Some(machine) = agent.machine(event.instance) {
                            machine.ended(event);
                        }
                    }
                    HostEvent::SpareEnded { tenant, pool } => spares::keep_soon(&agent, (tenant, pool)),
                    HostEvent::EngineReplaced => drop(tokio::spawn(look_after_bases(Arc::clone(&agent)))),
                }
            }
        })
    };
    let tending = tokio::spawn(spares::tend(Arc::clone(&agent)));
    tokio::spawn(alarms::ring(Arc::clone(&agent)));
    tokio::spawn(look_after_bases(Arc::clone(&agent)));
    let stop = agent.stopping.clone();
    tokio::spawn(stop_on_signal(stop.clone()));
    tokio::spawn(systemd::keep_watched(Arc::clone(&agent)));
    tracing::info!(socket = %agent.config.socket.display(), "serving");
    systemd::ready();
    let served = api::serve(Arc::clone(&agent), listener, stop).await;
    systemd::stopping();
    telling.abort();
    tending.abort();
    // VMMs that are no instance's: nobody would use them. What cannot be ended, the next agent ends.
    if let Err(error) = agent.hands.close().await {
        tracing::warn!(%error, "a machine that was started ahead stays");
    }
    if is_ours {
        // The next agent makes its own; a socket left behind would look like one that hangs.
        let _ = std::fs::remove_file(&agent.config.socket);
    }
    served.map_err(|source| ServeError::Path { path: agent.config.socket.clone(), source })
}

/// Makes both folders and takes them for this agent alone; the locks live as long as what is returned.
fn prepare(config: &Config) -> Result<[std::fs::File; 2], ServeError> {
    for folder in [&config.data_dir, &config.run_dir] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(folder);
        made.map_err(|source| ServeError::Path { path: folder.clone(), source })?;
    }
    Ok([take(&config.data_dir)?, take(&config.run_dir)?])
}

fn take(folder: &Path) -> Result<std::fs::File, ServeError> {
    let path = folder.join("agent.lock");
    let wrong = |source| ServeError::Path { path: path.clone(), source };
    let lock = std::fs::File::create(&path).map_err(wrong)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServeError::Taken(folder.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(wrong(source)),
    }
}

/// What is made meanwhile is root's alone.
fn private<T>(make: impl FnOnce() -> T) -> T {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let made = make();
    rustix::process::umask(before);
    made
}

/// Every machine and every connection takes descriptors; the soft limit that most systems give is for small programs.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Access to the socket equals root over mvm's machines: root and group `mvm` only.
fn listen(socket: &Path) -> Result<UnixListener, ServeError> {
    let wrong = |source| ServeError::Path { path: socket.to_owned(), source };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrong(error)),
        _ => {}
    }
    // Nobody else may connect in the moment before the mode is set.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    let listener = listener.map_err(wrong)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660)).map_err(wrong)?;
    if let Some(group) = mvm_host::group_id("mvm") {
        std::os::unix::fs::chown(socket, None, Some(group)).map_err(wrong)?;
    }
    Ok(listener)
}

/// A socket that was opened for the agent, with the rights that whoever opened it gave it.
fn take_over(listener: std::os::unix::net::UnixListener, socket: &Path) -> Result<UnixListener, ServeError> {
    let taken = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    taken.map_err(|source| ServeError::Path { path: socket.to_owned(), source })
}

/// Compares what was written with what is there: tenants' networks and ports, then every machine, gateways first.
async fn recover(agent: &Arc<Agent>) -> Result<(), ServeError> {
    let (tenants, instances, pools, bases, revisions) = agent
        .store
        .read(|tx| {
            let (tenants, instances) = (store::tenants(tx)?, store::instances(tx, None, None)?);
            let revisions = crate::pools::needed_revisions(tx)?;
            Ok((tenants, instances, store::pools(tx, None)?, store::bases(tx, None)?, revisions))
        })
        .await?;
    let known = instances.iter().map(|row| (row.id, row.process.clone())).collect();
    let restores = instances.iter().filter(|row| row.keeps_a_disk()).map(|row| row.id).collect();
    let networks = tenants.iter().map(|tenant| tenant.net_id).collect();
    let bases = bases.into_iter().map(|base| base.id).collect();
    let revisions = revisions.into_iter().collect();
    agent.hands.remove_strays(known, restores, networks, bases, revisions).await?;
    for tenant in tenants.iter().filter(|tenant| !tenant.doomed) {
        // One tenant's trouble is not the others'.
        if let Err(error) = agent.hands.ensure_network(agent.network_of(tenant)).await {
            tracing::error!(tenant = %tenant.id, %error, "a tenant's network could not be repaired");
        }
        if let Err(error) = agent.resolvers.keep(agent, tenant).await {
            tracing::error!(tenant = %tenant.id, %error, "a tenant's resolver is not there");
        }
    }
    let priority = |row: &store::InstanceRow| {
        let pool = pools.iter().find(|p| p.tenant == row.place.tenant && p.spec.id == row.place.pool);
        pool.map_or(u8::MAX, |pool| pool.spec.role.priority())
    };
    let mut instances = instances;
    instances.sort_by_key(priority);
    for row in instances {
        let Some(tenant) = tenants.iter().find(|tenant| tenant.id == row.place.tenant) else { continue };
        let Some(ip) = tenant.subnet.machine_ip(row.place.offset) else { continue };
        // The others of a doomed tenant or pool go with it.
        let of_doomed = tenant.doomed
            || pools.iter().any(|p| p.doomed && p.tenant == row.place.tenant && p.spec.id == row.place.pool);
        let alone = row.intent == Some(store::Intent::Destroy) && !of_doomed;
        let machine = agent.take_over_machine(tenant, row, ip, of_doomed);
        if alone {
            let agent = Arc::clone(agent);
            tokio::spawn(async move {
                if let Err(error) = destroy::instance(&agent, &machine).await {
                    tracing::error!(%error, "an instance could not be destroyed");
                }
            });
        }
    }
    for pool in pools.into_iter().filter(|pool| pool.doomed) {
        // With its tenant, where that is doomed too.
        if tenants.iter().any(|tenant| tenant.id == pool.tenant && !tenant.doomed) {
            destroy_pool(agent, pool);
        }
    }
    for tenant in tenants {
        reopen(agent, tenant);
    }
    Ok(())
}

/// Where this host's shape is another than it was, bases are made anew, once machines are where they belong.
async fn look_after_bases(agent: Arc<Agent>) {
    for machine in agent.machines(|_| true) {
        // One that was destroyed meanwhile needs no waiting for.
        let _ = machine.settled().await;
    }
    // A pool that never had one gets it with its first start.
    let bases = match agent.store.read(|tx| store::bases(tx, None)).await {
        Ok(bases) => bases,
        Err(error) => return tracing::error!(%error, "bases are not looked after"),
    };
    let pools: BTreeSet<_> = bases.into_iter().map(|base| (base.tenant, base.pool)).collect();
    for (tenant, pool) in pools {
        bases::ensure_soon(&agent, tenant, pool, bases::Look::AtShape);
    }
}

fn destroy_pool(agent: &Arc<Agent>, pool: store::PoolRow) {
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        if let Err(error) = destroy::pool(&agent, &pool.tenant, &pool.spec.id).await {
            tracing::error!(%error, tenant = %pool.tenant, pool = %pool.spec.id, "a pool could not be destroyed");
        }
    });
}

fn reopen(agent: &Arc<Agent>, tenant: TenantRow) {
    if tenant.doomed {
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            if let Err(error) = destroy::tenant(&agent, &tenant.id).await {
                tracing::error!(%error, tenant = %tenant.id, "a tenant could not be destroyed");
            }
        });
        return;
    }
    for taken in agent.publishing.open_all(agent, &tenant) {
        tracing::error!(%taken, tenant = %tenant.id, "a published port is gone");
    }
}

async fn stop_on_signal(stop: tokio_util::sync::CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be handled; `mvm agent stop` still works");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    stop.cancel();
}
