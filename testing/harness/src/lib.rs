//! Whole agents with real machines, for end-to-end tests.
//!
//! A [`Lab`] is one agent with folders and a network namespace of its own, so that tests run beside one another, and
//! beside whatever else this host does. It cleans up behind itself, also when a test fails; what a killed test
//! left is removed by the next lab. Whatever cannot be done panics: there is nobody here to handle an error.

#![allow(clippy::missing_panics_doc, clippy::unwrap_used, clippy::expect_used)]

mod build;
mod cleanup;
mod crash;
mod debian;
mod echo;
mod http;
mod namespace;
mod previous;
mod reboot;
mod search;
mod terminal;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use build::build_image;
pub use cleanup::remove as remove_lab;
pub use crash::{answered, assert_tidy, die_in, kill_at, stop_in};
pub use debian::{Debian, package};
pub use echo::{Echo, echo, echo_image, echo_with, now};
pub use http::{Connection, Response};
pub use mvm_kill_point::KillPoint;
pub use namespace::Namespace;
pub use previous::previous_mvm;
pub use search::{NOWHERE, forms, fresh, has_in_memory, holders};
pub use serde_json::{Value, json};
pub use terminal::Terminal;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// One agent, with everything that belongs to it.
#[derive(Debug)]
pub struct Lab {
    folder: PathBuf,
    run: PathBuf,
    mvm: PathBuf,
    namespace: Namespace,
    agent: Option<Child>,
    /// After a reboot, the boot that the agent is in.
    boot: Option<reboot::Boot>,
    boots: u32,
}

impl Lab {
    /// A lab with a running agent.
    pub fn new() -> Self {
        let mut lab = Self::without_agent();
        lab.start_agent();
        lab
    }

    /// A lab whose agent is not started yet.
    pub fn without_agent() -> Self {
        let mvm = build::mvm();
        cleanup::remove_abandoned();
        let folder = cleanup::new_folder();
        let run = folder.join("run");
        Self::in_folders(mvm, folder, run)
    }

    /// A lab of a binary that is there already, in folders of the caller's choice. The namespace is named after `folder`;
    /// `run` is short, because sockets lie in it. [`remove_lab`] removes what a lab leaves that is not dropped.
    pub fn in_folders(mvm: PathBuf, folder: PathBuf, run: PathBuf) -> Self {
        for made in [folder.join("data"), folder.join("files")] {
            std::fs::create_dir_all(made).unwrap();
        }
        let namespace = Namespace::new(&cleanup::name_of(&folder));
        namespace.run("ip", &["link", "set", "lo", "up"]);
        Self { folder, run, mvm, namespace, agent: None, boot: None, boots: 0 }
    }

    /// A lab whose data folder is a file system of its own, of so many MiB; its agent is not started yet.
    pub fn on_disk_of(mib: u64) -> Self {
        let lab = Self::without_agent();
        let disk = lab.file("disk.img", "");
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        File::options().write(true).open(&disk).unwrap().set_len(mib << 20).unwrap();
        namespace::run("mkfs.ext4", &["-q", "-m", "0", &path(&disk)]);
        namespace::run("mount", &["-o", "loop", &path(&disk), &path(&lab.data_dir())]);
        lab
    }

    /// Uses another `mvm` from now on; gives the one that was used.
    pub fn use_mvm(&mut self, mvm: PathBuf) -> PathBuf {
        std::mem::replace(&mut self.mvm, mvm)
    }

    /// Where the agent's lasting state is.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Where the agent's passing state is.
    pub fn run_dir(&self) -> PathBuf {
        self.run.clone()
    }

    /// What stands for the host: where the agent runs and publishes ports.
    pub fn host(&self) -> &Namespace {
        &self.namespace
    }

    /// What names of this agent's namespaces, links, tables and VMMs carry.
    pub fn tag(&self) -> String {
        cleanup::tag_of(&self.data_dir())
    }

    /// The command line of `mvm` here, to which a test adds arguments.
    pub fn command(&self) -> Command {
        let boot = self.boot.as_ref().map(reboot::Boot::flag);
        let mut command = self.namespace.command_with(boot.as_deref(), &self.mvm);
        command.envs(self.environment());
        command
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        let text = |path: PathBuf| path.display().to_string();
        [
            ("MVM_DATA_DIR", text(self.data_dir())),
            ("MVM_RUN_DIR", text(self.run_dir())),
            ("MVM_HOST", format!("unix:{}", text(self.socket()))),
            ("MVM_PACKAGE_CACHE", text(build::cache())),
        ]
    }

