//! How an outside service is with which an assistant keeps a session.

use std::fmt;

use serde::{Deserialize, Serialize};

/// State of an integration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum IntegrationStatus {
    /// Connected.
    Active,
    /// Checkpointed.
    Paused,
    /// Not connected yet.
    Pending,
    /// Broken.
    Error,
}

impl fmt::Display for IntegrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            IntegrationStatus::Active => "active",
            IntegrationStatus::Paused => "paused",
            IntegrationStatus::Pending => "pending",
            IntegrationStatus::Error => "error",
        })
    }
}
