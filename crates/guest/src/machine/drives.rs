//! Config and secrets: two folders in memory, switched together by one link.
//!
//! `current` leads to `v<n>`, whose two entries lead to the `config.<n>` and `secrets.<n>` that belong together. A new
//! tree is complete before the link is moved, and what it does not need any more is removed after.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, fchown, symlink};
use std::path::{Path, PathBuf};

use mvm_model::service::ServicesFile;
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
    config: Part,
    secrets: Part,
}

#[derive(Debug, Clone, Default)]
struct Part {
    folder: Option<String>,
    bytes: usize,
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
        }
    }

    /// Replaces one or both as a whole.
    pub(super) fn replace(
        &mut self,
        services: &ServicesFile,
        config: Option<&ConfigFiles>,
        secrets: Option<&SecretFiles>,
    ) -> Result<()> {
        let config_bytes = config.map_or(self.config.bytes, config_size);
        let secrets_bytes = secrets.map_or(self.secrets.bytes, secrets_size);
        if config_bytes + secrets_bytes > MAX_UPDATE {
            let reason =
                format!("they are {} bytes together, and may be {MAX_UPDATE}", config_bytes + secrets_bytes);
            return Err(Failure::new("updating config and secrets", reason));
        }
        self.version += 1;
        let written = self.write(services, config, secrets);
        match &written {
            Ok((config, secrets)) => {
                self.config = Part { folder: config.clone(), bytes: config_bytes };
                self.secrets = Part { folder: secrets.clone(), bytes: secrets_bytes };
            }
            // What was begun is removed again; the link still leads to what was there.
            Err(_) => self.version -= 1,
        }
        self.remove_unused();
        written.map(drop)
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
    use mvm_protocol::SecretBytes;
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt as _;

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
        drives.replace(&services, Some(&config("one")), Some(&secrets(b"s1"))).unwrap();
        assert_eq!(read(root, "config/config.json"), "one");
        assert_eq!(read(root, "secrets/scope/KEY"), "s1");
        let file = fs::symlink_metadata(root.join("current/secrets/scope/KEY")).unwrap();
        assert!(file.is_file());
        assert_eq!((file.mode() & 0o777, file.uid()), (0o400, 0));

        drives.replace(&services, Some(&config("two")), None).unwrap();
        assert_eq!(read(root, "config/config.json"), "two");
        assert_eq!(read(root, "secrets/scope/KEY"), "s1");
        drives.replace(&services, None, Some(&BTreeMap::new())).unwrap();
        assert!(!root.join("current/secrets/scope").exists());
        assert_eq!(read(root, "config/config.json"), "two");
        assert_eq!(entries(root), 4, "current, v3, config.2, secrets.3");
    }

    #[test]
    fn an_update_that_fails_changes_nothing_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mut drives = Drives::below(root);
        let services = ServicesFile::default();
        drives.replace(&services, Some(&config("one")), Some(&secrets(b"s1"))).unwrap();
        let bad_name = BTreeMap::from([("../x".to_owned(), "y".to_owned())]);
        assert!(drives.replace(&services, Some(&bad_name), None).is_err());
        let too_much = secrets(&vec![0; MAX_UPDATE]);
        assert!(drives.replace(&services, None, Some(&too_much)).is_err());
        assert_eq!(read(root, "config/config.json"), "one");
        assert_eq!(read(root, "secrets/scope/KEY"), "s1");
        assert_eq!(entries(root), 4);
        drives.replace(&services, Some(&config("two")), None).unwrap();
        assert_eq!(read(root, "config/config.json"), "two");
    }
}
