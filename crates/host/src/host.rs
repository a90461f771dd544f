//! The hands themselves.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mvm_image::{BuildStep, ImageSource, ImageStore, cache_folder};
use mvm_model::service::ServicesFile;
use mvm_model::{InstanceId, NetId, PoolId, TenantId};
use mvm_network::{Networks, NodeTag, ResolverSockets, TenantNetwork, choose_uplink};
use mvm_vmm::{Ended, ProcessIdentity};
use tokio::sync::mpsc;

use crate::bases::Bases;
use crate::engine::Engines;
use crate::machines::Running;
use crate::nameless::{Numbers, Reserved};
use crate::paths::Paths;
use crate::spares::Spares;
use crate::{HostError, Reply, Request};

/// Where an agent keeps things.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// State that lasts.
    pub data_dir: PathBuf,
    /// State that goes with a boot of the host.
    pub run_dir: PathBuf,
}

/// A VMM has ended, whoever caused it.
#[derive(Debug, Clone)]
pub struct MachineEnded {
    /// The instance.
    pub instance: InstanceId,
    /// Its process.
    pub process: ProcessIdentity,
    /// How.
    pub ended: Ended,
    /// Why it was ended, where the host did it by itself.
    pub why: Option<String>,
}

/// Something that happened at the host without having been asked for.
#[derive(Debug, Clone)]
pub enum HostEvent {
    /// A VMM has ended.
    MachineEnded(MachineEnded),
    /// A spare has ended that still waited.
    SpareEnded {
        /// The tenant.
        tenant: TenantId,
        /// Its pool.
        pool: PoolId,
    },
    /// QEMU is another than it was: bases do not fit it.
    EngineReplaced,
}

/// The hands of one agent. Clones are the same hands.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) paths: Paths,
    pub(crate) tag: NodeTag,
    pub(crate) networks: Networks,
    pub(crate) tenants: TenantLocks,
    pub(crate) images: ImageStore,
    pub(crate) engines: Engines,
    pub(crate) running: Mutex<HashMap<InstanceId, Arc<Running>>>,
    pub(crate) bases: Bases,
    pub(crate) spares: Spares,
    pub(crate) numbers: Numbers,
    pub(crate) reserved: Reserved,
    /// Whether nothing is to be started ahead any more. Whoever starts something reads it meanwhile.
    pub(crate) closing: tokio::sync::RwLock<bool>,
    pub(crate) events: mpsc::UnboundedSender<HostEvent>,
}

/// A tenant's network is changed by one act at a time; those of different tenants in parallel.
#[derive(Default)]
pub(crate) struct TenantLocks(Mutex<HashMap<NetId, Arc<Mutex<()>>>>);

impl TenantLocks {
    pub(crate) fn one_at_a_time<T>(&self, net_id: NetId, act: impl FnOnce() -> T) -> T {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(net_id).or_default())
        };
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        act()
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// Uids of VMMs start here, far from those of people and services; each agent has a range of its own.
const FIRST_UID: u32 = 0x4000_0000;
/// VMMs that one agent can have.
const UIDS: u32 = 1 << 16;
/// Of these, those for VMMs that are started without an instance.
const NAMELESS_UIDS: u32 = 1 << 13;

impl Host {
    /// Makes ready to work in the calling thread's network namespace, and examines the engine. Events of machines that
    /// end come out of the receiver.
    ///
    /// # Errors
    /// Where the engine or the folders are not usable.
    pub async fn open(config: HostConfig) -> Result<(Self, mpsc::UnboundedReceiver<HostEvent>), HostError> {
        let HostConfig { data_dir, run_dir } = config;
        let data = data_dir.canonicalize().map_err(HostError::at(&data_dir))?;
        let paths = Paths { data, run: run_dir };
        for folder in [paths.instances(), paths.restores(), paths.runs(), paths.bases(), paths.nameless()] {
            std::fs::create_dir_all(&folder).map_err(HostError::at(&folder))?;
        }
        let tag = NodeTag::of_data_folder(&paths.data);
        let images = paths.images();
        let (sender, events) = mpsc::unbounded_channel();
        let inner = Inner {
            networks: Networks::open(tag.clone())?,
            tenants: TenantLocks::default(),
            images: ImageStore::open(&images, &cache_folder(&images))?,
            engines: Engines::detect(paths.engine()).await?.telling(sender.clone()),
            running: Mutex::default(),
            paths,
            tag,
            bases: Bases::default(),
            spares: Spares::default(),
            numbers: Numbers::default(),
            reserved: Reserved::default(),
            closing: tokio::sync::RwLock::default(),
            events: sender,
        };
        Ok((Self { inner: Arc::new(inner) }, events))
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.inner.paths
    }

