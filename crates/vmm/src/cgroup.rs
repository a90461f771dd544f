//! Limits on a VMM by cgroups, version 1 or 2; a controller that the host lacks is left out and reported.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};

/// The folder in each hierarchy under which the machines' groups are.
const PARENT: &str = "mvm";
/// Microseconds over which the processor quota counts.
const PERIOD: u64 = 100_000;

/// What a VMM may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, page cache included.
    pub memory_bytes: u64,
    /// Threads.
    pub threads: u32,
    /// Whole processors.
    pub processors: u32,
}

/// A machine's groups, one in each hierarchy, or one in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
    missing: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }

    /// The file that sets the limit, and what is written to it.
    fn settings(self, version: Version, limits: Limits) -> Vec<(&'static str, String)> {
        let quota = u64::from(limits.processors) * PERIOD;
        match (self, version) {
            (Self::Memory, Version::One) => vec![("memory.limit_in_bytes", limits.memory_bytes.to_string())],
            (Self::Memory, Version::Two) => vec![("memory.max", limits.memory_bytes.to_string())],
            (Self::Pids, _) => vec![("pids.max", limits.threads.to_string())],
            (Self::Cpu, Version::One) => {
                vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
            }
            (Self::Cpu, Version::Two) => vec![("cpu.max", format!("{quota} {PERIOD}"))],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where a controller can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
}

impl Cgroup {
    /// Makes the groups of the machine `name` with these limits.
    ///
    /// # Errors
    /// If a hierarchy that has the controller refuses the group or the limit.
    pub fn create(name: &str, limits: Limits) -> Result<Self> {
        let hierarchies = hierarchies()?;
        let mut group = Self::default();
        for controller in CONTROLLERS {
            let Some(hierarchy) = find(controller, &hierarchies) else {
                group.missing.push(controller.name().to_owned());
                continue;
            };
            let folder = hierarchy.mount.join(PARENT).join(name);
            // Recorded first, so that what was made is also removed when the next step fails.
            if !group.folders.contains(&folder) {
                group.folders.push(folder.clone());
            }
            if let Err(error) = set_up(controller, hierarchy, &folder, limits) {
                group.remove();
                return Err(error).doing(|| format!("limit {} in {}", controller.name(), folder.display()));
            }
        }
        Ok(group)
    }

    /// The groups that a machine of this name may have, whoever made them.
    ///
    /// # Errors
    /// If the mounts cannot be listed.
    pub fn existing(name: &str) -> Result<Self> {
        let folders = hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount.join(PARENT).join(name));
        Ok(Self { folders: folders.filter(|folder| folder.is_dir()).collect(), missing: Vec::new() })
    }

    /// Puts a process in.
    ///
    /// # Errors
    /// If it has ended.
    pub fn join(&self, pid: u32) -> Result<()> {
        self.folders.iter().try_for_each(|folder| {
            fs::write(folder.join("cgroup.procs"), pid.to_string())
                .doing(|| format!("put process {pid} into the cgroup {}", folder.display()))
        })
    }

    /// The groups' folders.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The controllers that this host lacks.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Removes the groups, which must have no process any more, and the parent folders that became empty.
    pub fn remove(&self) {
        for folder in &self.folders {
            match remove_patiently(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, folder = %folder.display(), "a cgroup stays");
                }
                _ => {
                    // Not empty while other machines run.
                    let _ = folder.parent().map(fs::remove_dir);
                }
            }
        }
    }
}

/// Removes the cgroup of a VMM that has ended.
///
/// # Errors
/// If this host's hierarchies cannot be examined.
pub fn remove_cgroup(name: &str) -> Result<()> {
    Cgroup::existing(name).map(|cgroup| cgroup.remove())
}

/// The names of the machines' groups that begin so, whoever made them.
///
/// # Errors
/// If the mounts cannot be listed.
pub fn named(prefix: &str) -> Result<BTreeSet<String>> {
    let parents = hierarchies()?.into_iter().map(|found| found.hierarchy.mount.join(PARENT));
    let groups = parents.filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten();
    let names = groups.filter(|group| group.path().is_dir()).filter_map(|g| g.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(prefix)).collect())
}

/// A process that has ended counts until its parent has looked at it: where the agent that started it is gone, that is
/// PID 1, which may take seconds.
fn remove_patiently(folder: &Path) -> io::Result<()> {
    for _ in 0..1000 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    fs::remove_dir(folder)
}

fn set_up(controller: Controller, hierarchy: &Hierarchy, folder: &Path, limits: Limits) -> io::Result<()> {
    // Twice, as another machine's end may remove the empty parent in between.
    if let Err(error) = make(controller, hierarchy, folder) {
        tracing::debug!(%error, "making the cgroup again");
        make(controller, hierarchy, folder)?;
    }
    for (file, value) in controller.settings(hierarchy.version, limits) {
        fs::write(folder.join(file), value)?;
    }
    Ok(())
}

fn make(controller: Controller, hierarchy: &Hierarchy, folder: &Path) -> io::Result<()> {
    let parent = hierarchy.mount.join(PARENT);
    fs::create_dir_all(&parent)?;
    if hierarchy.version == Version::Two {
        for above in [&hierarchy.mount, &parent] {
            fs::write(above.join("cgroup.subtree_control"), format!("+{}", controller.name()))?;
        }
    }
    fs::create_dir_all(folder)
}

fn find(controller: Controller, hierarchies: &[Found]) -> Option<&Hierarchy> {
    let has = |found: &&Found| found.controllers.iter().any(|name| name == controller.name());
    hierarchies.iter().find(has).map(|found| &found.hierarchy)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    hierarchy: Hierarchy,
    controllers: Vec<String>,
}

impl std::ops::Deref for Found {
    type Target = Hierarchy;
    fn deref(&self) -> &Hierarchy {
        &self.hierarchy
    }
}

/// The mounted hierarchies with the controllers of each.
fn hierarchies() -> Result<Vec<Found>> {
    let path = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(path).doing(|| format!("read {path}"))?;
    Ok(parse_mounts(&mounts, |mount| {
        fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
    }))
}

/// Reads proc_pid_mountinfo(5); version 2 tells its controllers in a file instead of the mount options.
fn parse_mounts(mounts: &str, version_two: impl Fn(&Path) -> String) -> Vec<Found> {
    let words = |text: &str, at: char| text.split(at).map(str::to_owned).collect::<Vec<_>>();
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut after = after.split(' ');
        let (version, controllers) = match after.next() {
            Some("cgroup") => (Version::One, words(after.nth(1).unwrap_or_default(), ',')),
            Some("cgroup2") => (Version::Two, words(version_two(&mount).trim(), ' ')),
            _ => continue,
        };
        found.push(Found { hierarchy: Hierarchy { version, mount }, controllers });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
25 1 8:1 / / rw,relatime - ext4 /dev/vda1 rw
30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn each_controller_is_found_in_its_version() {
        let found = parse_mounts(MIXED, |mount| {
            assert_eq!(mount, Path::new("/sys/fs/cgroup/unified"));
            "pids io\n".into()
        });
        let at = |controller| find(controller, &found).map(|h| (h.version, h.mount.to_str().unwrap()));
        assert_eq!(at(Controller::Memory), Some((Version::One, "/sys/fs/cgroup/memory")));
        assert_eq!(at(Controller::Cpu), Some((Version::One, "/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(at(Controller::Pids), Some((Version::Two, "/sys/fs/cgroup/unified")));
        assert_eq!(find(Controller::Pids, &parse_mounts(MIXED, |_| String::new())), None);
    }
}
