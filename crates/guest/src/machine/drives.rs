//! Config and secrets: two folders in memory, switched together by one link.
//!
//! `current` leads to `v<n>`, whose two entries lead to the `config.<n>` and `secrets.<n>` that belong together. A new
//! tree is complete before the link is moved, and what it does not need any more is removed after. A tree that is there
//! already, and that nobody touched, is not made again: most wakes bring nothing new, and whoever watches these files is
//! not disturbed.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown, symlink};
use std::path::{Path, PathBuf};

use mvm_model::service::ServicesFile;
use mvm_protocol::SecretBytes;
use mvm_protocol::control::{ConfigFiles, MAX_UPDATE, SecretFiles};

use super::places;
use super::secrets::{place, require_name};
use crate::console::say;
use crate::error::{Doing as _, Failure, Result};

/// What the machine was given.
#[derive(Debug)]
pub(super) struct Drives {
    root: PathBuf,
    /// Links to the two folders; not made in tests.
    links: Vec<(PathBuf, &'static str)>,
    version: u64,
    config: Part<ConfigFiles>,
    secrets: Part<SecretFiles>,
    /// Everything as it was made; empty where that could not be looked at.
    made: Vec<(PathBuf, Mark)>,
}

/// One of the two trees.
#[derive(Debug, Default)]
struct Part<T> {
    folder: Option<String>,
    files: Option<T>,
}

/// Tells whether an entry is still the one that was made: each change to a file, link or folder sets its change time.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    changed: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) })
    }
}

impl Default for Drives {
    fn default() -> Self {
        let links = vec![(places::CONFIG.into(), "config"), (places::SECRETS.into(), "secrets")];
        Self { links, ..Self::below(Path::new(places::DRIVES)) }
    }
}

