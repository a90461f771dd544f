//! Doing what a plan says.

use std::sync::Arc;

use mvm_kill_point::{KillPoint, reached};
use mvm_model::manifest::Deployment;
use mvm_model::{InstanceId, Requirement, TenantId};
use mvm_protocol::api::{ApiError, DeployEvent, DeployMode, ErrorCode, UserLink};

use super::basis::Basis;
use super::begin::bring_about;
use super::images;
use super::naming::by_name;
use super::plan::{Outdated, Plan, Present};
use super::restart::{Renewing, Restarts};
use super::secrets::{Sealed, Secrets};
use super::wish::{Request, Wish};
use super::{Events, at_key, failed, invalid};
use crate::agent::Agent;
use crate::create::{self, GivenDisk};
use crate::publish::Bound;
use crate::store::{self, Audit, NewInstance, Place, TenantRow};
use crate::users;

/// Applies what is wanted and counts the changes.
pub async fn apply(
    agent: &Arc<Agent>,
    request: Request,
    given: Option<GivenDisk>,
    events: &Events,
) -> Result<usize, ApiError> {
    request.check()?;
    let changing = agent.changing.lock().await;
    preflight(agent).await?;
    let present = present(agent, request.tenant()).await?;
    let mut wish = request.wish(&present)?;
    wish.admit(agent, &present)?;
    let Prepared { bound, secrets, plan } =
        prepare(agent, &present, &mut wish, events).await.map_err(|error| match &wish.command {
            Some(command) => by_name(command, &wish.deployment, error),
            None => error,
        })?;
    let Wish { deployment: wanted, mode, .. } = wish;
    if mode.dry_run {
        return Ok(tell(&present, wanted, plan, mode, events));
    }
    if events.is_abandoned() {
        return Err(failed("the deployment was abandoned before anything was made"));
    }
    let (tenant, links) = commit(agent, &wanted, &present, &plan, given, &secrets).await?;
    reached(KillPoint::DeployCommitted);
    for link in links {
        events.send(DeployEvent::Link(link));
    }
    let mut problems = bring_about(agent, &wanted, &tenant, &plan, bound, events).await;
    // Machines are restarted for what is wanted of them at that moment: others may change it meanwhile.
    drop(changing);
    let outdated = renewed(&plan, mode);
    let renewing = Renewing { mode, before: &present.pools };
    let Restarts { restarted, up_to_date, is_back, problem } = renewing.all(agent, &outdated, events).await;
    problems.settle(&restarted);
    if let Some(problem) = problem {
        problems.add(problem);
    }
    // What a pool that went back to its earlier image wants is not what was looked at.
    let stays = |what: &String| !is_back && !restarted.contains(what) && !up_to_date.contains(what);
    for (what, how) in plan.differs.into_iter().filter(|(what, _)| stays(what)) {
        events.send(DeployEvent::Differs { what, how });
    }
    problems.tell()?;
    Ok(plan.changes.len() + restarted.len())
}

/// All that can be refused was not.
struct Prepared {
    bound: Vec<Bound>,
    secrets: Secrets,
    plan: Plan,
}

async fn prepare(
    agent: &Arc<Agent>,
    present: &Present,
    wish: &mut Wish,
    events: &Events,
) -> Result<Prepared, ApiError> {
    let wanted = &wish.deployment;
    // Ports first: cheap to refuse, and held from here on.
    let bound = bind_ports(agent, wanted)?;
    // What cannot be is said before images are built, as far as it does not depend on them.
    Plan::make(present, wanted, &wish.kept).map_err(at_key)?;
    let secrets = Secrets::look(agent, wanted, wish.secrets.take()).await?;
    secrets.check(wanted)?;
    let kept = std::mem::take(&mut wish.kept);
    let revisions = images::of_pools(agent, wanted, kept, wish.mode.dry_run, events).await?;
    // A version is asked for once: what is wanted from now on is the image, also of a later mvm that has another version.
    wish.deployment.pools.iter_mut().for_each(images::forget_version);
    let wanted = &wish.deployment;
    let mut plan = Plan::make(present, wanted, &revisions).map_err(at_key)?;
    plan.keep_to(&wish.about);
    if present.tenant.is_some() {
        plan.changes.extend(secrets.changes().into_iter().map(|how| (wanted.tenant.to_string(), how)));
    }
    Ok(Prepared { bound, secrets, plan })
}

