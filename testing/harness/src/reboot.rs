//! A host that is switched off and on again, as far as an agent can tell.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{Lab, Namespace, cleanup, namespace};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A boot of the host other than the real one: a mount namespace in which the kernel names another. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Holds the namespace.
    holder: Child,
}

impl Boot {
    fn new(id_file: &Path) -> Self {
        let mut command = Command::new("unshare");
        // What the agent mounts is seen outside, as always.
        command.args(["--mount", "--propagation", "unchanged", "--", "sleep", "infinity"]);
        let boot = Self { holder: command.stdin(Stdio::null()).spawn().unwrap() };
        let own = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        while own(&boot.holder.id().to_string()) == own("self") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        boot.run(&["mount", "--make-rprivate", "/proc"]);
        boot.run(&["mount", "--bind", id_file.to_str().unwrap(), BOOT_ID]);
        boot
    }

    /// What `nsenter` is told to be in it.
    pub(crate) fn flag(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.holder.id())
    }

    fn run(&self, command: &[&str]) {
        namespace::run("nsenter", &[&[self.flag().as_str(), "--"], command].concat());
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Lab {
    /// Takes away what a reboot of the host takes: every process, namespace, link, cgroup and loop device, the run folder.
    /// An agent that is started then is in another boot.
    pub fn reboot(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
        }
        let tag = self.tag();
        for pid in cleanup::vmms(&tag) {
            cleanup::kill(pid);
        }
        self.wait_for("every VMM has ended", || cleanup::vmms(&tag).is_empty());
        for tenant in self.namespaces() {
            namespace::run("ip", &["netns", "delete", &tenant]);
        }
        cleanup::remove_cgroups(&tag);
        std::fs::remove_dir_all(self.run_dir()).unwrap();
        self.wait_for("no loop device is left", || !is_on_loop_device(&self.data_dir()));
        // The host's own network begins empty, too.
        let name = self.namespace.name().to_owned();
        namespace::run("ip", &["netns", "delete", &name]);
        self.namespace.replace(Namespace::new(&name));
        self.namespace.run("ip", &["link", "set", "lo", "up"]);
        self.boots += 1;
        let id = format!("00000000-0000-4000-8000-{:012}\n", self.boots);
        self.boot = Some(Boot::new(&self.file("boot_id", &id)));
    }
}

/// Whether something below a folder is behind a loop device.
fn is_on_loop_device(folder: &Path) -> bool {
    let output = Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap().lines().any(|file| Path::new(file).starts_with(folder))
}