impl Drives {
    fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            links: Vec::new(),
            version: 0,
            config: Part::default(),
            secrets: Part::default(),
            made: Vec::new(),
        }
    }

    /// Replaces one or both as a whole. Tells whether anything is new.
    pub(super) fn replace(
        &mut self,
        services: &ServicesFile,
        config: Option<ConfigFiles>,
        secrets: Option<SecretFiles>,
    ) -> Result<bool> {
        if is_as_before(&config, &self.config.files)
            && is_as_before(&secrets, &self.secrets.files)
            && self.is_untouched()
        {
            return Ok(false);
        }
        let config_bytes = config.as_ref().or(self.config.files.as_ref()).map_or(0, config_size);
        let secrets_bytes = secrets.as_ref().or(self.secrets.files.as_ref()).map_or(0, secrets_size);
        if config_bytes + secrets_bytes > MAX_UPDATE {
            let reason =
                format!("they are {} bytes together, and may be {MAX_UPDATE}", config_bytes + secrets_bytes);
            return Err(Failure::new("updating config and secrets", reason));
        }
        self.version += 1;
        self.made.clear();
        let written = self.write(services, config.as_ref(), secrets.as_ref());
        match &written {
            Ok((config_folder, secrets_folder)) => {
                self.config.take(config_folder, config);
                self.secrets.take(secrets_folder, secrets);
            }
            // What was begun is removed again; the link still leads to what was there.
            Err(_) => self.version -= 1,
        }
        self.remove_unused();
        if written.is_ok() {
            self.made = self.look().unwrap_or_default();
        }
        written.map(|_| true)
    }

    /// A config file's text.
    pub(super) fn config(&self, name: &str) -> Option<&str> {
        self.config.files.as_ref()?.get(name).map(String::as_str)
    }

    /// A secret.
    pub(super) fn secret(&self, (scope, key): (&str, &str)) -> Option<&SecretBytes> {
        self.secrets.files.as_ref()?.get(scope)?.get(key)
    }

    fn is_untouched(&self) -> bool {
        let is_same = |(path, mark): &(PathBuf, Mark)| Mark::of(path).is_ok_and(|found| found == *mark);
        !self.made.is_empty() && self.made.iter().all(is_same)
    }

    /// Everything that is there.
    fn look(&self) -> io::Result<Vec<(PathBuf, Mark)>> {
        let mut found = Vec::new();
        let mut left: Vec<PathBuf> = self.links.iter().map(|(link, _)| link.clone()).collect();
        left.push(self.root.clone());
        while let Some(path) = left.pop() {
            if fs::symlink_metadata(&path)?.is_dir() {
                for entry in fs::read_dir(&path)? {
                    left.push(entry?.path());
                }
            }
            found.push((path.clone(), Mark::of(&path)?));
        }
        Ok(found)
    }

    fn write(
        &self,
        services: &ServicesFile,
        config: Option<&ConfigFiles>,
        secrets: Option<&SecretFiles>,
    ) -> Result<(Option<String>, Option<String>)> {
        let config = match config {
            Some(files) => Some(self.write_config(files)?),
            None => self.config.folder.clone(),
        };
        let secrets = match secrets {
            Some(files) => Some(self.write_secrets(files, services)?),
            None => self.secrets.folder.clone(),
        };
        self.switch(config.as_deref(), secrets.as_deref())?;
        self.link_from_outside()?;
        Ok((config, secrets))
    }

    /// The folder for a new tree; what an update that failed left in its place is removed.
    fn new_folder(&self, kind: &str) -> Result<String> {
        let name = format!("{kind}.{}", self.version);
        make_folder(&self.root.join(&name))?;
        Ok(name)
    }

    fn write_config(&self, files: &ConfigFiles) -> Result<String> {
        let folder = self.new_folder("config")?;
        for (name, text) in files {
            require_name(name)?;
            write_file(&self.root.join(&folder).join(name), 0o644, None, text.as_bytes())?;
        }
        Ok(folder)
    }

    fn write_secrets(&self, secrets: &SecretFiles, services: &ServicesFile) -> Result<String> {
        let folder = self.new_folder("secrets")?;
        for secret in place(secrets, services)? {
            let path = self.root.join(&folder).join(&secret.path);
            if let Some(parent) = path.parent() {
                make_folder(parent)?;
            }
            write_file(&path, 0o400, Some(secret.owner), secret.content)?;
        }
        Ok(folder)
    }

    /// The one step after which the new trees are the machine's.
    fn switch(&self, config: Option<&str>, secrets: Option<&str>) -> Result<()> {
        let switching = "switching config and secrets";
        let name = format!("v{}", self.version);
        let folder = self.root.join(&name);
        make_folder(&folder)?;
        for (link, target) in [("config", config), ("secrets", secrets)] {
            if let Some(target) = target {
                symlink(Path::new("..").join(target), folder.join(link)).doing(switching)?;
            }
        }
        let new = self.root.join("new");
        symlink(&name, &new).doing(switching)?;
        fs::rename(&new, self.root.join("current")).doing(switching)
    }

    fn link_from_outside(&self) -> Result<()> {
        for (link, folder) in &self.links {
            let target = self.root.join("current").join(folder);
            if fs::read_link(link).is_ok_and(|there| there == target) {
                continue;
            }
            // The image has an empty folder there.
            let _ = fs::remove_dir(link);
            symlink(&target, link).doing(format_args!("linking {}", link.display()))?;
        }
        Ok(())
    }

    fn remove_unused(&self) {
        let version = format!("v{}", self.version);
        let used = [
            Some("current"),
            Some(version.as_str()),
            self.config.folder.as_deref(),
            self.secrets.folder.as_deref(),
        ];
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if used.contains(&entry.file_name().to_str()) {
                continue;
            }
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
            if let Err(error) = removed {
                say(format_args!("removing {}: {error}", entry.path().display()));
            }
        }
    }
}

impl<T> Part<T> {
    fn take(&mut self, folder: &Option<String>, files: Option<T>) {
        self.folder.clone_from(folder);
        self.files = files.or(self.files.take());
    }
}

/// Whether this asks for nothing but what is there.
fn is_as_before<T: PartialEq>(wanted: &Option<T>, there: &Option<T>) -> bool {
    wanted.is_none() || wanted == there
}

fn config_size(files: &ConfigFiles) -> usize {
    files.iter().map(|(name, text)| name.len() + text.len()).sum()
}

fn secrets_size(secrets: &SecretFiles) -> usize {
    let keys = |keys: &std::collections::BTreeMap<String, mvm_protocol::SecretBytes>| -> usize {
        keys.iter().map(|(key, value)| key.len() + value.expose().len()).sum()
    };
    secrets.iter().map(|(scope, values)| scope.len() + keys(values)).sum()
}

fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.doing(format_args!("making {}", path.display()))
}

fn write_file(path: &Path, mode: u32, owner: Option<u32>, content: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        if let Some(owner) = owner {
            fchown(&file, Some(owner), Some(owner))?;
        }
        file.write_all(content)
    };
    write().doing(format_args!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn config(text: &str) -> ConfigFiles {
        BTreeMap::from([("config.json".to_owned(), text.to_owned())])
    }

    fn secrets(value: &[u8]) -> SecretFiles {
        let keys = BTreeMap::from([("KEY".to_owned(), SecretBytes::new(value.to_vec()))]);
        BTreeMap::from([("scope".to_owned(), keys)])
    }

    fn read(root: &Path, path: &str) -> String {
        fs::read_to_string(root.join("current").join(path)).unwrap()
    }

    fn entries(root: &Path) -> usize {
        fs::read_dir(root).unwrap().count()
    }

    #[test]
    fn each_part_is_replaced_as_a_whole_and_old_trees_go() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mut drives = Drives::below(root);
        let services = ServicesFile::default();
        drives.replace(&services, Some(config("one")), Some(secrets(b"s1"))).unwrap();
        assert_eq!(read(root, "config/config.json"), "one");
        assert_eq!(read(root, "secrets/scope/KEY"), "s1");
        let file = fs::symlink_metadata(root.join("current/secrets/scope/KEY")).unwrap();
        assert!(file.is_file());
        assert_eq!((file.mode() & 0o777, file.uid()), (0o400, 0));

        drives.replace(&services, Some(config("two")), None).unwrap();
        assert_eq!(read(root, "config/config.json"), "two");
        assert_eq!(read(root, "secrets/scope/KEY"), "s1");
        drives.replace(&services, None, Some(BTreeMap::new())).unwrap();
        assert!(!root.join("current/secrets/scope").exists());
        assert_eq!(read(root, "config/config.json"), "two");
        assert_eq!(entries(root), 4, "current, v3, config.2, secrets.3");
    }

    #[test]
    fn a_tree_that_is_there_is_not_made_again_unless_someone_touched_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mut drives = Drives::below(root);
        let services = ServicesFile::default();
        let mut replace =
            |value: &[u8]| drives.replace(&services, Some(config("one")), Some(secrets(value))).unwrap();
        let inode = || fs::metadata(root.join("current/secrets/scope/KEY")).unwrap().ino();
        assert!(replace(b"s1"));
        let first = inode();
        assert!(!replace(b"s1"));
        assert_eq!(inode(), first);
        assert!(replace(b"s2"));
        assert_eq!(read(root, "secrets/scope/KEY"), "s2");

        // Longer than the granularity of times in a kernel.
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(root.join("current/secrets/scope/KEY"), "s3").unwrap();
        assert!(replace(b"s2"));
        assert_eq!(read(root, "secrets/scope/KEY"), "s2");
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(root.join("current/config/more"), "").unwrap();
        assert!(replace(b"s2"));
        assert!(!root.join("current/config/more").exists());
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::remove_file(root.join("current")).unwrap();
        assert!(replace(b"s2"));
        assert!(!replace(b"s2"));
        assert_eq!(read(root, "config/config.json"), "one");
    }

    #[test]
    fn an_update_that_fails_changes_nothing_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mut drives = Drives::below(root);
        let services = ServicesFile::default();
        drives.replace(&services, Some(config("one")), Some(secrets(b"s1"))).unwrap();
        let bad_name = BTreeMap::from([("../x".to_owned(), "y".to_owned())]);
        assert!(drives.replace(&services, Some(bad_name), None).is_err());
        let too_much = secrets(&vec![0; MAX_UPDATE]);
        assert!(drives.replace(&services, None, Some(too_much)).is_err());
        assert_eq!(read(root, "config/config.json"), "one");
        assert_eq!(read(root, "secrets/scope/KEY"), "s1");
        assert_eq!(entries(root), 4);
        drives.replace(&services, Some(config("two")), None).unwrap();
        assert_eq!(read(root, "config/config.json"), "two");
    }
}