    /// The engine in words: `qemu 7.2.22 (emulation)`.
    pub fn engine(&self) -> String {
        self.inner.engines.describe()
    }

    /// The uids that instances' VMMs may have.
    pub fn uids(&self) -> std::ops::Range<u32> {
        self.inner.all_uids().start..self.inner.nameless_uids().start
    }

    /// Does what is asked.
    ///
    /// # Errors
    /// [`HostError`]: what was begun is undone.
    pub async fn call(&self, request: Request) -> Result<Reply, HostError> {
        match request {
            Request::Preflight
            | Request::ChooseUplink { .. }
            | Request::EnsureNetwork(_)
            | Request::RemoveNetwork(_)
            | Request::VerifyNetworks(_)
            | Request::VerifyNetwork(_)
            | Request::Admit { .. }
            | Request::LetReach { .. }
            | Request::MakeDisk { .. }
            | Request::ReplaceDisk(_)
            | Request::RemoveMachine(_)
            | Request::DiscardSnapshot(_)
            | Request::DiscardOwn(_)
            | Request::RemoveRevision(_)
            | Request::TrimConsole(_)
            | Request::ConsoleTail(_)
            | Request::ReadConsole { .. } => self.blocking(move |inner| inner.at_once(request)).await,
            Request::Launch(launch) => self.start_vmm(*launch).await.map(Reply::Launched),
            Request::Reattach { instance, process, port } => {
                done(self.take_up(instance, &process, port).await)
            }
            Request::Restore(instance) => done(self.running(instance)?.restore().await),
            Request::GoOn(instance) => done(self.go_on_checked(instance).await),
            Request::Pause(instance) => done(Ok(self.running(instance)?.machine.pause().await?)),
            Request::SetLink { instance, up } => done(self.running(instance)?.set_link(up).await),
            Request::Snapshot { facts, compression } => {
                self.write_snapshot(facts, compression).await.map(Reply::Snapshot)
            }
            Request::Shape { revision, resources } => {
                self.shape_of(revision, resources).await.map(Reply::Shape)
            }
            Request::StartBase(launch) => self.start_base(launch).await.map(Reply::BaseStarted),
            Request::LetBaseRun(name) => done(self.let_base_run(&name).await),
            Request::WriteBase { name, facts } => self.write_base(&name, facts).await.map(Reply::Base),
            Request::EndBase(name) => done(self.end_base(&name).await),
            Request::RemoveBase(id) => done(self.remove_base(id).await),
            Request::KeepSpares(order) => self.keep_spares(order).await.map(Reply::Spares),
            Request::EndSpares(tenant) => done(self.end_spares(tenant).await),
            Request::Scrub(all) => self.read_through(all).await.map(Reply::Damages),
            Request::Close => done(self.close_all().await),
            Request::AwaitCheck(instance) => {
                self.running(instance)?.checked().await;
                Ok(Reply::Done)
            }
            Request::WaitEnd { instance, within } => {
                let Ok(running) = self.running(instance) else { return Ok(Reply::Ended(true)) };
                Ok(Reply::Ended(tokio::time::timeout(within, running.machine.wait()).await.is_ok()))
            }
            Request::WhyEnded(instance) => {
                Ok(Reply::Why(self.running(instance).ok().and_then(|running| running.doom())))
            }
            Request::WasKilled(instance) => {
                let running = self.running(instance)?;
                Ok(Reply::Ended(running.was_killed().await))
            }
            Request::MemoryUsage(instance) => {
                Ok(Reply::MemoryUsage(self.running(instance)?.machine.memory_usage().await?))
            }
            Request::End { instance, process } => done(self.end_vmm(instance, process).await),
            Request::RemoveStrays { instances, restores, networks, bases, revisions } => {
                done(self.end_strays(instances, restores, networks, bases, revisions).await)
            }
        }
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Inner) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || act(&inner)).await?
    }

    /// Builds an image, or finds that it was built; gives its revision.
    ///
    /// # Errors
    /// Whatever is wrong with the recipe, its lock, the archives or the tools.
    pub async fn build_image(
        &self,
        source: ImageSource,
        progress: impl Fn(BuildStep) + Send + Sync + 'static,
    ) -> Result<String, HostError> {
        self.blocking(move |inner| Ok(inner.images.build(&source, &progress)?.id.to_string())).await
    }

    /// Builds an image anew as far as its files are not what was built; gives its revision, and how many of its files were replaced.
    ///
    /// # Errors
    /// As [`Host::build_image`].
    pub async fn mend_image(
        &self,
        source: ImageSource,
        progress: impl Fn(BuildStep) + Send + Sync + 'static,
    ) -> Result<(String, usize), HostError> {
        self.blocking(move |inner| {
            let (revision, replaced) = inner.images.mend(&source, &progress)?;
            Ok((revision.id.to_string(), replaced))
        })
        .await
    }

    /// The revision that a build of an image would give, if everything for it is there.
    ///
    /// # Errors
    /// Whatever is wrong with the image.
    pub async fn built_image(&self, source: ImageSource) -> Result<Option<String>, HostError> {
        self.blocking(move |inner| Ok(inner.images.built(&source)?.map(|id| id.to_string()))).await
    }

    /// What runs in the machines of a revision.
    ///
    /// # Errors
    /// Where there is no such revision.
    pub async fn services(&self, revision: String) -> Result<ServicesFile, HostError> {
        self.blocking(move |inner| {
            let id = revision.parse().map_err(|_| HostError::NotARevision(revision))?;
            Ok(inner.images.revision(&id)?.services)
        })
        .await
    }

    /// Connects to a machine from inside its tenant's namespace.
    ///
    /// # Errors
    /// Where the machine does not accept.
    pub async fn connect(
        &self,
        network: TenantNetwork,
        target: SocketAddrV4,
    ) -> Result<tokio::net::TcpStream, HostError> {
        Ok(self.inner.networks.connect(&network, *target.ip(), target.port()).await?)
    }

    /// Makes the sockets of a tenant's resolver. They are to be closed before the network is removed.
    ///
    /// # Errors
    /// Where the tenant's network is not there, or has them already.
    pub async fn open_resolver(&self, network: TenantNetwork) -> Result<ResolverSockets, HostError> {
        self.blocking(move |inner| Ok(inner.networks.open_resolver(&network)?)).await
    }
}

