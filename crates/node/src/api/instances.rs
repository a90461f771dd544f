//! Instances: listing and acts.

use std::collections::HashMap;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, Query, State};
use mvm_model::{InstanceRef, InstanceState, Operation};
use mvm_protocol::api::{Act, ActDone, Destroyed, ErrorCode, InstanceInfo, InstanceSummary, millis};

use super::tenants::Filter;
use super::{Failure, Shared, fault, integrations, parsed};
use crate::agent::Agent;
use crate::destroy;
use crate::machine::{ActError, Asker, Machine, Outcome};
use crate::store::Intent;

pub(super) type Address = Path<(String, String, String)>;

/// The one machine that is meant.
pub(super) async fn find(
    agent: &Agent,
    tenant: &str,
    pool: &str,
    instance: &str,
) -> Result<Machine, Failure> {
    let prefix = if instance == "-" { "" } else { instance };
    let wanted = InstanceRef { tenant: parsed(tenant)?, pool: parsed(pool)?, prefix: prefix.to_owned() };
    agent.tenant(&wanted.tenant).await?;
    if let Err(no_pool) = agent.pool(&wanted.tenant, &wanted.pool).await {
        // `alice/bob`: the worker of a user.
        let user = agent.user(&wanted.tenant, &parsed(pool)?).await;
        let worker = user.ok().filter(|_| prefix.is_empty()).and_then(|row| agent.machine(row.instance?));
        return worker.ok_or_else(|| no_pool.into());
    }
    let found = agent.machines(|machine| {
        machine.place.tenant == wanted.tenant
            && machine.place.pool == wanted.pool
            && wanted.matches(machine.id)
    });
    match found.as_slice() {
        [machine] => Ok(machine.clone()),
        [] => Err(fault(
            ErrorCode::NotFound,
            format!("there is no instance {wanted}; `mvm instance list` shows those there are"),
        )),
        several => {
            let names: Vec<String> = several.iter().map(|machine| machine.view().row.address()).collect();
            Err(fault(ErrorCode::Ambiguous, format!("{wanted} may be any of: {}", names.join(", "))))
        }
    }
}

pub(super) fn summary(machine: &Machine, role: mvm_model::Role) -> InstanceSummary {
    let view = machine.view();
    let act = view.act.map(|act| match act {
        Intent::Start => "starting",
        Intent::Wake => "waking",
        Intent::Warm => "being paused",
        Intent::Resume => "resuming",
        Intent::Sleep => "going to sleep",
        Intent::Stop => "stopping",
        Intent::Restore => "being restored",
        Intent::Upgrade => "being upgraded",
        Intent::Destroy => "being destroyed",
    });
    InstanceSummary {
        tenant: machine.place.tenant.clone(),
        pool: machine.place.pool.clone(),
        id: machine.id,
        role,
        state: view.row.state,
        act: act.or(view.settling.then_some("settling")).map(str::to_owned),
        ip: machine.ip,
        since: view.row.since,
    }
}

