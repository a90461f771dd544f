//! From a recipe to a revision — kernel, initrd, root, metadata — and data disks.
//!
//! A recipe is a folder: `image.toml`, `image.lock` and the image's own files. [`ImageStore::build`]
//! fetches the packages that the lock pins, unpacks them (their scripts are never run), and keeps the
//! parts by their digests: the same recipe gives the same bytes on every host.
//!
//! | module | does |
//! |---|---|
//! | [`recipe`], [`lock`], [`source`] | read what an image is made of |
//! | [`archive`] | fetches packages |
//! | `deb`, `npm`, `tree`, `rootfs` | unpack them into a root, and pack that |
//! | `kernel`, `modules`, `initrd` | make what a machine boots |
//! | `cache`, `work`, [`store`] | keep parts and revisions |
//! | [`disk`] | data disks |
//! | [`requirements`] | whether the tools are there that all this needs |
//! | [`guest`] | `mvm-guest`, which every initrd holds |

pub mod archive;
mod cache;
mod deb;
mod digest;
pub mod disk;
mod error;
mod flock;
pub mod guest;
mod initrd;
mod kernel;
pub mod lock;
mod modules;
mod npm;
pub mod recipe;
pub mod requirements;
mod rootfs;
pub mod source;
pub mod store;
mod tool;
mod tree;
mod work;

pub use digest::{Digest, InvalidDigest};
pub use error::{Error, Result};
pub use recipe::RecipeError;
pub use source::ImageSource;
pub use store::{ImageStore, Revision, RevisionId, cache_folder};

/// Told how far a build is; called from the thread that builds.
pub type Progress<'a> = &'a (dyn Fn(BuildStep) + Sync);

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildStep {
    /// Fetching a package, or finding it in the cache.
    Fetch {
        /// Its name.
        package: String,
        /// Which one it is, from 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// What has come of it, bytes.
        bytes: u64,
        /// Its size where that is known, bytes.
        total_bytes: Option<u64>,
    },
    /// Making the kernel and its modules ready.
    Kernel,
    /// Unpacking a package.
    Unpack {
        /// Its name.
        package: String,
        /// Which one it is, from 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// Compiling Python sources ahead.
    Bytecode,
    /// Packing the root.
    Pack,
}
