//! New instances: ids, addresses, uids and disks. Their rows are written last, by whoever wants them.

use std::collections::BTreeSet;

use futures::StreamExt;
use mvm_host::NewDisk;
use mvm_model::{InstanceId, PoolId};
use mvm_protocol::api::{ApiError, ErrorCode};

use crate::agent::Agent;
use crate::store::{self, Audit, Goal, InstanceRow, NewInstance, Place, TenantRow};

/// Disks that are made at once.
const DISKS: usize = 4;

/// Ids, addresses and uids for instances to be, beside those that the tenant has.
///
/// # Errors
/// Where the tenant's subnet or the node has none left.
pub async fn instances(
    agent: &Agent,
    tenant: &TenantRow,
    present: &[InstanceRow],
    wanted: Vec<(PoolId, Option<Goal>)>,
) -> Result<Vec<NewInstance>, ApiError> {
    let taken_uids: BTreeSet<u32> = agent.store.read(store::uids).await?;
    let taken_offsets: BTreeSet<u16> = present.iter().map(|instance| instance.place.offset).collect();
    let mut offsets = tenant.subnet.instance_offsets().filter(|offset| !taken_offsets.contains(offset));
    let mut uids = agent.hands.uids().filter(|uid| !taken_uids.contains(uid));
    let mut ids = BTreeSet::new();
    let mut instances = Vec::new();
    for (pool, goal) in wanted {
        let offset = offsets.next().ok_or_else(|| ApiError {
            code: ErrorCode::Invalid,
            message: format!("subnet {} is full", tenant.subnet),
            key: Some("tenant.subnet".to_owned()),
        })?;
        let uid = uids.next().ok_or_else(|| failed("this node has no uid left for another machine"))?;
        let id = new_id(agent, &mut ids).map_err(failed)?;
        let machine_id = hex::encode(crate::seal::random::<16>().map_err(failed)?);
        let place = Place { tenant: tenant.id.clone(), pool, offset, uid, machine_id };
        instances.push(NewInstance { id, place, goal });
    }
    Ok(instances)
}

/// Makes their disks, of so many MiB each.
///
/// # Errors
/// Where one could not be made; [`remove_disks`] removes the others.
pub async fn make_disks(agent: &Agent, disks: Vec<(InstanceId, u64)>) -> Result<(), ApiError> {
    let making = disks.into_iter().map(|(id, mib)| agent.hands.make_disk(id, mib));
    // All come to their end, also behind one that failed: what is still being made could not be removed.
    let made: Vec<_> = futures::stream::iter(making).buffer_unordered(DISKS).collect().await;
    made.into_iter().collect::<Result<(), _>>().map_err(failed)
}

/// A data disk that an instance to be begins with, in the place of an empty one.
#[derive(Debug)]
pub struct GivenDisk {
    /// The disk.
    pub disk: NewDisk,
    /// Whose it was: an instance of the same id has it, where there is none.
    pub id: InstanceId,
    /// Where it comes from, in words.
    pub from: String,
}

/// The instance to be that begins with a given disk is called after whose that was.
pub fn name_after(agent: &Agent, instance: &mut NewInstance, given: &GivenDisk) {
    if agent.machine(given.id).is_none() {
        instance.id = given.id;
    }
}

/// Gives an instance to be its disk; what is to be said about it.
///
/// # Errors
/// Where it could not be; [`remove_disks`] removes what there is of it.
pub async fn give_disk(agent: &Agent, instance: &NewInstance, given: GivenDisk) -> Result<Audit, ApiError> {
    agent.hands.keep_disk(given.disk, instance.id).await.map_err(failed)?;
    agent.hands.replace_disk(instance.id).await.map_err(failed)?;
    Ok(Audit::new(instance.address(), "InstanceRestored", given.from))
}

/// Removes what was made for instances that are not to be after all.
pub async fn remove_disks(agent: &Agent, ids: Vec<InstanceId>) {
    for id in ids {
        if let Err(error) = agent.hands.remove_machine(id).await {
            tracing::warn!(%id, %error, "a disk that is not wanted after all is left until the agent starts again");
        }
    }
}

/// An id that no instance has, nor any of these; then it is one of these.
fn new_id(agent: &Agent, others: &mut BTreeSet<InstanceId>) -> std::io::Result<InstanceId> {
    loop {
        let id = InstanceId::new(u32::from_be_bytes(crate::seal::random()?));
        if agent.machine(id).is_none() && others.insert(id) {
            return Ok(id);
        }
    }
}

fn failed(message: impl ToString) -> ApiError {
    ApiError::new(ErrorCode::Failed, message)
}
