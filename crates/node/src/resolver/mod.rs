//! What machines reach by name: the resolver at each tenant's `.1`, for pools whose egress names hosts.
//!
//! An address is an identity, so who asks is known: a machine is told about the names of its pool and about nothing else, as
//! questions carry data too. Addresses are told only once they are let in, and stay so for somewhat longer than the machine is told.
//!
//! | module | holds |
//! |---|---|
//! | `question` | questions and answers as they are sent |
//! | `listen` | the sockets, and how much is taken at once |
//! | `upstream` | the host's resolvers |

mod listen;
mod question;
mod upstream;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mvm_host::ResolverSockets;
use mvm_model::{Egress, HostName, TenantId};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::Agent;
use crate::denials::Denials;
use crate::store::{self, TenantRow};

use question::{Kind, Reply};
pub use upstream::{Found, LookupFailed, Upstream};

/// How much longer an address is let in than machines are told that it holds: a connection may begin at the last moment, and a
/// machine's clock may stand still meanwhile.
const GRACE: Duration = Duration::from_secs(120);

/// Pauses between attempts to open one that could not be opened.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What to do about one that cannot be opened.
pub const REMEDY: &str = "nothing, once its address is free: it is tried again, at least once a minute. `ss -lntup` in the tenant's \
                          namespace (`ip netns`) names what has it";

/// The resolvers of tenants that have one.
#[derive(Debug, Default)]
pub struct Resolvers {
    kept: Mutex<HashMap<TenantId, Kept>>,
}

/// One that answers, or is tried to be opened again and again.
#[derive(Debug)]
struct Kept {
    task: AbortOnDropHandle<()>,
    /// Why it does not answer.
    trouble: watch::Receiver<Option<String>>,
}

impl Resolvers {
    /// Has a tenant have a resolver exactly where a pool of it reaches something by name. One that cannot be opened is opened
    /// once it can be.
    ///
    /// # Errors
    /// In words, for people.
    pub async fn keep(&self, agent: &Arc<Agent>, tenant: &TenantRow) -> Result<(), String> {
        let id = tenant.id.clone();
        let pools = agent.store.read(move |tx| store::pools(tx, Some(&id))).await;
        let pools = pools.map_err(|error| error.to_string())?;
        if !pools.iter().any(|pool| !pool.doomed && pool.spec.egress.names().next().is_some()) {
            self.close(&tenant.id).await;
            return Ok(());
        }
        let resolver = Resolver {
            agent: Arc::clone(agent),
            tenant: tenant.clone(),
            told: Mutex::default(),
            complaints: Denials::default(),
        };
        let sockets = resolver.open().await;
        let why = sockets.as_ref().err().cloned();
        // In a network that was made anew they could be opened.
        if why.is_none() || !self.is_kept(&tenant.id) {
            let (telling, trouble) = watch::channel(why.clone());
            let task = AbortOnDropHandle::new(tokio::spawn(Arc::new(resolver).stay(sockets, telling)));
            self.all().insert(tenant.id.clone(), Kept { task, trouble });
            return why.map_or(Ok(()), |why| Err(told(&why)));
        }
        self.trouble(&tenant.id).map_or(Ok(()), |why| Err(told(&why)))
    }

    /// Closes a tenant's resolver: its sockets would keep the tenant's network alive.
    pub async fn close(&self, tenant: &TenantId) {
        let kept = self.all().remove(tenant);
        if let Some(Kept { task, .. }) = kept {
            task.abort();
            // It ends as one that was told to, and has the sockets until then.
            let _ = task.await;
        }
    }

    /// Why a tenant's machines get no answers, where they should.
    pub fn trouble(&self, tenant: &TenantId) -> Option<String> {
        self.all().get(tenant)?.trouble.borrow().clone()
    }

    /// The tenants that have such trouble, and why.
    pub fn troubles(&self) -> Vec<(TenantId, String)> {
        let all = self.all();
        let troubled = all.iter().filter_map(|(id, kept)| Some((id.clone(), kept.trouble.borrow().clone()?)));
        troubled.collect()
    }

