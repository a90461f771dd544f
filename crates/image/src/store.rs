//! The store of revisions, and the build that fills it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use mvm_model::service::ServicesFile;
use serde::{Deserialize, Serialize};

use crate::archive::{Mirrors, PackageCache};
use crate::cache::{Part, PartCache, sync_folder, write_json};
use crate::digest::InvalidDigest;
use crate::error::{At, Error, Result, malformed};
use crate::flock::FileLock;
use crate::lock::LockedPackage;
use crate::modules::{Modules, WANTED};
use crate::source::{ImageSource, Plan};
use crate::work::Workshop;
use crate::{BuildStep, Digest, Progress, deb, guest, initrd, kernel, rootfs};

/// Raised whenever the same packages give another kernel, module list or initrd.
const BOOT_FORMAT: u32 = 1;

/// A revision's id: the digest of its parts' digests and its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionId(Digest);

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for RevisionId {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        text.parse().map(Self)
    }
}

/// One immutable build of an image. The files are read-only and stay until it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its id.
    pub id: RevisionId,
    /// The image's name.
    pub image: String,
    /// The kernel: an uncompressed ELF file.
    pub kernel: PathBuf,
    /// The initrd with `mvm-guest` as `/init`.
    pub initrd: PathBuf,
    /// The root: an erofs file.
    pub rootfs: PathBuf,
    /// What runs in its machines, as in the root's `/etc/mvm/services.json`.
    pub services: ServicesFile,
    /// The kernel's release, as `6.1.0-56-cloud-amd64`.
    pub kernel_release: String,
}

/// What is kept of a revision; its digest is the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    version: u32,
    image: String,
    kernel_release: String,
    kernel: Part,
    initrd: Part,
    rootfs: Part,
    services: ServicesFile,
}

impl Metadata {
    fn parts(&self) -> [Part; 3] {
        [self.kernel, self.initrd, self.rootfs]
    }

    fn id(&self) -> Result<RevisionId> {
        Digest::of_json(self).map(RevisionId).map_err(|e| malformed("the revision", e))
    }
}

/// Revisions on disk, and the packages and parts that they are made from.
///
/// Several processes may share a cache; a store's root is one agent's.
#[derive(Debug)]
pub struct ImageStore {
    root: PathBuf,
    cache: PartCache,
    packages: PackageCache,
    mirrors: Mirrors,
    work: Workshop,
}

impl ImageStore {
    /// Opens a store, making its folders where they are missing. [`cache_folder`] says the cache to
    /// use by default.
    ///
    /// # Errors
    /// Where the folders cannot be made.
    pub fn open(root: &Path, cache: &Path) -> Result<Self> {
        for folder in ["parts", "revisions"].map(|name| root.join(name)) {
            fs::create_dir_all(&folder).at(&folder)?;
        }
        let work = Workshop::open(cache.join("work"))?;
        Ok(Self {
            root: root.to_owned(),
            cache: PartCache::open(cache, work.clone())?,
            packages: PackageCache::open(cache.join("packages"), work.clone())?,
            mirrors: Mirrors::from_environment(),
            work,
        })
    }

    /// Builds an image, or finds that it was built. Blocks, for minutes where packages have to be
    /// fetched; at once where nothing changed.
    ///
    /// # Errors
    /// Whatever is wrong with the recipe, its lock, the archives or the tools.
    pub fn build(&self, source: &ImageSource, progress: Progress<'_>) -> Result<Revision> {
        let plan = Plan::load(source)?;
        let (kernel, initrd) = self.boot_parts(&plan, progress)?;
        let rootfs = self.rootfs(&plan, progress)?;
        self.install(metadata(plan, kernel, initrd, rootfs))
    }