/// What would be, and nothing of it is done.
fn tell(present: &Present, mut wanted: Deployment, plan: Plan, mode: DeployMode, events: &Events) -> usize {
    if let Some((net_id, subnet)) = plan.network {
        (wanted.network.net_id, wanted.network.subnet) = (Some(net_id), Some(subnet));
    }
    let before = present.deployment().unwrap_or_else(|| Deployment::empty(wanted.tenant.clone()));
    for difference in before.differences(&wanted) {
        events.send(DeployEvent::Differ(difference));
    }
    let outdated = renewed(&plan, mode);
    let mut changes = plan.changes;
    let restarted = |what: &String| outdated.iter().any(|outdated| outdated.address == *what);
    let differs: Vec<_> = plan.differs.into_iter().filter(|(what, _)| !restarted(what)).collect();
    let how = |outdated: &Outdated| if mode.upgrade && outdated.image { "upgraded" } else { "restarted" };
    changes.extend(outdated.iter().map(|outdated| (outdated.address.clone(), how(outdated).to_owned())));
    let count = changes.len();
    for (what, how) in changes {
        events.send(DeployEvent::Changed { what, how });
    }
    for (what, how) in differs {
        events.send(DeployEvent::Differs { what, how });
    }
    count
}

/// The machines that are given what they have not.
fn renewed(plan: &Plan, mode: DeployMode) -> Vec<Outdated> {
    let renewed = |outdated: &&Outdated| mode.restart || mode.upgrade && outdated.image;
    plan.outdated.iter().filter(renewed).cloned().collect()
}

async fn preflight(agent: &Agent) -> Result<(), ApiError> {
    let required = agent.hands.preflight().await.map_err(failed)?;
    let missing = required.into_iter().filter(Requirement::is_missing);
    let text: Vec<String> = missing
        .map(|r| format!("{}: {} (`mvm doctor` says more)", r.found, r.remedy.unwrap_or_default()))
        .collect();
    if text.is_empty() {
        return Ok(());
    }
    Err(ApiError { code: ErrorCode::Refused, message: text.join("\n"), key: None })
}

pub(super) async fn present(agent: &Agent, tenant: &TenantId) -> Result<Present, ApiError> {
    let id = tenant.clone();
    let present = agent
        .store
        .read(move |tx| {
            let (mine, others): (Vec<_>, Vec<_>) = store::tenants(tx)?.into_iter().partition(|t| t.id == id);
            Ok(Present {
                tenant: mine.into_iter().next(),
                pools: store::pools(tx, Some(&id))?,
                instances: store::instances(tx, Some(&id), None)?,
                users: store::users(tx, Some(&id))?,
                others,
            })
        })
        .await
        .map_err(failed)?;
    if present.tenant.as_ref().is_some_and(|tenant| tenant.doomed) {
        return Err(invalid("tenant.id", format!("tenant {tenant} is being destroyed")));
    }
    if let Some(pool) = present.pools.iter().find(|pool| pool.doomed) {
        let id = &pool.spec.id;
        let message = format!(
            "pool {tenant}/{id} is being destroyed: `mvm pool destroy {tenant}/{id}` goes on with it"
        );
        return Err(ApiError::new(ErrorCode::Refused, message));
    }
    Ok(present)
}

fn bind_ports(agent: &Agent, wanted: &Deployment) -> Result<Vec<Bound>, ApiError> {
    let mut bound = Vec::new();
    for (index, publish) in wanted.publish.iter().enumerate() {
        let port = agent.publishing.bind(&wanted.tenant, publish);
        bound.extend(port.map_err(|taken| invalid(format!("publish[{index}].port"), taken))?);
    }
    Ok(bound)
}

/// Makes what is wanted true. Where that fails, the disks that were made for it go again.
async fn commit(
    agent: &Agent,
    wanted: &Deployment,
    present: &Present,
    plan: &Plan,
    given: Option<GivenDisk>,
    secrets: &Secrets,
) -> Result<(TenantRow, Vec<UserLink>), ApiError> {
    let tenant = tenant_row(agent, wanted, present, plan).await?;
    let new = plan.instances.iter().map(|(spec, goal)| (spec.id.clone(), Some(*goal))).collect();
    let mut instances = create::instances(agent, &tenant, &present.instances, new).await?;
    if let (Some(given), Some(first)) = (&given, instances.first_mut()) {
        create::name_after(agent, first, given);
    }
    let ids: Vec<InstanceId> = instances.iter().map(|instance| instance.id).collect();
    let basis = Basis::of(&tenant.id, present, plan);
    let new = New { users: users(wanted, present, &instances)?, instances };
    let committed = commit_with_disks(agent, &tenant, plan, basis, new, given, secrets).await;
    if committed.is_err() {
        create::remove_disks(agent, ids).await;
    }
    committed.map(|links| (tenant, links))
}

