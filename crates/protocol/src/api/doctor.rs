//! `doctor`, which asks no agent.

use mvm_model::Requirement;
use serde::{Deserialize, Serialize};

/// What mvm needs of a host, and how it is met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DoctorReport {
    /// Whether nothing is missing that mvm does not work without.
    pub ready: bool,
    /// Everything that was looked at.
    pub requirements: Vec<Requirement>,
}