    /// Builds an image as [`build`](Self::build) does, but believes no file that is there already: each is read, and made anew where
    /// it is not what was built. Gives how many files of the revision were replaced, too.
    ///
    /// # Errors
    /// Whatever is wrong with the recipe, its lock, the archives or the tools.
    pub fn mend(&self, source: &ImageSource, progress: Progress<'_>) -> Result<(Revision, usize)> {
        let plan = Plan::load(source)?;
        let modules = key("modules", BOOT_FORMAT, &(plan.kernel.sha256, WANTED))?;
        for key in Self::keys(&plan)?.iter().chain([&modules]) {
            self.cache.forget_damaged(key)?;
        }
        let revision = self.build(source, progress)?;
        let _lock = self.lock()?;
        let mut replaced = 0;
        for part in self.metadata(&revision.id)?.parts() {
            let (file, cached) = (self.part_path(&part), self.cache.path(&part));
            // Two names of one file, where they are on one file system; that was read already.
            let is_whole = || Digest::of_file(&file).is_ok_and(|(digest, _)| digest == part.digest);
            if !is_same_file(&file, &cached).at(&file)? && !is_whole() {
                self.bring(&part)?;
                replaced += 1;
            }
        }
        sync_folder(&self.root.join("parts"))?;
        Ok((revision, replaced))
    }

    /// The revision that a build would give, if everything for it is there. Changes nothing.
    ///
    /// # Errors
    /// Whatever is wrong with the recipe or its lock.
    pub fn built(&self, source: &ImageSource) -> Result<Option<RevisionId>> {
        let plan = Plan::load(source)?;
        let found = Self::keys(&plan)?.map(|key| self.cache.find(&key));
        let [Some(kernel), Some(initrd), Some(rootfs)] = found else { return Ok(None) };
        Ok(Some(metadata(plan, kernel, initrd, rootfs).id()?))
    }

    /// The keys of kernel, initrd and root.
    fn keys(plan: &Plan) -> Result<[Digest; 3]> {
        Ok([
            key("kernel", BOOT_FORMAT, &plan.kernel.sha256)?,
            key("initrd", BOOT_FORMAT, &(plan.kernel.sha256, guest::digest()))?,
            key("rootfs", rootfs::FORMAT, &plan.root)?,
        ])
    }

    /// A revision that was built.
    ///
    /// # Errors
    /// [`Error::UnknownRevision`] where it is not here, or not as a whole.
    pub fn revision(&self, id: &RevisionId) -> Result<Revision> {
        let metadata = self.metadata(id)?;
        if !metadata.parts().iter().all(|part| self.has(part)) {
            return Err(Error::UnknownRevision(*id));
        }
        Ok(self.describe(*id, metadata))
    }

