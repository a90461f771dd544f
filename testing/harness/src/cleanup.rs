//! What a lab leaves, removed: by itself, or by the next lab where its test was killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

const PREFIX: &str = "mvm-lab-";

/// A folder for a new lab: its name says whose it is. Short, because sockets lie in it.
pub(crate) fn new_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
    std::fs::create_dir_all(folder.join("data")).unwrap();
    folder
}

/// The lab's name: that of its folder.
pub(crate) fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The tag that an agent derives from its data folder.
pub(crate) fn tag_of(data_dir: &Path) -> String {
    let path = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    hex::encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..3])
}

/// VMMs that carry a tag.
pub(crate) fn vmms(tag: &str) -> Vec<u32> {
    let name = format!("mvm-{tag}-");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&command).contains(&name).then_some(pid)
    });
    pids.collect()
}

/// The name that a VMM was started with: `mvm-<tag>-<what>`. Empty where it has ended.
pub(crate) fn name_of_vmm(pid: u32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command);
    let name =
        command.split_once("guest=").map(|(_, rest)| rest.split([',', '\0']).next().unwrap_or_default());
    name.unwrap_or_default().to_owned()
}

/// Removes labs whose test is gone.
pub(crate) fn remove_abandoned() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let abandoned = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if abandoned {
            remove(&entry.path());
        }
    }
}

/// Ends and removes everything that belongs to a lab.
pub fn remove(folder: &Path) {
    let tag = tag_of(&folder.join("data"));
    end_agent(folder);
    for pid in vmms(&tag) {
        kill(pid);
    }
    let begun = Instant::now();
    while !vmms(&tag).is_empty() && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Those of the agent, the lab's own, and those that a test made beside it.
    let (tenants, beside) = (format!("mvm-{tag}-"), format!("{}-", name_of(folder)));
    for name in namespaces() {
        if name.starts_with(&tenants) || name.starts_with(&beside) || name == name_of(folder) {
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
    remove_cgroups(&tag);
    if std::fs::read_to_string("/proc/mounts")
        .unwrap_or_default()
        .contains(&format!("{}/data ", folder.display()))
    {
        let _ = Command::new("umount").arg("-l").arg(folder.join("data")).output();
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// An agent that a killed test left: known by its open lock.
fn end_agent(folder: &Path) {
    let mark = format!("MVM_DATA_DIR={}", folder.join("data").display());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if pid != std::process::id() && environment.split(|b| *b == 0).any(|word| word == mark.as_bytes()) {
            kill(pid);
        }
    }
}

pub(crate) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // It may end just now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Every named network namespace.
pub(crate) fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A VMM that was killed just now counts in its cgroups until PID 1 has looked at it.
pub(crate) fn remove_cgroups(tag: &str) {
    let begun = Instant::now();
    loop {
        let left = cgroups(tag);
        let busy = left.iter().filter(|folder| std::fs::remove_dir(folder).is_err()).count();
        if busy == 0 || begun.elapsed() > Duration::from_secs(20) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Cgroups of VMMs that carry a tag, in every hierarchy.
pub(crate) fn cgroups(tag: &str) -> Vec<PathBuf> {
    let name = format!("mvm-{tag}-");
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    for depth in 0..3 {
        let mut next = Vec::new();
        for entry in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(&name) {
                found.push(entry.path());
            } else if depth < 2 && entry.path().is_dir() {
                next.push(entry.path());
            }
        }
        folders = next;
    }
    found
}
