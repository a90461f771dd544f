//! `pool scale`.

use std::collections::BTreeMap;

use mvm_model::{DesiredCounts, InstanceState};
use serde::{Deserialize, Serialize};

use super::ApiError;

/// How many instances a pool is to have. A count that is absent stays as it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScaleRequest {
    /// So many run.
    pub running: Option<u32>,
    /// So many sleep.
    pub sleeping: Option<u32>,
    /// What is too many is destroyed; without it, that is refused.
    pub destroy: bool,
}

/// A line of the progress of a scaling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ScaleEvent {
    /// What is wanted is committed; this follows.
    Planned {
        /// Instances that were created.
        created: usize,
        /// Addresses of those that are destroyed, in this order.
        destroys: Vec<String>,
        /// Acts on instances, those included.
        acts: usize,
    },
    /// An act on an instance begins.
    Begun {
        /// Its address.
        instance: String,
        /// `starting`, `waking`, …
        doing: String,
    },
    /// An act on an instance has ended.
    Ended(ScaleOutcome),
    /// Everything that could be done is done.
    Done(Scaled),
    /// It was refused before anything was done, or failed as a whole.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// What a scaling does to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScaleAct {
    /// Ends it and removes everything it had.
    Destroy,
    /// Puts it to sleep.
    Sleep,
    /// Starts it once, for there is nothing to sleep with before, and puts it to sleep.
    Prepare,
    /// Makes it run: a start or a wake.
    Run,
}

/// What became of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ScaleOutcome {
    /// Its address.
    pub instance: String,
    /// What was to be done to it.
    pub act: ScaleAct,
    /// Its state now.
    pub state: InstanceState,
    /// How it was started or woken: `cold boot`, `clone`, `wake`.
    pub how: Option<String>,
    /// How long the act took, in milliseconds.
    pub ms: f64,
    /// Why it was not done.
    pub error: Option<String>,
}

/// What a scaling came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Scaled {
    /// The pool's address.
    pub pool: String,
    /// What is wanted of it now.
    pub desired: DesiredCounts,
    /// Its instances by state.
    pub instances: BTreeMap<String, usize>,
    /// Whether anything was changed or done; all of it may have held already.
    pub changed: bool,
    /// Instances that were created.
    pub created: usize,
    /// What became of each instance that something was to be done to.
    pub outcomes: Vec<ScaleOutcome>,
    /// Why no more were started, and what to do.
    pub stopped: Option<String>,
    /// Addresses of those to which nothing was done for this reason.
    pub not_begun: Vec<String>,
}