pub async fn list(
    State(agent): Shared,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<InstanceSummary>>, Failure> {
    if let Some(tenant) = &filter.tenant {
        agent.tenant(tenant).await?;
    }
    let pools = agent.store.read(|tx| crate::store::pools(tx, None)).await?;
    let machines = agent.machines(|machine| filter.takes(machine));
    let roles: HashMap<_, _> = pools.iter().map(|p| ((&p.tenant, &p.spec.id), p.spec.role)).collect();
    let mut list: Vec<InstanceSummary> = machines
        .iter()
        .filter_map(|machine| {
            let role = roles.get(&(&machine.place.tenant, &machine.place.pool))?;
            Some(summary(machine, *role))
        })
        .collect();
    list.sort_by(|a, b| (&a.tenant, &a.pool, a.id).cmp(&(&b.tenant, &b.pool, b.id)));
    Ok(Json(list))
}

pub async fn info(State(agent): Shared, Path((t, p, i)): Address) -> Result<Json<InstanceInfo>, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    let pool = agent.pool(&machine.place.tenant, &machine.place.pool).await?;
    let tenant = agent.tenant(&machine.place.tenant).await?;
    let integrations = integrations::of(&agent, &machine.view()).await;
    let row = machine.view().row;
    let resources = row.launched.as_ref().map_or(pool.spec.resources, |launched| launched.resources);
    Ok(Json(InstanceInfo {
        summary: summary(&machine, pool.spec.role),
        mac: tenant.net_id.mac(row.place.offset),
        vcpus: resources.vcpus,
        mem_mib: resources.mem_mib,
        data_disk_mib: resources.data_disk_mib,
        generation: row.generation,
        base: row.base().map(str::to_owned),
        revision: row.launched.map(|launched| launched.revision),
        reason: row.reason,
        pid: row.process.filter(|_| row.state.has_vmm()).map(|process| process.pid),
        last_start: row.last_start,
        snapshot_bytes: row.snapshot.as_ref().map(|snapshot| snapshot.bytes),
        holds: machine.holds(),
        wake_at: row.wake_at.filter(|_| row.state != InstanceState::Running),
        integrations: integrations.filter(|_| row.state == InstanceState::Running),
    }))
}

pub async fn act(
    State(agent): Shared,
    Path((t, p, i, act)): Path<(String, String, String, String)>,
) -> Result<Json<ActDone>, Failure> {
    let act = Act::ALL.into_iter().find(|a| a.as_str() == act);
    let act = act.ok_or_else(|| fault(ErrorCode::NotFound, "there is no such act"))?;
    let machine = find(&agent, &t, &p, &i).await?;
    let state = machine.state();
    // Only what sleeps is woken, and only what is warm resumed; a message, or `start`, makes anything run.
    let only = match act {
        Act::Wake => Some(Operation::Wake),
        Act::Resume => Some(Operation::Resume),
        Act::Start | Act::Stop | Act::Sleep | Act::Warm => None,
    };
    if let Some(operation) = only.filter(|operation| !state.already(*operation)) {
        state.after(operation).map_err(ActError::from)?;
    }
    let begun = Instant::now();
    // In a task of its own: a client that goes away does not leave half an act.
    let acting = {
        let machine = machine.clone();
        tokio::spawn(async move {
            match act {
                Act::Start | Act::Wake | Act::Resume => machine.run(Asker::Person).await,
                Act::Sleep => machine.sleep(Asker::Person).await,
                Act::Warm => machine.warm(Asker::Person).await,
                Act::Stop => machine.stop().await,
            }
        })
    };
    let outcome = acting.await.map_err(|error| fault(ErrorCode::Failed, error))??;
    let took_ms = millis(begun.elapsed());
    let row = machine.view().row;
    let address = row.address();
    let message = match (&outcome, &row.last_start) {
        (Outcome::Already, _) => format!("{address} is {} already", row.state),
        (Outcome::Done, Some(start)) if matches!(act, Act::Start | Act::Wake) => {
            let why = start.why.as_ref().map_or(String::new(), |why| format!("; {why}"));
            format!("{address} is {} ({} in {:.0} ms{why})", row.state, start.how, start.total_ms)
        }
        (Outcome::Done, _) => format!("{address} is {} ({took_ms:.0} ms)", row.state),
    };
    Ok(Json(ActDone {
        instance: address,
        state: row.state,
        changed: outcome == Outcome::Done,
        message,
        took_ms,
    }))
}

pub async fn destroy(State(agent): Shared, Path((t, p, i)): Address) -> Result<Json<Destroyed>, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    // In a task of its own: a client that goes away does not leave half of it.
    let destroying = tokio::spawn(async move { destroy::instance(&agent, &machine).await });
    let address = destroying.await.map_err(|error| fault(ErrorCode::Failed, error))??;
    Ok(Json(Destroyed { destroyed: vec![address] }))
}