    fn is_kept(&self, tenant: &TenantId) -> bool {
        self.all().get(tenant).is_some_and(|kept| !kept.task.is_finished())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<TenantId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(why: &str) -> String {
    format!("names cannot be answered: {why}; it is tried again")
}

/// One tenant's.
#[derive(Debug)]
struct Resolver {
    agent: Arc<Agent>,
    tenant: TenantRow,
    /// Until when which addresses of a name are let in.
    told: Mutex<HashMap<HostName, HashMap<Ipv4Addr, Instant>>>,
    /// Of what goes wrong only so much is logged: machines decide how often they ask.
    complaints: Denials,
}

impl Resolver {
    /// Answers, and where it cannot, tries to until it can.
    async fn stay(
        self: Arc<Self>,
        mut sockets: Result<ResolverSockets, String>,
        trouble: watch::Sender<Option<String>>,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match sockets {
                Ok(sockets) => {
                    if trouble.send_replace(None).is_some() {
                        tracing::info!(tenant = %self.tenant.id, "names are answered again");
                    }
                    pause = FIRST_PAUSE;
                    Arc::clone(&self).serve(sockets).await
                }
                Err(why) => why,
            };
            if trouble.borrow().as_ref() != Some(&why) {
                tracing::error!(tenant = %self.tenant.id, %why, "names are not answered");
                trouble.send_replace(Some(why));
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
            sockets = self.open().await;
        }
    }

    async fn open(&self) -> Result<ResolverSockets, String> {
        let network = self.agent.network_of(&self.tenant);
        self.agent.hands.open_resolver(network).await.map_err(|error| error.to_string())
    }

    /// Answers; why not any more.
    async fn serve(self: Arc<Self>, sockets: ResolverSockets) -> String {
        let decide = move |who, asked| {
            let resolver = Arc::clone(&self);
            async move { resolver.decide(who, asked).await }
        };
        match listen::serve(sockets, decide).await {
            Ok(()) => "it ended".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    async fn decide(&self, who: Ipv4Addr, asked: Kind) -> Reply {
        let (name, wants_addresses) = match asked {
            Kind::Addresses(name) => (name, true),
            Kind::Other(name) => (name, false),
            _ => return Reply::Refused,
        };
        match self.egress_of(who).await {
            Some(egress) if egress.names().any(|allowed| *allowed == name) => {
                if wants_addresses {
                    self.addresses(&egress, &name).await
                } else {
                    Reply::Nothing
                }
            }
            _ => {
                tracing::debug!(tenant = %self.tenant.id, %who, %name, "a name that may not be reached was asked for");
                Reply::Refused
            }
        }
    }

    fn is_to_be_told(&self) -> bool {
        self.complaints.note(Instant::now()).is_some()
    }

    /// What the machine with this address may reach.
    async fn egress_of(&self, who: Ipv4Addr) -> Option<Egress> {
        let machines =
            self.agent.machines(|machine| machine.ip == who && machine.place.tenant == self.tenant.id);
        let machine = machines.first()?;
        Some(self.agent.pool(&self.tenant.id, &machine.place.pool).await.ok()?.spec.egress)
    }

    async fn addresses(&self, egress: &Egress, name: &HostName) -> Reply {
        let (mut addresses, ttl) = match self.agent.upstream.look_up(name).await {
            Ok(Found::Addresses(addresses, ttl)) => (addresses, ttl),
            Ok(Found::Nothing) => return Reply::Nothing,
            Ok(Found::NoName) => return Reply::NoName,
            Err(error) => {
                if self.is_to_be_told() {
                    tracing::warn!(tenant = %self.tenant.id, %error, "a machine asked for a name");
                }
                return Reply::Failed;
            }
        };
        let all = addresses.len();
        addresses.retain(|address| mvm_host::may_be_told(egress, *address));
        if addresses.len() < all && self.is_to_be_told() {
            tracing::warn!(tenant = %self.tenant.id, %name, "a name has addresses that no name leads to: they are not told");
        }
        if addresses.is_empty() {
            return Reply::Nothing;
        }
        if let Err(error) = self.let_in(name, &addresses, ttl).await {
            tracing::error!(tenant = %self.tenant.id, %name, %error, "a name's addresses could not be let in");
            return Reply::Failed;
        }
        Reply::Addresses(addresses, ttl)
    }

    /// Has addresses be let in for longer than they hold; that those of a kept answer are, is known.
    async fn let_in(
        &self,
        name: &HostName,
        addresses: &[Ipv4Addr],
        ttl: Duration,
    ) -> Result<(), mvm_host::HostError> {
        let now = Instant::now();
        {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let long_enough = |address| {
                let until = told.get(name).and_then(|of_name| of_name.get(address));
                until.is_some_and(|until| *until >= now + ttl + GRACE / 2)
            };
            if addresses.iter().all(long_enough) {
                return Ok(());
            }
        }
        let network = self.agent.network_of(&self.tenant);
        self.agent.hands.let_reach(network, name.clone(), addresses.to_vec(), ttl + GRACE).await?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let of_name = told.entry(name.clone()).or_default();
        of_name.retain(|_, until| *until > now);
        of_name.extend(addresses.iter().map(|address| (*address, now + ttl + GRACE)));
        Ok(())
    }
}
