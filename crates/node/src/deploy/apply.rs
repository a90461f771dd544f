//! Doing what a plan says.

use std::sync::Arc;

use mvm_model::manifest::Deployment;
use mvm_model::{InstanceId, InstanceState, Role};
use mvm_protocol::api::{ApiError, DeployEvent, DeployRequest, ErrorCode, SecretValue};
use mvm_protocol::control::MAX_UPDATE;

use super::images::{self, Revisions};
use super::plan::{Plan, Present};
use super::{Events, at_key, failed, invalid};
use crate::agent::Agent;
use crate::bases;
use crate::create;
use crate::kill_point::{KillPoint, reached};
use crate::machine::{ActError, Machine};
use crate::publish::Bound;
use crate::seal::Key;
use crate::store::{self, Audit, NewInstance, SealedRow, TenantRow};

/// What a machine's config.json may take.
const CONFIG_ROOM: usize = 4096;

/// Applies a deployment and counts its changes.
pub async fn apply(agent: &Arc<Agent>, request: DeployRequest, events: &Events) -> Result<usize, ApiError> {
    let wanted = &request.deployment;
    wanted.check().map_err(at_key)?;
    let _changing = agent.changing.lock().await;
    preflight(agent).await?;
    let present = present(agent, wanted).await?;
    // Ports first: cheap to refuse, and held from here on.
    let bound = bind_ports(agent, wanted)?;
    // What cannot be is said before images are built, as far as it does not depend on them.
    Plan::make(&present, wanted, &Revisions::new()).map_err(at_key)?;
    let revisions = images::build(agent, wanted, events).await?;
    let mut plan = Plan::make(&present, wanted, &revisions).map_err(at_key)?;
    let secrets_changed = secrets_differ(agent, wanted, &request.secrets).await?;
    if secrets_changed && present.tenant.is_some() {
        plan.changes.push((wanted.tenant.to_string(), "secrets changed".to_owned()));
    }
    check_secret_sizes(wanted, &request.secrets)?;
    if events.is_abandoned() {
        return Err(failed("the deployment was abandoned before anything was made"));
    }
    let tenant =
        commit(agent, wanted, &present, &plan, secrets_changed.then_some(request.secrets.as_slice())).await?;
    reached(KillPoint::DeployCommitted);
    bring_about(agent, wanted, &tenant, &plan, bound, events).await?;
    for (what, how) in plan.differs {
        events.send(DeployEvent::Differs { what, how });
    }
    Ok(plan.changes.len())
}

async fn preflight(agent: &Agent) -> Result<(), ApiError> {
    let problems = agent.hands.preflight().await.map_err(failed)?;
    if problems.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.what, p.remedy)).collect();
    Err(ApiError { code: ErrorCode::Refused, message: text.join("\n"), key: None })
}

