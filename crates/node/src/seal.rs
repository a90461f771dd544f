//! Secrets at rest: AES-256-GCM, one data key per tenant, wrapped by the node's key.
//!
//! A sealed value is a header (`version`, `cipher`, `key_id`), a nonce and the ciphertext with its tag; the
//! header and what the value is called are authenticated with it, so no sealed value can stand in for another.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use mvm_model::TenantId;
use mvm_protocol::SecretBytes;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Version of the sealed format.
const VERSION: u8 = 1;
/// AES-256-GCM; 0 is `none`, for formats that allow it.
const CIPHER_AES_256_GCM: u8 = 1;
const KEY_ID: usize = 8;
const NONCE: usize = 12;
const HEADER: usize = 2 + KEY_ID;
/// What a sealed value has beyond the value: header, nonce, tag.
const OVERHEAD: usize = HEADER + NONCE + 16;

/// A key or sealed value is not usable.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The node's key file.
    #[error("the node key {path}: {source}; without it no sealed secret can be read", path = .path.display())]
    KeyFile {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// A sealed value of another key, or a damaged one.
    #[error("the sealed value `{0}` cannot be opened: it is damaged, or was sealed by another node key")]
    Open(String),
    /// Sealing failed.
    #[error("`{0}` could not be sealed")]
    Seal(String),
    /// No randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] std::io::Error),
}

/// A 256-bit key.
#[derive(Clone)]
pub struct Key {
    bytes: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", hex::encode(self.id()))
    }
}

impl Key {
    /// A fresh key.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self { bytes: Zeroizing::new(random()?) })
    }

    /// The node's key: read, or made with mode 0600 where there is none yet.
    ///
    /// # Errors
    /// [`SealError::KeyFile`].
    pub fn of_node(path: &Path) -> Result<Self, SealError> {
        let wrong = |source| SealError::KeyFile { path: path.to_owned(), source };
        match std::fs::File::open(path) {
            Ok(mut file) => {
                let mut bytes = Zeroizing::new([0; 32]);
                file.read_exact(&mut *bytes).map_err(wrong)?;
                Ok(Self { bytes })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = Self::generate()?;
                key.write_new(path).map_err(wrong)?;
                Ok(key)
            }
            Err(error) => Err(wrong(error)),
        }
    }

    fn write_new(&self, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&*self.bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
    }

    /// Wraps a tenant's data key.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn wrap(&self, tenant: &TenantId, key: &Key) -> Result<Vec<u8>, SealError> {
        self.seal(&format!("key of {tenant}"), &*key.bytes)
    }

    /// Unwraps a tenant's data key.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn unwrap_key(&self, tenant: &TenantId, wrapped: &[u8]) -> Result<Key, SealError> {
        let name = format!("key of {tenant}");
        let opened = self.open(&name, wrapped)?;
        let bytes = <[u8; 32]>::try_from(opened.expose()).map_err(|_| SealError::Open(name))?;
        Ok(Key { bytes: Zeroizing::new(bytes) })
    }

    /// Seals a value under its name.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&self, name: &str, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE] = random()?;
        let mut out = vec![VERSION, CIPHER_AES_256_GCM];
        out.extend(self.id());
        let aad = [&out[..], name.as_bytes()].concat();
        let sealed = self
            .cipher()
            .encrypt(Nonce::from_slice(&nonce), Payload { msg: value, aad: &aad })
            .map_err(|_| SealError::Seal(name.to_owned()))?;
        out.extend(nonce);
        out.extend(sealed);
        Ok(out)
    }

    /// Opens what was sealed under this name.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<SecretBytes, SealError> {
        let refused = || SealError::Open(name.to_owned());
        let (header, rest) = sealed.split_at_checked(HEADER).ok_or_else(refused)?;
        let (nonce, text) = rest.split_at_checked(NONCE).ok_or_else(refused)?;
        if header[..2] != [VERSION, CIPHER_AES_256_GCM] || header[2..] != self.id() {
            return Err(refused());
        }
        let aad = [header, name.as_bytes()].concat();
        self.cipher()
            .decrypt(Nonce::from_slice(nonce), Payload { msg: text, aad: &aad })
            .map(SecretBytes::new)
            .map_err(|_| refused())
    }

    /// Tells keys apart without giving them away.
    fn id(&self) -> [u8; KEY_ID] {
        let digest = Sha256::new().chain_update(b"mvm key id").chain_update(*self.bytes).finalize();
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&digest[..KEY_ID]);
        id
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new((&*self.bytes).into())
    }
}

/// How many bytes a sealed value has, without opening it.
pub fn value_len(sealed: &[u8]) -> usize {
    sealed.len().saturating_sub(OVERHEAD)
}

/// Random bytes of the kernel.
///
/// # Errors
/// The system's own.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_node_key_is_made_once_and_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let first = Key::of_node(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Key::of_node(&path).unwrap().id(), first.id());
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(Key::of_node(&path), Err(SealError::KeyFile { .. })));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_only_under_its_name_and_key(value: Vec<u8>, flip in any::<prop::sample::Index>()) {
            let key = Key::generate().unwrap();
            let sealed = key.seal("a/KEY", &value).unwrap();
            let opened = key.open("a/KEY", &sealed).unwrap();
            prop_assert_eq!(opened.expose(), value.as_slice());
            prop_assert_eq!(value_len(&sealed), value.len());
            prop_assert!(key.open("b/KEY", &sealed).is_err());
            prop_assert!(Key::generate().unwrap().open("a/KEY", &sealed).is_err());
            let mut damaged = sealed.clone();
            let at = flip.index(damaged.len());
            damaged[at] ^= 1;
            prop_assert!(key.open("a/KEY", &damaged).is_err());
            prop_assert!(key.open("a/KEY", &sealed[..at]).is_err());
        }
    }
}
