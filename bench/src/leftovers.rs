//! What a run makes on the host, and how it goes: at the end, when it is interrupted, or with the next run where it was
//! killed. Everything carries the run's name, and only what carries it is touched.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Result;

const PREFIX: &str = "mvm-bench-";

/// Held by whoever removes everything, so that nothing new is started meanwhile.
static STARTING: Mutex<()> = Mutex::new(());

/// The name of a process's run.
pub fn name_of(pid: u32) -> String {
    format!("{PREFIX}{pid}")
}

/// Starts a process, unless everything is being removed.
pub fn spawning<T>(spawn: impl FnOnce() -> io::Result<T>) -> Result<T> {
    let _starting = lock();
    Ok(spawn()?)
}

fn lock() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where runs keep what they need: lasting files on the disk that holds the checkout, sockets where paths are short.
fn parents() -> [PathBuf; 2] {
    [mvm_harness::checkout().join("target/bench"), std::env::temp_dir()]
}

/// The folders of this run, which are made.
pub fn folders() -> Result<[PathBuf; 2]> {
    let folders = parents().map(|parent| parent.join(name_of(std::process::id())));
    folders.iter().try_for_each(std::fs::create_dir_all)?;
    let [folder, run] = folders;
    Ok([folder.canonicalize()?, run])
}

/// Removes everything of this run, for good: nothing can be started afterwards.
pub fn remove_own() {
    let removing = lock();
    remove(&name_of(std::process::id()));
    std::mem::forget(removing);
}

/// Removes runs whose process is gone.
pub fn remove_abandoned() {
    for entry in parents().iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix(PREFIX).filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    let folders = parents().map(|parent| parent.join(name));
    end_raw_machines(name);
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    for entry in entries.filter(|entry| entry.path().join("data").is_dir()) {
        mvm_harness::remove_lab(&entry.path());
    }
    for folder in &folders {
        detach_loops(folder);
        let _ = std::fs::remove_dir_all(folder);
    }
}

fn end_raw_machines(name: &str) {
    let mark = format!("guest={name}-");
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).any(|word| word.starts_with(mark.as_bytes())) {
            mvm_harness::kill(pid);
        }
    }
}

/// Loop devices over files of a folder.
fn detach_loops(folder: &Path) {
    let Ok(folder) = folder.canonicalize() else { return };
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let behind = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(behind.trim_end()).starts_with(&folder) {
            let device = Path::new("/dev").join(entry.file_name());
            let _ = Command::new("losetup").arg("--detach").arg(device).output();
        }
    }
}
