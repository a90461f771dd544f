//! The revision of every pool's image, built where it is not there yet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mvm_host::{BuildStep, HostError, ImageSource};
use mvm_model::manifest::Deployment;
use mvm_model::{PoolId, PoolSpec};
use mvm_protocol::api::ApiError;

use super::{Events, invalid};
use crate::agent::Agent;

/// Revisions by pool. One that is not built yet has none.
pub type Revisions = BTreeMap<PoolId, String>;

/// Those that are kept, and those of the other pools, each image looked for once. What is not built yet is built, or left
/// out where nothing may be done.
pub async fn of_pools(
    agent: &Arc<Agent>,
    deployment: &Deployment,
    kept: Revisions,
    dry_run: bool,
    events: &Events,
) -> Result<Revisions, ApiError> {
    let (mut revisions, mut found) = (kept, BTreeMap::new());
    for (index, pool) in deployment.pools.iter().enumerate() {
        if revisions.contains_key(&pool.id) {
            continue;
        }
        if !found.contains_key(&pool.image) {
            let revision = match dry_run {
                true => look(agent, &pool.image, events).await,
                false => build_image(agent, &pool.image, events).await.map(Some),
            };
            let revision = revision.map_err(|error| invalid(format!("pools[{index}].image"), error))?;
            found.insert(pool.image.clone(), revision);
        }
        if let Some(Some(revision)) = found.get(&pool.image) {
            revisions.insert(pool.id.clone(), revision.clone());
        }
    }
    Ok(revisions)
}

/// Of a built-in image that is named with its version, which was found to be right, the name alone.
pub fn forget_version(pool: &mut PoolSpec) {
    if let ImageSource::BuiltIn(image) = source(&pool.image)
        && let Some((name, _)) = image.split_once('@')
    {
        pool.image = name.to_owned();
    }
}

async fn look(agent: &Agent, image: &str, events: &Events) -> Result<Option<String>, HostError> {
    let built = agent.hands.built_image(source(image)).await?;
    if built.is_none() {
        events.step(format!("image {image}"), "would be built");
    }
    Ok(built)
}

/// Builds an image as a pool names it, where that was not done yet; gives its revision.
pub async fn build_image(agent: &Agent, image: &str, events: &Events) -> Result<String, HostError> {
    agent.hands.build_image(source(image), telling(image, events)).await
}

/// The same, and makes anew what is damaged of what was built before; gives how many of its files that were, too.
pub async fn mend_image(agent: &Agent, image: &str, events: &Events) -> Result<(String, usize), HostError> {
    agent.hands.mend_image(source(image), telling(image, events)).await
}

fn telling(image: &str, events: &Events) -> impl Fn(BuildStep) + Send + Sync + 'static {
    let (what, events) = (format!("image {image}"), events.clone());
    move |step| tell(&events, &what, &step)
}

fn source(image: &str) -> ImageSource {
    if image.starts_with('/') {
        ImageSource::Path(PathBuf::from(image))
    } else {
        ImageSource::BuiltIn(image.to_owned())
    }
}

fn tell(events: &Events, what: &str, step: &BuildStep) {
    match step {
        BuildStep::Fetch { package, number, of, .. } => {
            events.progress(what, format!("fetching {package}"), *number as u64, *of as u64);
        }
        BuildStep::Unpack { package, number, of } => {
            events.progress(what, format!("unpacking {package}"), *number as u64, *of as u64);
        }
        BuildStep::Kernel => events.step(what, "preparing the kernel"),
        BuildStep::Bytecode => events.step(what, "compiling Python ahead"),
        BuildStep::Pack => events.step(what, "packing"),
    }
}