fn done(result: Result<(), HostError>) -> Result<Reply, HostError> {
    result.map(|()| Reply::Done)
}

impl Inner {
    /// The uids of VMMs that are started without an instance.
    pub(crate) fn nameless_uids(&self) -> std::ops::Range<u32> {
        let all = self.all_uids();
        all.end - NAMELESS_UIDS..all.end
    }

    /// The uids that this agent's VMMs may have.
    pub(crate) fn all_uids(&self) -> std::ops::Range<u32> {
        let number = u32::from_str_radix(&self.tag.as_str()[..3], 16).unwrap_or_default();
        let first = FIRST_UID + number * UIDS;
        first..first + UIDS
    }

    /// What needs no VMM.
    fn at_once(&self, request: Request) -> Result<Reply, HostError> {
        match request {
            Request::Preflight => return Ok(Reply::Requirements(self.networks.preflight())),
            Request::ChooseUplink { taken } => {
                let mut all = self.networks.taken_networks()?;
                all.extend(taken.into_iter().map(mvm_network::Uplink::net));
                return Ok(Reply::Uplink(choose_uplink(&all)?));
            }
            Request::EnsureNetwork(network) => {
                self.tenants.one_at_a_time(network.net_id, || self.networks.ensure(&network))?;
            }
            Request::RemoveNetwork(net_id) => {
                self.tenants.one_at_a_time(net_id, || self.networks.remove(net_id))?;
            }
            Request::VerifyNetworks(expected) => {
                return Ok(Reply::Findings(self.networks.verify(&expected)?));
            }
            Request::VerifyNetwork(expected) => {
                return Ok(Reply::Findings(self.networks.verify_tenant(&expected)?));
            }
            Request::Admit { network, port } => {
                self.tenants.one_at_a_time(network.net_id, || self.networks.admit(&network, &port))?;
            }
            Request::LetReach { network, name, addresses, lifetime } => {
                let act = || self.networks.let_reach(&network, &name, &addresses, lifetime);
                self.tenants.one_at_a_time(network.net_id, act)?;
            }
            Request::MakeDisk { instance, mib } => self.make_disk(instance, mib)?,
            Request::ReplaceDisk(instance) => self.replace_disk(instance)?,
            Request::RemoveMachine(instance) => {
                remove_folder(&self.paths.run_of(instance))?;
                remove_folder(&self.paths.data_of(instance))?;
            }
            Request::DiscardSnapshot(instance) => {
                mvm_vmm::remove_kept(&self.paths.snapshot_of(instance))?;
            }
            Request::DiscardOwn(instance) => mvm_vmm::remove_kept(&self.paths.own_of(instance))?,
            Request::RemoveRevision(revision) => {
                let id = revision.parse().map_err(|_| HostError::NotARevision(revision))?;
                self.images.remove(&id)?;
            }
            Request::TrimConsole(instance) => {
                mvm_vmm::trim_console(&self.console_of(instance), CONSOLE_BYTES)?;
            }
            Request::ConsoleTail(instance) => {
                let text = std::fs::read(self.console_of(instance)).unwrap_or_default();
                return Ok(Reply::Console(last_lines(&text)));
            }
            Request::ReadConsole { instance, from } => {
                let path = self.console_of(instance);
                let (text, next) = read_after(&path, from).map_err(HostError::at(&path))?;
                return Ok(Reply::ConsolePiece(text, next));
            }
            _ => return Err(HostError::Confused),
        }
        Ok(Reply::Done)
    }

