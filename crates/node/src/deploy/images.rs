//! The revision of every pool's image, built where it is not there yet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mvm_host::{BuildStep, HostError, ImageSource};
use mvm_model::manifest::Deployment;
use mvm_protocol::api::ApiError;

use super::{Events, invalid};
use crate::agent::Agent;

/// Revisions by image, as pools name it.
pub type Revisions = BTreeMap<String, String>;

/// Builds what is missing.
pub async fn build(
    agent: &Arc<Agent>,
    deployment: &Deployment,
    events: &Events,
) -> Result<Revisions, ApiError> {
    let mut revisions = Revisions::new();
    for (index, pool) in deployment.pools.iter().enumerate() {
        if revisions.contains_key(&pool.image) {
            continue;
        }
        let built = build_image(agent, &pool.image, events).await;
        let revision = built.map_err(|error| invalid(format!("pools[{index}].image"), error))?;
        revisions.insert(pool.image.clone(), revision);
    }
    Ok(revisions)
}

/// Builds an image as a pool names it, where that was not done yet; gives its revision.
pub async fn build_image(agent: &Agent, image: &str, events: &Events) -> Result<String, HostError> {
    let what = format!("image {image}");
    let progress = {
        let events = events.clone();
        move |step: BuildStep| tell(&events, &what, &step)
    };
    agent.hands.build_image(source(image), progress).await
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