/// Machines and people, as far as they do not follow from the plan alone.
struct New {
    instances: Vec<NewInstance>,
    users: users::Wanted,
}

/// Those who are wanted, and the machines that may be theirs.
fn users(wanted: &Deployment, present: &Present, new: &[NewInstance]) -> Result<users::Wanted, ApiError> {
    let pools = wanted.pools_for_users();
    let is_for_users = |place: &Place| pools.iter().any(|pool| pool.id == place.pool);
    let there = present.instances.iter().filter(|row| is_for_users(&row.place)).map(|row| row.id);
    let made = new.iter().filter(|row| is_for_users(&row.place)).map(|row| row.id);
    users::Wanted::new(wanted.users.clone(), there.chain(made).collect()).map_err(failed)
}

/// Disks first, then everything else in one transaction.
async fn commit_with_disks(
    agent: &Agent,
    tenant: &TenantRow,
    plan: &Plan,
    basis: Basis,
    new: New,
    given: Option<GivenDisk>,
    secrets: &Secrets,
) -> Result<Vec<UserLink>, ApiError> {
    let New { instances, users } = new;
    let sizes = plan.instances.iter().map(|(spec, _)| spec.resources.data_disk_mib);
    let mut disks: Vec<_> = instances.iter().map(|instance| instance.id).zip(sizes).collect();
    let mut restored = None;
    if let (Some(given), Some(first)) = (given, instances.first()) {
        disks.remove(0);
        restored = Some(create::give_disk(agent, first, given).await?);
    }
    create::make_disks(agent, disks).await?;
    reached(KillPoint::DeployDisksMade);
    let sealed = secrets.seal(agent, tenant).await?;
    let deployed = plan.changes.iter().map(|(what, how)| Audit::new(what, "Deployed", how.clone()));
    let audits: Vec<Audit> = deployed.chain(restored).collect();
    let (row, pools) = (tenant.clone(), plan.pools.clone());
    let committed = agent
        .store
        .write(move |tx| {
            if let Some(pool) = basis.changed(tx)? {
                return Ok(Err(format!("pool {}/{pool}", row.id)));
            }
            let users = match users.decide(&row.id, &store::users(tx, Some(&row.id))?) {
                Ok(decided) => decided,
                Err(user) => return Ok(Err(format!("user {}/{user}", row.id))),
            };
            row.save(tx)?;
            pools.iter().try_for_each(|pool| pool.save(tx))?;
            instances.iter().try_for_each(|instance| instance.insert(tx))?;
            users.save(tx)?;
            if let Some(Sealed { wrapped, rows }) = &sealed {
                if let Some(wrapped) = wrapped {
                    store::save_tenant_key(tx, &row.id, wrapped)?;
                }
                store::replace_secrets(tx, &row.id, rows)?;
            }
            audits.iter().try_for_each(|audit| audit.append(tx, &row.id))?;
            // As it is now: this may have changed the token.
            let bot = store::bot(tx, &row.id)?;
            Ok(Ok(users.links.into_iter().map(|link| UserLink { bot: bot.clone(), ..link }).collect()))
        })
        .await
        .map_err(failed)?;
    committed.map_err(|changed| {
        let message = format!("{changed} was changed meanwhile; nothing was done: run it again");
        ApiError::new(ErrorCode::Refused, message)
    })
}

async fn tenant_row(
    agent: &Agent,
    wanted: &Deployment,
    present: &Present,
    plan: &Plan,
) -> Result<TenantRow, ApiError> {
    let (net_id, subnet) = plan.network.ok_or_else(|| failed("the plan has no network"))?;
    let uplink = match &present.tenant {
        Some(tenant) => tenant.uplink,
        None => {
            let taken = present.others.iter().map(|other| other.uplink).collect();
            agent.hands.choose_uplink(taken).await.map_err(failed)?
        }
    };
    Ok(TenantRow {
        id: wanted.tenant.clone(),
        net_id,
        subnet,
        uplink,
        quotas: wanted.quotas,
        routes: wanted.routes.clone(),
        publish: wanted.publish.clone(),
        endpoints: wanted.endpoints.clone(),
        created_at: present.tenant.as_ref().map_or_else(store::now_secs, |tenant| tenant.created_at),
        doomed: false,
    })
}
