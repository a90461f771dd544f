//! The agent: what its parts share.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mvm_host::{Host, PortSpec, TenantNetwork};
use mvm_model::quota::{QuotaExceeded, Usage};
use mvm_model::{InstanceId, PoolId, PoolSpec, Resources, Role, TenantId, UserName, openclaw};
use mvm_protocol::SecretBytes;
use mvm_protocol::control::SecretFiles;
use mvm_protocol::openclaw::worker_token;
use tokio::sync::Semaphore;

use crate::machine::Machine;
use crate::publish::Publishing;
use crate::resolver::{Resolvers, Upstream};
use crate::seal::{Key, SealError};
use crate::store::{self, InstanceRow, PoolRow, SealedRow, Store, StoreError, TenantRow, UserRow};

/// Where an agent keeps things.
#[derive(Debug, Clone)]
pub struct Config {
    /// State that lasts.
    pub data_dir: PathBuf,
    /// State that goes with a boot of the host.
    pub run_dir: PathBuf,
    /// The agent's address.
    pub socket: PathBuf,
    /// Whom it asks for the names that machines reach; the host's resolvers where there is none.
    pub resolvers: Vec<SocketAddr>,
}

/// Something the agent knows could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Secrets.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No such tenant.
    #[error("there is no tenant `{0}`; `mvm tenant list` shows those there are")]
    NoTenant(TenantId),
    /// No such pool.
    #[error("tenant {0} has no pool `{1}`; `mvm pool list {0}` shows those there are")]
    NoPool(TenantId, PoolId),
    /// No such user.
    #[error("tenant {0} has no user `{1}`; `mvm user list {0}` shows those there are")]
    NoUser(TenantId, UserName),
}

/// What the parts of an agent share.
#[derive(Debug)]
pub struct Agent {
    /// Where it keeps things.
    pub config: Config,
    /// What it knows, durably.
    pub store: Store,
    /// What it does to the host.
    pub hands: Host,
    /// The boot of the host it runs in.
    pub boot_id: String,
    /// Since when it runs, in seconds since 1970.
    pub started_at: u64,
    /// Which machines may run.
    pub admissions: Admissions,
    /// Ports of the host that lead to machines.
    pub publishing: Publishing,
    /// Where machines ask for names.
    pub resolvers: Resolvers,
    /// Whom the agent asks for them.
    pub upstream: Upstream,
    /// Cold boots at once: each keeps a core busy for a second and more.
    pub boots: Semaphore,
    /// Sleeps by policy at once: after a start of the agent, many machines may be idle for as long.
    pub idle_sleeps: Semaphore,
    /// Who makes bases.
    pub bases: crate::bases::Makers,
    /// Who wants VMMs that are started ahead.
    pub demand: crate::spares::Demand,
    /// How often a minimum runtime made a difference.
    pub minimums: crate::policy::Minimums,
    /// When machines are woken for what they plan.
    pub alarms: crate::alarms::Alarms,
    /// One change of what is wanted at a time.
    pub changing: tokio::sync::Mutex<()>,
    /// Told to end.
    pub stopping: tokio_util::sync::CancellationToken,
    pub(crate) node_key: Key,
    machines: RwLock<BTreeMap<InstanceId, Machine>>,
}

impl Agent {
    /// Puts the parts together.
    pub fn new(config: Config, store: Store, hands: Host, boot_id: String, node_key: Key) -> Self {
        let boots = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let upstream = Upstream::new(config.resolvers.clone());
        Self {
            config,
            store,
            hands,
            boot_id,
            started_at: store::now_secs(),
            admissions: Admissions::default(),
            publishing: Publishing::default(),
            resolvers: Resolvers::default(),
            upstream,
            boots: Semaphore::new(boots),
            idle_sleeps: Semaphore::new(boots),
            bases: crate::bases::Makers::default(),
            demand: crate::spares::Demand::default(),
            minimums: crate::policy::Minimums::default(),
            alarms: crate::alarms::Alarms::default(),
            changing: tokio::sync::Mutex::new(()),
            stopping: tokio_util::sync::CancellationToken::new(),
            node_key,
            machines: RwLock::default(),
        }
    }