    fn console_of(&self, instance: InstanceId) -> PathBuf {
        self.paths.run_of(instance).join("console.log")
    }
}

/// What is kept of a console's log.
const CONSOLE_BYTES: u64 = 1 << 20;
/// Lines of a console that are shown with a failure.
const TAIL_LINES: usize = 5;

/// What is read of one at once.
const CONSOLE_PIECE: u64 = 64 * 1024;

/// Some of a file, and where what follows begins.
fn read_after(path: &std::path::Path, from: u64) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if from > length {
        return Ok((Vec::new(), length));
    }
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(CONSOLE_PIECE).read_to_end(&mut text)?;
    let next = from + text.len() as u64;
    Ok((text, next))
}

fn last_lines(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    (!tail.is_empty()).then(|| tail.join("\n"))
}

pub(crate) fn remove_folder(path: &std::path::Path) -> Result<(), HostError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(HostError::at(path)(error)),
        _ => Ok(()),
    }
}

/// The boot of the host.
///
/// # Errors
/// Where /proc is not mounted.
pub fn boot_id() -> Result<String, HostError> {
    Ok(mvm_vmm::boot_id()?)
}

/// The id of a group of this host.
pub fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_that_say_something() {
        assert_eq!(last_lines(b"\n \n"), None);
        assert_eq!(last_lines(b"1\n2\r\n\n3\n4\n5\n6\n").as_deref(), Some("2\n3\n4\n5\n6"));
    }

    #[test]
    fn root_has_a_group_and_nobody_has_none() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no such group"), None);
    }
}
