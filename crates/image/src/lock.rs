//! `image.lock`: every package of an image, the kernel's included, pinned by version and digest.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::error::{Error, Result};

/// The file name of a lock, beside its recipe.
pub const LOCK_FILE: &str = "image.lock";

/// The file name of npm's own lock, beside a recipe that asks for packages of npm.
pub const NPM_LOCK_FILE: &str = "package-lock.json";

/// The version of the format that this program reads and writes.
pub const LOCK_VERSION: u32 = 1;

/// What an `image.lock` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The format's version, [`LOCK_VERSION`].
    pub version: u32,
    /// A time at which the snapshot archive has every package, as `20261123T210000Z`.
    pub timestamp: String,
    /// The kernel's package, one of `packages`; it is not part of the root.
    pub kernel: String,
    /// Every package, in the order of their names.
    #[serde(rename = "package")]
    pub packages: Vec<LockedPackage>,
}

/// One version of one package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The archive that has it.
    pub archive: Archive,
    /// Its path in the archive, beginning with `pool/`.
    pub path: String,
    /// The size of the `.deb`, bytes.
    pub size: u64,
    /// The digest of the `.deb`.
    pub sha256: Digest,
}

/// An archive of Debian packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Archive {
    /// The main archive.
    Debian,
    /// Security updates.
    DebianSecurity,
}

impl Lock {
    /// Reads a lock; `file` is for messages.
    ///
    /// # Errors
    /// [`Error::Lock`] where it is not in order.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let broken = |reason: String| Error::Lock { file: file.to_owned(), reason };
        let lock: Self = toml::from_str(text).map_err(|e| broken(e.message().to_owned()))?;
        if lock.version != LOCK_VERSION {
            return Err(broken(format!("has version {}, not {LOCK_VERSION}", lock.version)));
        }
        if lock.package(&lock.kernel).is_none() {
            return Err(broken(format!("the kernel's package `{}` is not in it", lock.kernel)));
        }
        let is_plain = |path: &str| path.starts_with("pool/") && !path.contains("..");
        if let Some(package) = lock.packages.iter().find(|package| !is_plain(&package.path)) {
            return Err(broken(format!("`{}` is not a path in an archive", package.path)));
        }
        Ok(lock)
    }

    /// The package of this name.
    pub fn package(&self, name: &str) -> Option<&LockedPackage> {
        self.packages.iter().find(|package| package.name == name)
    }

    /// The text of the file.
    ///
    /// # Errors
    /// Where it cannot be written as TOML, which no lock that was read is.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let body = toml::to_string(self)?;
        Ok(format!("# Written by scripts/update-locks; do not edit.\n\n{body}"))
    }
}