    /// Every machine that a filter takes, by id.
    pub fn machines(&self, filter: impl Fn(&Machine) -> bool) -> Vec<Machine> {
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.values().filter(|machine| filter(machine)).cloned().collect()
    }

    /// One machine.
    pub fn machine(&self, id: InstanceId) -> Option<Machine> {
        self.machines.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Starts the task of an instance.
    pub fn add_machine(self: &Arc<Self>, tenant: &TenantRow, row: InstanceRow, ip: Ipv4Addr) -> Machine {
        self.take_over_machine(tenant, row, ip, false)
    }

    /// Starts the task of an instance that an earlier agent had; of one that is `doomed`, with its tenant or pool, nothing is
    /// begun.
    pub fn take_over_machine(
        self: &Arc<Self>,
        tenant: &TenantRow,
        row: InstanceRow,
        ip: Ipv4Addr,
        doomed: bool,
    ) -> Machine {
        let machine = crate::machine::spawn(Arc::clone(self), tenant.clone(), row, ip, doomed);
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        machines.insert(machine.id, machine.clone());
        machine
    }

    /// Forgets a machine that was destroyed.
    pub fn forget_machine(&self, id: InstanceId) {
        self.machines.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// A tenant as it is wanted now.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn tenant(&self, id: &TenantId) -> Result<TenantRow, AgentError> {
        let wanted = id.clone();
        let found = self.store.read(move |tx| store::tenant(tx, &wanted)).await?;
        found.ok_or_else(|| AgentError::NoTenant(id.clone()))
    }

    /// A pool as it is wanted now.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn pool(&self, tenant: &TenantId, id: &PoolId) -> Result<PoolRow, AgentError> {
        let (wanted_tenant, wanted) = (tenant.clone(), id.clone());
        let found = self.store.read(move |tx| store::pool(tx, &wanted_tenant, &wanted)).await?;
        found.ok_or_else(|| AgentError::NoPool(tenant.clone(), id.clone()))
    }

    /// A user.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn user(&self, tenant: &TenantId, name: &UserName) -> Result<UserRow, AgentError> {
        let (wanted_tenant, wanted) = (tenant.clone(), name.clone());
        let found = self.store.read(move |tx| store::user(tx, &wanted_tenant, &wanted)).await?;
        found.ok_or_else(|| AgentError::NoUser(tenant.clone(), name.clone()))
    }

    /// The secrets that a machine of a pool is given, in clear.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn secrets_of(
        &self,
        tenant: &TenantId,
        pool: &PoolSpec,
        machine: InstanceId,
    ) -> Result<SecretFiles, AgentError> {
        let wanted = tenant.clone();
        let (rows, wrapped) = self
            .store
            .read(move |tx| Ok((store::secrets(tx, &wanted)?, store::tenant_key(tx, &wanted)?)))
            .await?;
        let Some(wrapped) = wrapped else { return Ok(SecretFiles::new()) };
        let key = self.node_key.unwrap_key(tenant, &wrapped)?;
        let open = |row: &SealedRow| key.open(&format!("{}/{}", row.scope, row.key), &row.sealed);
        Ok(files_given(pool, machine, rows, open)?)
    }

    /// A tenant's network, for the host.
    pub fn network_of(&self, tenant: &TenantRow) -> TenantNetwork {
        TenantNetwork { net_id: tenant.net_id, subnet: tenant.subnet, uplink: tenant.uplink }
    }

    /// A machine's port on its tenant's bridge, for the host.
    pub fn port_of(&self, tenant: &TenantRow, row: &InstanceRow, ip: Ipv4Addr, pool: &PoolSpec) -> PortSpec {
        PortSpec {
            offset: row.place.offset,
            mac: tenant.net_id.mac(row.place.offset),
            ip,
            isolated: pool.role != Role::Gateway,
            egress: pool.egress.clone(),
        }
    }

    /// Ends an instance's VMM, if there is one, and takes its port away. What cannot be undone now is found by the next
    /// agent, or by `net verify`.
    pub async fn discard_vmm(&self, row: &InstanceRow) {
        let ended = self.hands.end(row.id, row.process.clone()).await;
        if let Err(error) = ended {
            tracing::error!(instance = %row.address(), %error, "its VMM or its port could not be removed");
        }
    }
}

