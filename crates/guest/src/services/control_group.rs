//! Processes with all that descend from them, whatever session or process group these make for themselves.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing as _, Failure, Result};

/// Where the kernel's tree of groups is seen; /sys/fs/cgroup is left to the image's programs.
const TREE: &str = "/run/mvm/cgroup";
/// How long processes that were killed may take to end.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// A group of processes. Dropped, all of them are killed.
#[derive(Debug)]
pub struct ControlGroup {
    folder: PathBuf,
}

impl ControlGroup {
    /// Makes the group of this name. In one that was dropped and made again, the last may still be ending.
    ///
    /// # Errors
    /// The kernel has no such groups.
    pub fn create(name: &str) -> Result<Self> {
        if !Path::new(TREE).join("cgroup.procs").exists() {
            fs::create_dir_all(TREE).doing(format_args!("making {TREE}"))?;
            let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("cgroup2", TREE, "cgroup2", safe, c"").doing(format_args!("mounting {TREE}"))?;
        }
        let folder = Path::new(TREE).join(name);
        fs::create_dir_all(&folder).doing(format_args!("making {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Has a program begin in this group.
    ///
    /// # Errors
    /// The group is gone.
    pub fn take_in(&self, program: &mut Command) -> Result<()> {
        let path = self.folder.join("cgroup.procs");
        let members =
            File::options().write(true).open(&path).doing(format_args!("opening {}", path.display()))?;
        // "0" is the process that writes it.
        crate::sys::write_before_exec(program, members, b"0");
        Ok(())
    }

    /// The processes in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn members(&self) -> Result<Vec<Pid>> {
        let path = self.folder.join("cgroup.procs");
        let list = fs::read_to_string(&path).doing(format_args!("reading {}", path.display()))?;
        Ok(list.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).collect())
    }

    /// Sends a signal to every process in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        for pid in self.members()? {
            // It can only fail because this one has ended.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    fn kill(&self) -> std::io::Result<()> {
        fs::write(self.folder.join("cgroup.kill"), "1")
    }

    /// Kills every process in it and returns when they are gone.
    ///
    /// # Errors
    /// The kernel's, or one is still there.
    pub async fn end(self) -> Result<()> {
        let ending = format!("ending all processes in {}", self.folder.display());
        self.kill().doing(&ending)?;
        let deadline = Instant::now() + LAST_BREATH;
        loop {
            match fs::remove_dir(&self.folder) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    return Err(Failure::new(ending, "one of them does not end"));
                }
                removed => return removed.doing(ending),
            }
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Mostly it was ended and is gone.
        let _ = self.kill();
        let _ = fs::remove_dir(&self.folder);
    }
}
