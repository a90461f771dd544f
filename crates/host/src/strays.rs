//! What an earlier agent left that nobody owns: VMMs whose launch was never recorded, files of instances that were never
//! committed, files of bases and revisions that were forgotten, networks of tenants that are gone.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use mvm_model::{InstanceId, NetId};
use mvm_vmm::{ProcessIdentity, kill_process, recorded_process};

use crate::HostError;
use crate::host::{Host, Inner, remove_folder};

impl Host {
    pub(crate) async fn end_strays(
        &self,
        instances: Vec<(InstanceId, Option<ProcessIdentity>)>,
        restores: Vec<InstanceId>,
        networks: Vec<NetId>,
        bases: Vec<String>,
        revisions: Vec<String>,
    ) -> Result<(), HostError> {
        let known: HashSet<ProcessIdentity> =
            instances.iter().filter_map(|(_, process)| process.clone()).collect();
        let found: HashSet<ProcessIdentity> = self.vmms()?.into_iter().chain(self.recorded()?).collect();
        for process in found.difference(&known) {
            tracing::warn!(pid = process.pid, "ending a VMM that no instance has");
            kill_process(process).await?;
        }
        // What runs may have been a spare: before it is taken up, nothing may be started in its name.
        let running: Vec<InstanceId> =
            instances.iter().filter(|(_, process)| process.is_some()).map(|(id, _)| *id).collect();
        let ids: BTreeSet<String> = instances.iter().map(|(id, _)| id.to_string()).collect();
        self.blocking(move |inner| {
            for folder in [inner.paths.instances(), inner.paths.runs()] {
                remove_unknown(&folder, &ids)?;
            }
            remove_unknown(&inner.paths.bases(), &bases.into_iter().collect())?;
            let restores = restores.into_iter().map(|id| id.to_string()).collect();
            remove_unknown(&inner.paths.restores(), &restores)?;
            inner.keep_only_revisions(&revisions);
            let mut named = BTreeSet::new();
            for id in running {
                match inner.launched(id) {
                    Ok(launched) => {
                        inner.reserve(id, launched.spec.uid);
                        named.insert(launched.spec.name);
                    }
                    Err(error) => tracing::warn!(instance = %id, %error, "its launch is not known"),
                }
            }
            for name in mvm_vmm::cgroup::named(&format!("mvm-{}-", inner.tag.as_str()))? {
                // Those of other instances' VMMs, which have ended, go as well.
                if !named.contains(&name) {
                    mvm_vmm::remove_cgroup(&name)?;
                }
            }
            remove_unknown(&inner.paths.nameless(), &BTreeSet::new())?;
            for left in inner.networks.list()? {
                if !networks.contains(&left.net_id) {
                    tracing::warn!(net_id = %left.net_id, "removing a network that no tenant has");
                    inner.networks.remove(left.net_id)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Processes that run folders name: a VMM to be may not carry anything of this agent's yet.
    fn recorded(&self) -> Result<Vec<ProcessIdentity>, HostError> {
        let mut folders = Vec::new();
        for runs in [self.paths().runs(), self.paths().nameless()] {
            folders.extend(std::fs::read_dir(&runs).map_err(HostError::at(&runs))?.flatten());
        }
        let processes = folders.into_iter().filter_map(|folder| match recorded_process(&folder.path()) {
            Ok(process) => process,
            Err(error) => {
                tracing::warn!(%error, folder = %folder.path().display(), "its VMM is not known");
                None
            }
        });
        Ok(processes.collect())
    }

    /// Processes with a uid of this agent's range that carry its tag: VMMs of its own, recorded or not.
    fn vmms(&self) -> Result<Vec<ProcessIdentity>, HostError> {
        let uids = self.inner.all_uids();
        let name = format!("mvm-{}-", self.inner.tag.as_str());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").map_err(HostError::at("/proc"))?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
                continue;
            };
            // A process may end while it is looked at.
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let ours = uid_of(&status).is_some_and(|uid| uids.contains(&uid))
                && command.split(|byte| *byte == 0).any(|word| String::from_utf8_lossy(word).contains(&name));
            if ours && let Ok(process) = ProcessIdentity::of(pid) {
                found.push(process);
            }
        }
        Ok(found)
    }
}

impl Inner {
    /// Removes the others. Where that fails only room is lost, and the next agent tries it again.
    fn keep_only_revisions(&self, revisions: &[String]) {
        let kept = revisions.iter().filter_map(|revision| revision.parse().ok()).collect();
        match self.images.keep_only(&kept) {
            Ok(removed) => removed.iter().for_each(|revision| {
                tracing::warn!(%revision, "removing a revision of an image that nothing refers to");
            }),
            Err(error) => tracing::warn!(%error, "revisions that nothing refers to are not removed"),
        }
    }
}

fn uid_of(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn remove_unknown(folder: &Path, known: &BTreeSet<String>) -> Result<(), HostError> {
    for entry in std::fs::read_dir(folder).map_err(HostError::at(folder))?.flatten() {
        let unknown = entry.file_name().to_str().is_some_and(|name| !known.contains(name));
        if unknown {
            tracing::warn!(path = %entry.path().display(), "removing files that nothing refers to");
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), HostError> {
    if path.is_dir() { remove_folder(path) } else { std::fs::remove_file(path).map_err(HostError::at(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_uid_is_the_first_of_four() {
        assert_eq!(uid_of("Name:\tx\nUid:\t7\t8\t9\t10\n"), Some(7));
        assert_eq!(uid_of("Name:\tx\n"), None);
    }
}
