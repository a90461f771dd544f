//! What is wanted of a tenant, wherever it was said.

use mvm_model::TenantId;
use mvm_model::manifest::{Change, ChangeOf, Deployment, RequestedNetwork, Verb};
use mvm_model::{PoolId, RoutingTable};
use mvm_protocol::api::{ApiError, ChangeRequest, DeployMode, DeployRequest, ErrorCode, SecretValue};

use super::images::Revisions;
use super::naming::by_name;
use super::plan::{About, Present};
use super::{at_key, failed};
use crate::agent::{Agent, AgentError};
use crate::store::{Goal, PoolRow, TenantRow, UserRow};
use crate::users;

/// How it was said.
#[derive(Debug)]
pub enum Request {
    /// All of it, by a manifest.
    Manifest(DeployRequest),
    /// What is to be another, by a command.
    Change(ChangeRequest),
}

/// What is wanted.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) deployment: Deployment,
    /// All secrets; none where those there are stay.
    pub(super) secrets: Option<Vec<SecretValue>>,
    /// Revisions of pools whose images stay as they are.
    pub(super) kept: Revisions,
    pub(super) about: About,
    pub(super) mode: DeployMode,
    /// The command that said it.
    pub(super) command: Option<ChangeOf>,
}

impl Request {
    pub(super) fn tenant(&self) -> &TenantId {
        match self {
            Request::Manifest(request) => &request.deployment.tenant,
            Request::Change(request) => &request.change.tenant,
        }
    }

    /// What needs no look at what is there.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        match self {
            Request::Manifest(request) => request.deployment.check().map_err(at_key),
            // Checked as a manifest once it is one.
            Request::Change(_) => Ok(()),
        }
    }

    pub(super) fn wish(self, present: &Present) -> Result<Wish, ApiError> {
        match self {
            Request::Manifest(DeployRequest { mut deployment, secrets, mode }) => {
                if mode.only_new && present.tenant.is_some() {
                    let id = &deployment.tenant;
                    let message = format!(
                        "tenant {id} is there already: give the new one another name, or `mvm tenant destroy {id}` first"
                    );
                    return Err(ApiError::new(ErrorCode::Refused, message));
                }
                users::keep_claims(&present.users, &mut deployment.users);
                let (kept, about) = (Revisions::new(), About::All);
                Ok(Wish { deployment, secrets, kept, about, mode, command: None })
            }
            Request::Change(ChangeRequest { change, mode }) => {
                let deployment = changed(&change, present).map_err(|error| {
                    let mut known =
                        present.deployment().unwrap_or_else(|| Deployment::empty(change.tenant.clone()));
                    // Where ports and routes are in what the command makes of it, it alone can be wrong about them.
                    (known.publish, known.routes.routes) = (Vec::new(), Vec::new());
                    by_name(&change.of, &known, error)
                })?;
                let kept = kept(&deployment, &present.pools);
                let about = match &change.of {
                    ChangeOf::Tenant { .. } => About::Tenant,
                    ChangeOf::Pool { pool, .. } => About::Pool(pool.clone()),
                    ChangeOf::Instance { pool, asleep: true } => {
                        About::Instance(pool.clone(), Goal::Sleeping)
                    }
                    ChangeOf::Instance { pool, asleep: false } => {
                        About::Instance(pool.clone(), Goal::Running)
                    }
                };
                Ok(Wish { deployment, secrets: None, kept, about, mode, command: Some(change.of) })
            }
        }
    }
}

/// A command changes what it names: other pools' images stay, whatever their recipes say by now.
fn kept(wanted: &Deployment, pools: &[PoolRow]) -> Revisions {
    let same = |pool: &&PoolRow| {
        wanted.pools.iter().any(|spec| spec.id == pool.spec.id && spec.image == pool.spec.image)
    };
    pools.iter().filter(same).map(|pool| (pool.spec.id.clone(), pool.revision.clone())).collect()
}

fn changed(change: &Change, present: &Present) -> Result<Deployment, ApiError> {
    let id = &change.tenant;
    let exists = |what: String, noun: &str| {
        let message = format!("{noun} {what} is there already: `mvm {noun} update` changes it");
        Err(ApiError::new(ErrorCode::Refused, message))
    };
    let deployment = match (present.deployment(), &change.of) {
        (Some(_), ChangeOf::Tenant { verb: Verb::Create, .. }) => return exists(id.to_string(), "tenant"),
        (None, ChangeOf::Tenant { verb: Verb::Create, .. }) => Deployment::empty(id.clone()),
        (None, _) => return Err(AgentError::NoTenant(id.clone()).into()),
        (Some(deployment), _) => deployment,
    };
    let has = |pool: &PoolId| deployment.pools.iter().any(|spec| spec.id == *pool);
    let have = match &change.of {
        ChangeOf::Pool { verb: Verb::Create, pool, .. } if has(pool) => {
            return exists(format!("{id}/{pool}"), "pool");
        }
        ChangeOf::Pool { verb: Verb::Update, pool, .. } | ChangeOf::Instance { pool, .. } if !has(pool) => {
            return Err(AgentError::NoPool(id.clone(), pool.clone()).into());
        }
        ChangeOf::Instance { pool, .. } => {
            present.instances.iter().filter(|instance| instance.place.pool == *pool).count()
        }
        ChangeOf::Pool { .. } | ChangeOf::Tenant { .. } => 0,
    };
    change.of.apply(&deployment, u32::try_from(have).map_err(failed)?).map_err(at_key)
}

impl Wish {
    /// Whether an instance that is to begin now may run beside those that do: one that is to sleep runs once before. It
    /// would be there and not be what was asked for.
    pub(super) fn admit(&self, agent: &Agent, present: &Present) -> Result<(), ApiError> {
        let pool =
            self.about.one_more().and_then(|id| self.deployment.pools.iter().find(|pool| pool.id == *id));
        let (Some(pool), Some(tenant)) = (pool, &present.tenant) else { return Ok(()) };
        let room = agent.admissions.have_room(tenant, pool.resources);
        room.map_err(|exceeded| {
            let message = format!("{exceeded}: so many run now, and one that is to sleep runs once before");
            ApiError::new(ErrorCode::Refused, message)
        })
    }
}

impl Present {
    /// What is wanted of the tenant so far, if there is one.
    pub(super) fn deployment(&self) -> Option<Deployment> {
        self.tenant.as_ref().map(|tenant| deployment(tenant, &self.pools, &self.users))
    }
}

/// What is wanted of a tenant that is there.
pub fn deployment(tenant: &TenantRow, pools: &[PoolRow], users: &[UserRow]) -> Deployment {
    Deployment {
        tenant: tenant.id.clone(),
        network: RequestedNetwork { net_id: Some(tenant.net_id), subnet: Some(tenant.subnet) },
        quotas: tenant.quotas,
        pools: pools.iter().map(|pool| pool.spec.clone()).collect(),
        publish: tenant.publish.clone(),
        routes: RoutingTable { routes: tenant.routes.routes.clone() },
        users: users.iter().map(|row| row.user.clone()).collect(),
        endpoints: tenant.endpoints.clone(),
    }
}