/// Of a tenant's secrets those that a machine of a pool is given. OpenClaw's token is the gateways'; of it each worker has one of
/// its own, which another cannot find.
fn files_given<E>(
    pool: &PoolSpec,
    machine: InstanceId,
    rows: Vec<SealedRow>,
    open: impl Fn(&SealedRow) -> Result<SecretBytes, E>,
) -> Result<SecretFiles, E> {
    let mut files = SecretFiles::new();
    for row in rows {
        let is_token = (row.scope.as_str(), row.key.as_str()) == (openclaw::SCOPE, openclaw::TOKEN_KEY);
        if pool.is_given(&row.scope, &row.key) {
            let value = open(&row)?;
            files.entry(row.scope).or_default().insert(row.key, value);
        } else if is_token && pool.is_given_worker_token() {
            let own = worker_token(open(&row)?.expose(), machine);
            let name = openclaw::WORKER_TOKEN_KEY.to_owned();
            files.entry(row.scope).or_default().insert(name, SecretBytes::new(own.into_bytes()));
        }
    }
    Ok(files)
}

/// Which machines may run, counted against their tenants' quotas. A start is admitted before it begins, so that two at
/// once cannot both take the last place.
#[derive(Debug, Default)]
pub struct Admissions {
    running: Arc<Mutex<HashMap<TenantId, Admitted>>>,
}

/// What is admitted of a tenant, and how many admissions each machine holds: a new one may be taken before the old one
/// is given back.
type Admitted = BTreeMap<InstanceId, (Resources, usize)>;

/// A machine's place among the running ones of its tenant; given back when dropped.
#[derive(Debug)]
pub struct Admission {
    running: Arc<Mutex<HashMap<TenantId, Admitted>>>,
    tenant: TenantId,
    id: InstanceId,
}

impl Admissions {
    /// Admits a machine that is to run.
    ///
    /// # Errors
    /// The quota that would be passed.
    pub fn admit(
        &self,
        tenant: &TenantRow,
        id: InstanceId,
        resources: Resources,
    ) -> Result<Admission, QuotaExceeded> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = running.entry(tenant.id.clone()).or_default();
        let others = admitted.iter().filter(|(other, _)| **other != id).map(|(_, (other, _))| other);
        admit_beside(tenant, others, &resources)?;
        take(admitted, id, resources);
        Ok(self.admission(tenant, id))
    }

    /// Whether another machine might run now.
    ///
    /// # Errors
    /// The quota that would be passed.
    pub fn have_room(&self, tenant: &TenantRow, resources: Resources) -> Result<(), QuotaExceeded> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let others = running.get(&tenant.id).into_iter().flat_map(|admitted| admitted.values());
        admit_beside(tenant, others.map(|(other, _)| other), &resources)
    }

    /// Counts a machine that runs already, whatever the quota says.
    pub fn readmit(&self, tenant: &TenantRow, id: InstanceId, resources: Resources) -> Admission {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        take(running.entry(tenant.id.clone()).or_default(), id, resources);
        self.admission(tenant, id)
    }

    fn admission(&self, tenant: &TenantRow, id: InstanceId) -> Admission {
        Admission { running: Arc::clone(&self.running), tenant: tenant.id.clone(), id }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(admitted) = running.get_mut(&self.tenant) else { return };
        let Some((_, held)) = admitted.get_mut(&self.id) else { return };
        *held -= 1;
        if *held == 0 {
            admitted.remove(&self.id);
        }
    }
}

fn admit_beside<'a>(
    tenant: &TenantRow,
    others: impl Iterator<Item = &'a Resources>,
    resources: &'a Resources,
) -> Result<(), QuotaExceeded> {
    let mut usage = Usage::default();
    for machine in others.chain([resources]) {
        usage.running += 1;
        usage.vcpus += machine.vcpus;
        usage.mem_mib += u64::from(machine.mem_mib);
    }
    tenant.quotas.admit(&usage)
}

fn take(admitted: &mut Admitted, id: InstanceId, resources: Resources) {
    let entry = admitted.entry(id).or_insert((resources, 0));
    *entry = (resources, entry.1 + 1);
}

