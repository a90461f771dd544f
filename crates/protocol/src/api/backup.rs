//! Backups and restores: what is said beside their bytes.
//!
//! A backup's bytes come as standard output up to the end of the stream, those of a restore go as standard input up to
//! theirs. Each record of standard error holds a [`BackupNote`]; the last one says what came of it.

use mvm_model::InstanceState;
use serde::{Deserialize, Serialize};

use super::ApiError;

/// Make a backup of an instance's data disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRequest {}

/// Give an instance the data disk of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {}

/// What the agent says of a backup or a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum BackupNote {
    /// Something happens to a machine.
    Step {
        /// Its address.
        instance: String,
        /// What.
        doing: String,
    },
    /// How much of a disk is through, before it is compressed.
    Progress {
        /// So many bytes.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// The backup is whole.
    BackedUp(BackedUp),
    /// The machine has the backup's disk.
    Restored(Restored),
    /// It failed.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackedUp {
    /// The instance's whole address.
    pub instance: String,
    /// Its state now.
    pub state: InstanceState,
    /// What the backup takes.
    pub bytes: u64,
    /// BLAKE3 over its content, in hex.
    pub checksum: String,
    /// How large the data disk is.
    pub data_disk_bytes: u64,
    /// Why the machine is not again as it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_as_before: Option<String>,
}

/// A backup that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restored {
    /// The whole address of the instance that has its disk now.
    pub instance: String,
    /// Its state now.
    pub state: InstanceState,
    /// The whole address of the instance that it was made of.
    pub of: String,
    /// When it was made, in milliseconds since 1970.
    pub taken_at_ms: u64,
    /// BLAKE3 over its content, in hex.
    pub checksum: String,
    /// How large its data disk is.
    pub data_disk_bytes: u64,
}