    /// The ids of all revisions, in their order.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn list(&self) -> Result<Vec<RevisionId>> {
        let folder = self.root.join("revisions");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).at(&folder)? {
            let name = entry.at(&folder)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(id.and_then(|id| id.parse::<RevisionId>().ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Reads all of a revision's files and compares their digests.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where one is not what was built, [`Error::Format`] where its metadata is not.
    pub fn verify(&self, id: &RevisionId) -> Result<()> {
        let metadata = self.metadata(id)?;
        if metadata.id()? != *id {
            return Err(malformed(&self.metadata_path(id).display().to_string(), "it is not what was built"));
        }
        for part in metadata.parts() {
            let file = self.part_path(&part);
            let (found, _) = Digest::of_file(&file).at(&file)?;
            if found != part.digest {
                return Err(Error::Corrupt { file, expected: part.digest, found });
            }
        }
        Ok(())
    }

    /// Removes a revision, and the files that no other one has. Nothing may use it. The cache keeps what
    /// it has.
    ///
    /// # Errors
    /// Where files cannot be removed; one that is not here is no error.
    pub fn remove(&self, id: &RevisionId) -> Result<()> {
        let _lock = self.lock()?;
        remove_if_there(&self.metadata_path(id))?;
        self.remove_unused_parts()
    }

    /// Removes all revisions but these, and the files that none of these has, also those that a removal left which did not
    /// come to its end. Nothing may use them. The cache keeps what it has. Gives the revisions that it removed.
    ///
    /// # Errors
    /// Where the store cannot be read, or files cannot be removed.
    pub fn keep_only(&self, kept: &BTreeSet<RevisionId>) -> Result<Vec<RevisionId>> {
        let _lock = self.lock()?;
        let mut removed = self.list()?;
        removed.retain(|id| !kept.contains(id));
        removed.iter().try_for_each(|id| remove_if_there(&self.metadata_path(id)))?;
        self.remove_unused_parts()?;
        Ok(removed)
    }

    /// Removes the files that no revision has.
    fn remove_unused_parts(&self) -> Result<()> {
        let mut used = BTreeSet::new();
        for other in self.list()? {
            used.extend(self.metadata(&other)?.parts().map(|part| part.digest.to_string()));
        }
        let folder = self.root.join("parts");
        for entry in fs::read_dir(&folder).at(&folder)? {
            let entry = entry.at(&folder)?;
            if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                remove_if_there(&entry.path())?;
            }
        }
        sync_folder(&folder)
    }

    /// The kernel and the initrd.
    fn boot_parts(&self, plan: &Plan, progress: Progress<'_>) -> Result<(Part, Part)> {
        let [kernel_key, initrd_key, _] = Self::keys(plan)?;
        if let (Some(kernel), Some(initrd)) = (self.cache.find(&kernel_key), self.cache.find(&initrd_key)) {
            return Ok((kernel, initrd));
        }
        let (kernel, modules) = self.kernel_and_modules(plan, &kernel_key, progress)?;
        let _lock = self.cache.lock(&initrd_key)?;
        if let Some(initrd) = self.cache.find(&initrd_key) {
            return Ok((kernel, initrd));
        }
        let modules = self.cache.path(&modules);
        let mut content = initrd::init_archive(guest::binary());
        content.extend(fs::read(&modules).at(&modules)?);
        Ok((kernel, self.cache.keep_bytes(&initrd_key, &content)?))
    }

    /// The kernel, and the initrd's part with its modules; they come out of one package.
    fn kernel_and_modules(
        &self,
        plan: &Plan,
        kernel_key: &Digest,
        progress: Progress<'_>,
    ) -> Result<(Part, Part)> {
        let modules_key = key("modules", BOOT_FORMAT, &(plan.kernel.sha256, WANTED))?;
        let _lock = self.cache.lock(kernel_key)?;
        if let (Some(kernel), Some(modules)) = (self.cache.find(kernel_key), self.cache.find(&modules_key)) {
            return Ok((kernel, modules));
        }
        let package = self.mirrors.deb(&plan.kernel, &plan.timestamp);
        let files = self.packages.fetch_all(&[package], progress)?;
        progress(BuildStep::Kernel);
        let (bzimage, modules) = read_kernel_package(&plan.kernel, &files)?;
        let elf = kernel::elf_from_bzimage(&bzimage)?;
        let archive = initrd::modules_archive(&modules.in_load_order(&WANTED)?);
        Ok((self.cache.keep_bytes(kernel_key, &elf)?, self.cache.keep_bytes(&modules_key, &archive)?))
    }

    fn rootfs(&self, plan: &Plan, progress: Progress<'_>) -> Result<Part> {
        let [_, _, key] = Self::keys(plan)?;
        if let Some(part) = self.cache.find(&key) {
            return Ok(part);
        }
        let _lock = self.cache.lock(&key)?;
        // Another process may have made it meanwhile.
        if let Some(part) = self.cache.find(&key) {
            return Ok(part);
        }
        let debs = plan.root.packages.iter().map(|package| self.mirrors.deb(package, &plan.timestamp));
        let npm = plan.root.npm.iter().flat_map(|npm| &npm.packages).map(|package| self.mirrors.npm(package));
        let packages = self.packages.fetch_all(&debs.chain(npm).collect::<Vec<_>>(), progress)?;
        let work = self.work.begin()?;
        let (tree, out) = (work.join("tree"), work.join("rootfs"));
        fs::create_dir(&tree).at(&tree)?;
        rootfs::build(&plan.root, &packages, &tree, &out, progress)?;
        self.cache.keep_file(&key, &out)
    }

    /// Brings a revision's files into the store.
    fn install(&self, metadata: Metadata) -> Result<Revision> {
        let id = metadata.id()?;
        let _lock = self.lock()?;
        for part in metadata.parts() {
            if !self.has(&part) {
                self.bring(&part)?;
            }
        }
        if self.metadata(&id).ok().as_ref() != Some(&metadata) {
            sync_folder(&self.root.join("parts"))?;
            write_json(&self.metadata_path(&id), &metadata)?;
        }
        Ok(self.describe(id, metadata))
    }

    /// Links a part from the cache, or copies it where that is on another file system. One that is there is replaced in one step:
    /// machines may start meanwhile.
    fn bring(&self, part: &Part) -> Result<()> {
        let (from, to) = (self.cache.path(part), self.part_path(part));
        let new = to.with_extension("new");
        remove_if_there(&new)?;
        if fs::hard_link(&from, &new).is_err() {
            fs::copy(&from, &new).at(&from)?;
            fs::File::open(&new).and_then(|copy| copy.sync_all()).at(&new)?;
        }
        fs::rename(&new, &to).at(&to)?;
        // Still there where both were names of one file.
        remove_if_there(&new)
    }

    fn describe(&self, id: RevisionId, metadata: Metadata) -> Revision {
        Revision {
            id,
            kernel: self.part_path(&metadata.kernel),
            initrd: self.part_path(&metadata.initrd),
            rootfs: self.part_path(&metadata.rootfs),
            image: metadata.image,
            services: metadata.services,
            kernel_release: metadata.kernel_release,
        }
    }

    fn metadata(&self, id: &RevisionId) -> Result<Metadata> {
        let path = self.metadata_path(id);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::UnknownRevision(*id)),
            read => serde_json::from_slice(&read.at(&path)?)
                .map_err(|e| malformed(&path.display().to_string(), e)),
        }
    }

    fn lock(&self) -> Result<FileLock> {
        FileLock::exclusive(&self.root.join("lock"))
    }

    fn metadata_path(&self, id: &RevisionId) -> PathBuf {
        self.root.join("revisions").join(format!("{id}.json"))
    }

    fn part_path(&self, part: &Part) -> PathBuf {
        self.root.join("parts").join(part.digest.to_string())
    }

    fn has(&self, part: &Part) -> bool {
        fs::metadata(self.part_path(part)).is_ok_and(|found| found.len() == part.size)
    }
}

