//! Backups of data disks: one file that is written once, and read back whole or not at all.
//!
//! It is a tar archive, compressed as one zstd frame, so `tar --zstd -tf` shows what is in it:
//!
//! | entry | holds |
//! |---|---|
//! | `backup.json` | [`Metadata`]: of what it is, when it was made, how large the disk is |
//! | `data.img` | the disk; holes are left out (GNU sparse) |
//! | `checksum` | BLAKE3 over all of the archive before this entry, in hex |
//!
//! What a file says of itself is not believed before its end: [`unpack`] succeeds only where the checksum, the sizes and the
//! end are right.

mod digest;
mod read;
mod write;

use std::io;

use mvm_model::{InstanceId, PoolId, Resources, Role, TenantId};
use serde::{Deserialize, Serialize};

pub use read::unpack;
pub use write::write;

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
const METADATA: &str = "backup.json";
const DISK: &str = "data.img";
const CHECKSUM: &str = "checksum";
/// More metadata than this nobody wrote.
const MOST_METADATA: u64 = 64 * 1024;

/// How a backup is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// Not at all.
    #[serde(rename = "none")]
    None,
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The version of the format.
    version: u32,
    /// How it is encrypted.
    cipher: Cipher,
    /// With which key.
    key_id: Option<String>,
    /// Of what it is, and when it was made.
    #[serde(flatten)]
    pub facts: Facts,
    /// How large the disk is.
    pub disk_bytes: u64,
}

/// Of what a backup is, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The version of mvm that made it.
    pub mvm_version: String,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// The instance.
    pub instance: InstanceId,
    /// What its pool is for.
    pub role: Role,
    /// The image that used the disk last; of none where it never ran.
    pub revision: Option<String>,
    /// vCPUs, memory and disk that it had.
    pub resources: Resources,
    /// When it was made, in milliseconds since 1970.
    pub taken_at_ms: u64,
}

/// Why a file is no backup that can be used, or why it could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("it is no backup that mvm made, or its beginning is damaged; `mvm instance backup` makes one")]
    Foreign,
    /// It was made by a newer mvm, or encrypted.
    #[error(
        "the backup has version {version} and cipher {cipher:?}; this mvm reads version {VERSION} with cipher \"none\""
    )]
    Unknown {
        /// Its version.
        version: u64,
        /// Its cipher.
        cipher: String,
    },
    /// It is not as it was written.
    #[error("the backup is damaged: {0}; get it again from where it is whole")]
    Damaged(String),
    /// It is whole and cannot be taken.
    #[error("{0}")]
    Refused(String),
    /// Where it goes to, or the disk itself.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Short for a result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests;
