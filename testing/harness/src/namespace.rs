//! Network namespaces of a test.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// A network namespace; gone when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new, empty one.
    pub fn new(name: &str) -> Self {
        run("ip", &["netns", "add", name]);
        Self { name: name.to_owned() }
    }

    /// The names of all that begin with this.
    pub fn all_with(prefix: &str) -> Vec<String> {
        let mut names = crate::cleanup::namespaces();
        names.retain(|name| name.starts_with(prefix));
        names
    }

    /// Joins it with another by a pair of links: the name and the address of each end.
    pub fn join(&self, (link, address): (&str, &str), other: &Namespace, (peer, peer_address): (&str, &str)) {
        self.run("ip", &["link", "add", link, "type", "veth", "peer", "name", peer, "netns", &other.name]);
        for (namespace, link, address) in [(self, link, address), (other, peer, peer_address)] {
            namespace.run("ip", &["addr", "add", address, "dev", link]);
            namespace.run("ip", &["link", "set", link, "up"]);
        }
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A program that is to run in it. Not by `ip netns exec`: that gives a mount namespace too, and what the agent
    /// mounts there would go with it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_with(None, program)
    }

    /// The same, in one more namespace, as `nsenter` takes it.
    pub(crate) fn command_with(&self, other: Option<&str>, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).args(other).arg("--").arg(program);
        command
    }

    /// Becomes another of the same name. The earlier one is gone already.
    pub(crate) fn replace(&mut self, other: Namespace) {
        std::mem::forget(std::mem::replace(self, other));
    }

    /// Runs a program in it that must succeed; what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?} in {}: {error}", self.name);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Does something on a thread inside it: sockets made there stay there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