/// The cache of a store: what `MVM_PACKAGE_CACHE` names, else a folder in the store.
pub fn cache_folder(root: &Path) -> PathBuf {
    match std::env::var_os("MVM_PACKAGE_CACHE").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => root.join("cache"),
    }
}

fn metadata(plan: Plan, kernel: Part, initrd: Part, rootfs: Part) -> Metadata {
    Metadata {
        version: 1,
        kernel_release: kernel_release(&plan.kernel),
        image: plan.image,
        kernel,
        initrd,
        rootfs,
        services: plan.root.services,
    }
}

/// The key of a part of some kind, made from `inputs`.
fn key<T: Serialize>(kind: &str, format: u32, inputs: &T) -> Result<Digest> {
    Digest::of_json(&(kind, format, inputs)).map_err(|e| malformed(kind, e))
}

/// `linux-image-6.1.0-56-cloud-amd64` is the package of the release `6.1.0-56-cloud-amd64`.
fn kernel_release(package: &LockedPackage) -> String {
    package.name.trim_start_matches("linux-image-").to_owned()
}

/// The bzImage and the modules of a kernel's package.
fn read_kernel_package(package: &LockedPackage, files: &[PathBuf]) -> Result<(Vec<u8>, Modules)> {
    let no_kernel = || malformed(&package.name, "has no kernel");
    let mut archive = deb::open(files.first().ok_or_else(no_kernel)?)?;
    let mut bzimage = None;
    let mut modules = Modules::default();
    for entry in archive.entries().at(&package.name)? {
        let mut entry = entry.at(&package.name)?;
        let path = entry.path().at(&package.name)?.into_owned();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_kernel = name.starts_with("vmlinuz-");
        if !is_kernel && !name.ends_with(".ko") {
            continue;
        }
        let mut content = Vec::new();
        io::copy(&mut entry, &mut content).at(&path)?;
        if is_kernel {
            bzimage = Some(content);
        } else {
            modules.insert(name, content);
        }
    }
    Ok((bzimage.ok_or_else(no_kernel)?, modules))
}

fn is_same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::metadata(one)?, fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}