async fn present(agent: &Agent, wanted: &Deployment) -> Result<Present, ApiError> {
    let id = wanted.tenant.clone();
    let present = agent
        .store
        .read(move |tx| {
            let (mine, others): (Vec<_>, Vec<_>) = store::tenants(tx)?.into_iter().partition(|t| t.id == id);
            Ok(Present {
                tenant: mine.into_iter().next(),
                pools: store::pools(tx, Some(&id))?,
                instances: store::instances(tx, Some(&id), None)?,
                others,
            })
        })
        .await
        .map_err(failed)?;
    if present.tenant.as_ref().is_some_and(|tenant| tenant.doomed) {
        return Err(invalid("tenant.id", format!("tenant {} is being destroyed", wanted.tenant)));
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

/// A pool whose machines could not be given their secrets is refused now, not when one of them is woken.
fn check_secret_sizes(wanted: &Deployment, secrets: &[SecretValue]) -> Result<(), ApiError> {
    for (index, pool) in wanted.pools.iter().enumerate() {
        let given = secrets.iter().filter(|secret| pool.is_given(&secret.scope, &secret.key));
        let bytes: usize = given.map(|secret| secret.value.expose().len()).sum();
        let routes = serde_json::to_vec(&wanted.routes).map_or(0, |text| text.len());
        if bytes + routes + CONFIG_ROOM > MAX_UPDATE {
            let message = format!(
                "pool {}'s machines would be given {bytes} bytes of secrets; with their config it may be {MAX_UPDATE} \
                 together: name fewer in secret_scopes",
                pool.id
            );
            return Err(invalid(format!("pools[{index}].secret_scopes"), message));
        }
    }
    Ok(())
}

/// Whether the secrets are others than those that are sealed.
async fn secrets_differ(agent: &Agent, wanted: &Deployment, new: &[SecretValue]) -> Result<bool, ApiError> {
    let id = wanted.tenant.clone();
    let (rows, wrapped) = agent
        .store
        .read(move |tx| Ok((store::secrets(tx, &id)?, store::tenant_key(tx, &id)?)))
        .await
        .map_err(failed)?;
    let Some(wrapped) = wrapped else { return Ok(true) };
    let key = agent.node_key.unwrap_key(&wanted.tenant, &wrapped).map_err(failed)?;
    if rows.len() != new.len() {
        return Ok(true);
    }
    for secret in new {
        let row = rows.iter().find(|row| row.scope == secret.scope && row.key == secret.key);
        let Some(row) = row else { return Ok(true) };
        let name = format!("{}/{}", row.scope, row.key);
        if key.open(&name, &row.sealed).map_err(failed)? != secret.value {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes what is wanted true. Where that fails, the disks that were made for it go again.
async fn commit(
    agent: &Agent,
    wanted: &Deployment,
    present: &Present,
    plan: &Plan,
    secrets: Option<&[SecretValue]>,
) -> Result<TenantRow, ApiError> {
    let tenant = tenant_row(agent, wanted, present, plan).await?;
    let new = plan.instances.iter().map(|(spec, goal)| (spec.id.clone(), Some(*goal))).collect();
    let instances = create::instances(agent, &tenant, &present.instances, new).await?;
    let ids: Vec<InstanceId> = instances.iter().map(|instance| instance.id).collect();
    let committed = commit_with_disks(agent, &tenant, present, plan, instances, secrets).await;
    if committed.is_err() {
        create::remove_disks(agent, ids).await;
    }
    committed.map(|()| tenant)
}

/// Disks first, then everything else in one transaction.
async fn commit_with_disks(
    agent: &Agent,
    tenant: &TenantRow,
    present: &Present,
    plan: &Plan,
    instances: Vec<NewInstance>,
    secrets: Option<&[SecretValue]>,
) -> Result<(), ApiError> {
    let sizes = plan.instances.iter().map(|(spec, _)| spec.resources.data_disk_mib);
    let disks = instances.iter().map(|instance| instance.id).zip(sizes).collect();
    create::make_disks(agent, disks).await?;
    reached(KillPoint::DeployDisksMade);
    let sealed = match secrets {
        Some(values) => Some(seal(agent, tenant, present.tenant.is_none(), values).await?),
        None => None,
    };
    let audits: Vec<Audit> =
        plan.changes.iter().map(|(what, how)| Audit::new(what, "Deployed", how.clone())).collect();
    let (row, pools) = (tenant.clone(), plan.pools.clone());
    agent
        .store
        .write(move |tx| {
            row.save(tx)?;
            pools.iter().try_for_each(|pool| pool.save(tx))?;
            instances.iter().try_for_each(|instance| instance.insert(tx))?;
            if let Some(Sealed { wrapped, rows }) = &sealed {
                if let Some(wrapped) = wrapped {
                    store::save_tenant_key(tx, &row.id, wrapped)?;
                }
                store::replace_secrets(tx, &row.id, rows)?;
            }
            audits.iter().try_for_each(|audit| audit.append(tx, &row.id))
        })
        .await
        .map_err(failed)
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
        created_at: present.tenant.as_ref().map_or_else(store::now_secs, |tenant| tenant.created_at),
        doomed: false,
    })
}

struct Sealed {
    /// The tenant's data key, if it is new.
    wrapped: Option<Vec<u8>>,
    rows: Vec<SealedRow>,
}

async fn seal(
    agent: &Agent,
    tenant: &TenantRow,
    new: bool,
    values: &[SecretValue],
) -> Result<Sealed, ApiError> {
    let (key, wrapped) = if new {
        let key = Key::generate().map_err(failed)?;
        let wrapped = agent.node_key.wrap(&tenant.id, &key).map_err(failed)?;
        (key, Some(wrapped))
    } else {
        let id = tenant.id.clone();
        let wrapped = agent.store.read(move |tx| store::tenant_key(tx, &id)).await.map_err(failed)?;
        let wrapped = wrapped.ok_or_else(|| failed(format!("tenant {} has no data key", tenant.id)))?;
        (agent.node_key.unwrap_key(&tenant.id, &wrapped).map_err(failed)?, None)
    };
    let rows = values
        .iter()
        .map(|secret| {
            let sealed = key.seal(&format!("{}/{}", secret.scope, secret.key), secret.value.expose());
            Ok(SealedRow {
                scope: secret.scope.clone(),
                key: secret.key.clone(),
                sealed: sealed.map_err(failed)?,
            })
        })
        .collect::<Result<_, ApiError>>()?;
    Ok(Sealed { wrapped, rows })
}

/// After the commit: network, ports, machines.
async fn bring_about(
    agent: &Arc<Agent>,
    wanted: &Deployment,
    tenant: &TenantRow,
    plan: &Plan,
    bound: Vec<Bound>,
    events: &Events,
) -> Result<(), ApiError> {
    agent.hands.ensure_network(agent.network_of(tenant)).await.map_err(failed)?;
    reached(KillPoint::DeployNetworkMade);
    agent.publishing.keep_only(&tenant.id, &wanted.publish).await;
    for port in bound {
        agent.publishing.open(agent, tenant, port);
    }
    // Those that lead elsewhere now were closed a moment ago.
    if let Some(taken) = agent.publishing.open_all(agent, tenant).first() {
        return Err(failed(taken));
    }
    for (what, how) in &plan.changes {
        events.send(DeployEvent::Changed { what: what.clone(), how: how.clone() });
    }
    // Always: where an earlier deployment could not hand its changes over, this one does, or says so again.
    refresh(agent, tenant).await?;
    make_bases(agent, wanted, events).await;
    start_new(agent, wanted, tenant, events).await
}

/// Machines that run take what changed about them. Each does so itself, in its turn: one that is just coming up may have
/// begun with what was wanted before.
async fn refresh(agent: &Arc<Agent>, tenant: &TenantRow) -> Result<(), ApiError> {
    let machines = agent.machines(|machine| machine.place.tenant == tenant.id);
    let refreshed = futures::future::join_all(machines.iter().map(|machine| async move {
        match machine.refresh().await {
            // Destroyed meanwhile.
            Ok(()) | Err(ActError::Gone) => None,
            Err(error) => {
                let address = machine.view().row.address();
                Some(format!("{address} goes on with what it had before: {error}"))
            }
        }
    }));
    let problems: Vec<String> = refreshed.await.into_iter().flatten().collect();
    if problems.is_empty() { Ok(()) } else { Err(failed(problems.join("\n"))) }
}

/// Machines begin from bases: made first, they cost one boot a pool. A pool whose base cannot be made starts its machines cold.
async fn make_bases(agent: &Arc<Agent>, wanted: &Deployment, events: &Events) {
    let pools = wanted.pools.iter().filter(|pool| pool.desired.total() > 0);
    let making = pools.map(|pool| async {
        let what = format!("{}/{}", wanted.tenant, pool.id);
        events.step(&what, "looking for the base of its machines, or making it");
        let outcome = bases::ensure_in_time(agent, &wanted.tenant, &pool.id).await;
        events.progress(what, outcome, 1, 1);
    });
    futures::future::join_all(making).await;
}

/// Starts the tasks of new instances, pools in rising priority, and waits for each to be where it begins.
async fn start_new(
    agent: &Arc<Agent>,
    wanted: &Deployment,
    tenant: &TenantRow,
    events: &Events,
) -> Result<(), ApiError> {
    let mut by_priority: Vec<Role> = wanted.pools.iter().map(|pool| pool.role).collect();
    by_priority.sort_by_key(|role| role.priority());
    by_priority.dedup_by_key(|role| role.priority());
    let mut problems = Vec::new();
    for priority in by_priority.iter().map(|role| role.priority()) {
        // Read anew for each: one may have been destroyed while others started.
        let id = tenant.id.clone();
        let rows = agent.store.read(move |tx| store::instances(tx, Some(&id), None)).await.map_err(failed)?;
        let of_priority = rows.iter().filter(|row| {
            agent.machine(row.id).is_none()
                && wanted.pools.iter().any(|p| p.id == row.place.pool && p.role.priority() == priority)
        });
        let mut beginning = Vec::new();
        for row in of_priority {
            let ip = tenant.subnet.machine_ip(row.place.offset);
            let ip = ip.ok_or_else(|| failed(format!("{} has no address in {}", row.id, tenant.subnet)))?;
            events.step(row.address(), "starting");
            beginning.push(agent.add_machine(tenant, row.clone(), ip));
        }
        let begun = futures::future::join_all(beginning.iter().map(|machine| begin(machine, events))).await;
        problems.extend(begun.into_iter().flatten());
    }
    if problems.is_empty() { Ok(()) } else { Err(failed(problems.join("\n"))) }
}

/// Waits until a new machine is where it begins; in words why it is not.
async fn begin(machine: &Machine, events: &Events) -> Option<String> {
    let settled = machine.settled().await;
    let row = machine.view().row;
    let running = matches!(row.state, InstanceState::Running | InstanceState::Sleeping);
    let how =
        row.last_start.as_ref().map_or(String::new(), |s| format!(" ({} in {:.0} ms)", s.how, s.total_ms));
    events.progress(row.address(), format!("{}{how}", row.state), 1, 1);
    match settled {
        Ok(()) if running => None,
        Ok(()) => {
            let reason = row.reason.clone().unwrap_or_else(|| "it was not started".to_owned());
            Some(format!("{} is {}: {reason}", row.address(), row.state))
        }
        Err(error) => Some(format!("{}: {error}", row.address())),
    }
}