#[cfg(test)]
mod tests {
    use mvm_model::{Endpoints, NetId, Quotas, RoutingTable};
    use proptest::prelude::*;

    use super::*;

    fn tenant(max_running: u32) -> TenantRow {
        let net_id = NetId::new(0).unwrap();
        TenantRow {
            id: "alice".parse().unwrap(),
            net_id,
            subnet: net_id.default_subnet(),
            uplink: mvm_host::Uplink::all().next().unwrap(),
            quotas: Quotas { max_running: Some(max_running), ..Quotas::default() },
            routes: RoutingTable::default(),
            publish: Vec::new(),
            endpoints: Endpoints::default(),
            created_at: 0,
            doomed: false,
        }
    }

    fn pools() -> impl Strategy<Value = PoolSpec> {
        let scopes = prop_oneof![
            Just(""),
            Just("secret_scopes = []"),
            Just("secret_scopes = [{ integration = 'openclaw', keys = ['OPENCLAW_TOKEN_KEY'] }]"),
            Just("secret_scopes = [{ integration = 'openclaw', keys = ['OPENCLAW_GATEWAY_TOKEN'] }]"),
        ];
        (prop::sample::select(Role::ALL.to_vec()), scopes)
            .prop_filter("are never given secrets", |(role, scopes)| {
                role.secrets() != mvm_model::role::Need::No || scopes.is_empty()
            })
            .prop_map(|(role, scopes)| {
                let secrets = "[secrets]\nopenclaw_token = { file = 'x' }\nother = { file = 'x' }";
                let text =
                    format!("tenant.id = 'a'\n[[pools]]\nid = 'p'\nrole = '{role}'\n{scopes}\n{secrets}");
                mvm_model::manifest::Manifest::parse(&text).unwrap().deployment.pools.remove(0)
            })
    }

    proptest! {
        #[test]
        fn no_worker_is_given_the_token_and_each_has_one_of_its_own(pool in pools(), [a, b]: [u32; 2]) {
            prop_assume!(a != b);
            let row = |scope: &str, key: &str, value: &str| SealedRow {
                scope: scope.to_owned(),
                key: key.to_owned(),
                sealed: value.into(),
                set_at: None,
                file: None,
                account: None,
            };
            let rows = vec![row("default", "OTHER", "x"), row(openclaw::SCOPE, openclaw::TOKEN_KEY, "the token")];
            let open = |row: &SealedRow| Ok::<_, std::convert::Infallible>(SecretBytes::new(row.sealed.clone()));
            let [a, b] = [a, b].map(InstanceId::new);
            let [of_a, of_b] = [a, b].map(|id| files_given(&pool, id, rows.clone(), open).unwrap());
            let is_token = |value: &SecretBytes| value.expose() == b"the token";
            let has_token = of_a.values().flatten().any(|(key, value)| key == openclaw::TOKEN_KEY || is_token(value));
            prop_assert!(!has_token || pool.role == Role::Gateway);
            let own = |files: &SecretFiles| {
                files.get(openclaw::SCOPE).and_then(|files| files.get(openclaw::WORKER_TOKEN_KEY)).cloned()
            };
            prop_assert_eq!(own(&of_a).is_some(), pool.is_given_worker_token());
            if let Some(token) = own(&of_a) {
                let expected = worker_token(b"the token", a);
                prop_assert_eq!(token.expose(), expected.as_bytes());
                prop_assert_ne!(Some(token), own(&of_b));
            }
        }
    }

    #[test]
    fn the_last_place_is_taken_once_and_given_back() {
        let (admissions, tenant) = (Admissions::default(), tenant(1));
        let [one, two] = [1, 2].map(InstanceId::new);
        let first = admissions.admit(&tenant, one, Resources::default()).unwrap();
        assert!(admissions.admit(&tenant, two, Resources::default()).is_err());
        // The same machine again, before its earlier admission is gone.
        let again = admissions.admit(&tenant, one, Resources::default()).unwrap();
        drop(first);
        assert!(admissions.admit(&tenant, two, Resources::default()).is_err());
        drop(again);
        assert!(admissions.admit(&tenant, two, Resources::default()).is_ok());
    }
}