    /// The agent's address.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) {
        self.start_agent_with(&[]);
    }

    /// Starts the agent with more in its environment.
    pub fn start_agent_with(&mut self, environment: &[(&str, &str)]) {
        self.spawn_agent_with(environment);
        self.wait_for("the agent answers", || self.try_mvm(&["agent", "status"]).status.success());
    }

    /// Starts the agent, which may end before it ever answers.
    pub fn spawn_agent_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = self.command();
        command.args(["agent", "serve"]).envs(environment.iter().copied());
        self.spawn(command);
    }

    /// Has another program start the agent, when it thinks it should: by this command line, which ends where the agent's begins.
    pub fn leave_agent_to(&mut self, starter: &[&str]) {
        let (program, arguments) = starter.split_first().expect("a program");
        let mut command = self.namespace.command(program);
        command.args(arguments).arg(&self.mvm).args(["agent", "serve"]).envs(self.environment());
        self.spawn(command);
    }

    fn spawn(&mut self, mut command: Command) {
        assert!(self.agent.is_none(), "the lab's agent runs already");
        std::fs::create_dir_all(self.run_dir()).unwrap();
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.agent = Some(command.spawn().expect("the agent starts"));
    }

    /// Kills the agent as a crash would.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Kills the agent and starts it again with more in its environment.
    pub fn restart_agent_with(&mut self, environment: &[(&str, &str)]) {
        self.kill_agent();
        self.start_agent_with(environment);
    }

    /// Waits until the agent has been killed, by itself at a point that `MVM_KILL_AT` named.
    #[track_caller]
    pub fn wait_for_killed_agent(&mut self, point: &str) {
        use std::os::unix::process::ExitStatusExt;
        let mut agent = self.agent.take().expect("the agent runs");
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = agent.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                self.agent = Some(agent);
                panic!("the agent did not die at {point}; only a debug build does");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.signal(), Some(9), "the agent ended by itself: {status}");
    }

    /// Waits until nothing is being done to any machine.
    #[track_caller]
    pub fn settle(&self) {
        self.wait_for("nothing is in progress", || {
            let list = self.json(&["instance", "list"]);
            list.as_array().unwrap().iter().all(|instance| instance["act"].is_null())
        });
    }

    /// Names of the cgroups that this agent's machines have.
    pub fn cgroups(&self) -> std::collections::BTreeSet<String> {
        cleanup::cgroups(&self.tag())
            .iter()
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect()
    }

    /// The agent's process, while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Asks the agent to end, and waits for it.
    pub fn stop_agent(&mut self) {
        self.mvm(&["agent", "stop"]);
        let status = self.agent.take().expect("the agent runs").wait().unwrap();
        assert!(status.success(), "the agent ended with {status}");
    }

    /// The agent's log file.
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// Runs a command of `mvm`, whatever comes of it.
    pub fn try_mvm(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command of `mvm` that must succeed; what it printed.
    pub fn mvm(&self, arguments: &[&str]) -> String {
        let output = self.try_mvm(arguments);
        assert!(
            output.status.success(),
            "mvm {arguments:?} failed with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command of `mvm` that must fail with a status of 1 or 2; what it said.
    pub fn mvm_fails(&self, arguments: &[&str]) -> String {
        let output = self.try_mvm(arguments);
        let code = output.status.code();
        assert!(
            matches!(code, Some(1 | 2)),
            "mvm {arguments:?} should fail, but ended with {:?}",
            output.status
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts a command of `mvm` beside the test.
    pub fn mvm_beside(&self, arguments: &[&str]) -> Child {
        self.spawn_mvm(arguments, Stdio::null())
    }

    /// The same for one that reads what the test gives it.
    pub fn mvm_with_input(&self, arguments: &[&str]) -> Child {
        self.spawn_mvm(arguments, Stdio::piped())
    }

    fn spawn_mvm(&self, arguments: &[&str], input: Stdio) -> Child {
        let mut command = self.command();
        command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// What a command of `mvm` prints with `-o json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.mvm(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("mvm {arguments:?} printed no JSON ({error}): {text}"))
    }

    /// Writes a file for the test; its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join("files").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Deploys a manifest given as text.
    pub fn deploy(&self, manifest: &str) -> String {
        let path = self.file("deployment.toml", manifest);
        self.mvm(&["deploy", path.to_str().unwrap()])
    }

    /// Deploys a manifest that must be refused; what was said.
    pub fn deploy_fails(&self, manifest: &str) -> String {
        let path = self.file("deployment.toml", manifest);
        self.mvm_fails(&["deploy", path.to_str().unwrap()])
    }

    /// `instance info`.
    pub fn info(&self, instance: &str) -> Value {
        self.json(&["instance", "info", instance])
    }

    /// An instance's state.
    pub fn state(&self, instance: &str) -> String {
        self.info(instance)["state"].as_str().unwrap().to_owned()
    }

    /// The whole addresses of a pool's instances.
    pub fn instances(&self, pool: &str) -> Vec<String> {
        let (tenant, pool) = pool.split_once('/').expect("tenant/pool");
        let list = self.json(&["instance", "list"]);
        let of_pool = list.as_array().unwrap().iter().filter(|i| i["tenant"] == tenant && i["pool"] == pool);
        of_pool.map(|i| format!("{tenant}/{pool}/{}", i["id"].as_str().unwrap())).collect()
    }

    /// A tenant's audit entries of one kind.
    pub fn events(&self, tenant: &str, kind: &str) -> Vec<Value> {
        let all = self.json(&["events", tenant]);
        all.as_array().unwrap().iter().filter(|event| event["kind"] == kind).cloned().collect()
    }

    /// Runs a program in a machine; its standard output. It must exit 0.
    pub fn exec(&self, instance: &str, command: &[&str]) -> String {
        self.mvm(&[&["instance", "exec", instance, "--"], command].concat())
    }

    /// Has a machine serve HTTP by a Python program that ends with `serve(port, …)` of a class made from `Handler`. It listens
    /// when this returns, and goes on.
    pub fn serve(&self, instance: &str, program: &str) {
        let program = format!("{}{program}", include_str!("service.py"));
        self.exec(instance, &["python3", "-S", "-c", &program]);
    }

    /// Sends a GET to a published port.
    pub fn get(&self, port: u16, path: &str) -> Response {
        self.connect(port).get(path)
    }

    /// Sends a GET to a published port; nothing where the connection does not come to an answer.
    pub fn try_get(&self, port: u16, path: &str) -> Option<Response> {
        Connection::try_open(&self.namespace, port).ok()?.try_get(path).ok()
    }

    /// Connects to a published port.
    pub fn connect(&self, port: u16) -> Connection {
        Connection::open(&self.namespace, port)
    }

    /// VMMs of this agent.
    pub fn vmms(&self) -> Vec<u32> {
        cleanup::vmms(&self.tag())
    }

    /// VMMs of this agent that were started ahead and are nobody's yet.
    pub fn spares(&self) -> Vec<u32> {
        let waiting = self.run_dir().join("s");
        let mut spares = self.vmms();
        spares.retain(|pid| {
            let name = cleanup::name_of_vmm(*pid);
            name.rsplit('-')
                .next()
                .is_some_and(|short| short.starts_with("spare") && waiting.join(short).exists())
        });
        spares
    }

    /// Network namespaces of this agent's tenants.
    pub fn namespaces(&self) -> Vec<String> {
        let prefix = format!("mvm-{}-", self.tag());
        cleanup::namespaces().into_iter().filter(|name| name.starts_with(&prefix)).collect()
    }

    /// Waits until something holds; so long only on a host that is very busy.
    #[track_caller]
    pub fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            // It may have ended by itself.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- the agent's log ---\n{log}--- end of the agent's log ---");
        }
        cleanup::remove(&self.folder);
    }
}

/// Kills a process that belongs to a lab, as from outside.
pub fn kill(pid: u32) {
    cleanup::kill(pid);
}

/// Has a process that belongs to a lab stand still, so that it lives and does not answer.
pub fn freeze(pid: u32) {
    signal(pid, rustix::process::Signal::STOP);
}

/// Lets it go on.
pub fn thaw(pid: u32) {
    signal(pid, rustix::process::Signal::CONT);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// The checkout's root.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
