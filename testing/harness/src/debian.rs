//! A clean Debian in a folder: a host on which nothing is installed yet.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::{Namespace, build, checkout, cleanup, namespace};

const MIRROR: &str = "http://deb.debian.org/debian";
const SUITE: &str = "bookworm";
/// Where the checkout's package cache is in it.
const CACHE: &str = "/var/cache/mvm-packages";

/// The folder, with namespaces of its own for mounts, processes and, for what does not install, network. Gone when dropped.
#[derive(Debug)]
pub struct Debian {
    folder: PathBuf,
    network: Namespace,
    holder: Child,
    /// The first process in it, with which all others end.
    first: u32,
}

impl Debian {
    /// One that was made just now.
    pub fn new() -> Self {
        cleanup::remove_abandoned();
        let folder = cleanup::new_folder();
        let root = folder.join("root");
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        namespace::run("debootstrap", &["--variant=minbase", SUITE, &path(&root), MIRROR]);
        let _ = std::fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"));
        std::fs::create_dir_all(root.join(&CACHE[1..])).unwrap();
        let network = Namespace::new(&cleanup::name_of(&folder));
        network.run("ip", &["link", "set", "lo", "up"]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sleep", "infinity"]);
        let holder = command.stdin(Stdio::null()).spawn().unwrap();
        let first = first_child(holder.id());
        let debian = Self { folder, network, holder, first };
        let inside = |part: &str| path(&root.join(part));
        // What is a root has to be a mount.
        debian.enter(&["mount", "--bind", &path(&root), &path(&root)]);
        debian.enter(&["mount", "-t", "proc", "proc", &inside("proc")]);
        for (from, to) in [("/dev", "dev"), ("/sys", "sys")] {
            debian.enter(&["mount", "--rbind", from, &inside(to)]);
        }
        debian.enter(&["mount", "-t", "tmpfs", "tmpfs", &inside("run")]);
        debian.enter(&["mount", "--bind", &path(&build::cache()), &inside(&CACHE[1..])]);
        debian
    }

    /// Runs a program on it, with this host's network: to install something.
    pub fn with_network(&self, command: &[&str]) -> String {
        checked(command, self.command(None, command).output().unwrap())
    }

    /// Runs a program on it, with a network of its own.
    pub fn run(&self, command: &[&str]) -> String {
        checked(command, self.try_run(command))
    }

    /// Runs a program on it, whatever comes of it.
    pub fn try_run(&self, command: &[&str]) -> Output {
        self.command(Some(&self.network), command).output().unwrap()
    }

    /// Its network.
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// A file or folder on it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join("root").join(path.trim_start_matches('/'))
    }

    /// Whether anything but its first process runs on it.
    pub fn is_quiet(&self) -> bool {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.first.to_string());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().into_string().ok());
        let running =
            |pid: &String| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty());
        pids.filter(|pid| pid.parse::<u32>().is_ok() && namespace(pid) == own && running(pid)).count() <= 1
    }

    fn enter(&self, command: &[&str]) {
        let [mount, pid] = ["mount", "pid"].map(|kind| self.namespace(kind));
        namespace::run("nsenter", &[&[mount.as_str(), pid.as_str(), "--"], command].concat());
    }

    /// What `nsenter` is told to be in one of its namespaces.
    fn namespace(&self, kind: &str) -> String {
        let file = if kind == "mount" { "mnt" } else { kind };
        format!("--{kind}=/proc/{}/ns/{file}", self.first)
    }

    fn command(&self, network: Option<&Namespace>, command: &[&str]) -> Command {
        let mut entered = Command::new("nsenter");
        entered.args(["mount", "pid"].map(|kind| self.namespace(kind)));
        entered.args(network.map(|network| format!("--net=/run/netns/{}", network.name())));
        entered.args(["--", "chroot"]).arg(self.folder.join("root")).args(command);
        entered.env("MVM_PACKAGE_CACHE", CACHE).env("DEBIAN_FRONTEND", "noninteractive").env("HOME", "/root");
        entered.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        entered
    }
}

impl Default for Debian {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // Every process and every mount goes with it.
        cleanup::kill(self.first);
        let _ = self.holder.wait();
        cleanup::remove_cgroups(&cleanup::tag_of(Path::new("/var/lib/mvm")));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn first_child(parent: u32) -> u32 {
    let path = format!("/proc/{parent}/task/{parent}/children");
    loop {
        let children = std::fs::read_to_string(&path).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn checked(command: &[&str], output: Output) -> String {
    let said = [output.stdout.as_slice(), b"\n", &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    String::from_utf8(output.stdout).unwrap()
}

/// Builds the Debian package, of the binary that other tests use, too; its file.
pub fn package() -> PathBuf {
    let mut package = Command::new(checkout().join("scripts/package"));
    let output = package.arg("-y").env("PROFILE", "dev").output().unwrap();
    let path = checked(&["scripts/package"], output);
    checkout().join(path.trim())
}
