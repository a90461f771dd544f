//! The real gateway beside the guest, with fakes of the services outside, and the host that it asks to keep a machine
//! running.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mvm_fakes::{BotApi, ModelApi};
use mvm_harness::{Namespace, fresh};
use mvm_protocol::control::{HostReply, HostRequest};
use mvm_protocol::openclaw::{WORKER_PORT, worker_token};
use serde_json::json;

use super::outside::GATEWAY;

const LIMIT: Duration = Duration::from_secs(120);
/// Whose assistant it is, to Telegram.
const ALICE: i64 = 777;

pub(super) struct Gateway {
    process: Child,
    folder: tempfile::TempDir,
    token: String,
    host: Arc<Host>,
    asked: Receiver<()>,
    pub(super) bot: BotApi,
    pub(super) model: ModelApi,
    namespace: Namespace,
}

/// Answers a gateway's holds.
struct Host {
    /// Held while the machine is asleep; whoever asks meanwhile waits.
    awake: Mutex<()>,
    asks: SyncSender<()>,
}

impl Gateway {
    pub(super) fn start() -> Self {
        let namespace = Namespace::new(&format!("mvm-{}", &fresh()[..8]));
        namespace.run("ip", &["link", "set", "lo", "up"]);
        let listen = |port: u16| namespace.inside(|| TcpListener::bind(("127.0.0.3", port)).unwrap());
        let (bot_token, model_key, token) = (format!("1:{}", fresh()), fresh(), fresh());
        let bot = BotApi::start(listen(8081), &bot_token).unwrap();
        let model = ModelApi::start(listen(8082), &model_key).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let worker = json!({ "pool_id": "workers", "instance_id": "i-0000002a", "ip": "127.0.0.1" });
        let user = json!({ "user": "alice", "worker": worker, "telegram": ALICE });
        let endpoints = json!({ "telegram": bot.url(), "anthropic": model.url() });
        let config = json!({ "openclaw": { "gateway": { "endpoints": endpoints, "users": [user] } } });
        fs::write(path("config.json"), config.to_string()).unwrap();
        fs::write(path("routes.json"), r#"{"routes":[]}"#).unwrap();
        let secrets = [
            ("openclaw/OPENCLAW_TOKEN_KEY", &token),
            ("telegram/TELEGRAM_BOT_TOKEN", &bot_token),
            ("anthropic/ANTHROPIC_API_KEY", &model_key),
        ];
        for (name, value) in secrets {
            let file = path("secrets").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, value).unwrap();
        }
        fs::create_dir(path("data")).unwrap();
        fs::write(path("mvm-guest"), mvm_image::guest::binary()).unwrap();
        fs::set_permissions(path("mvm-guest"), fs::Permissions::from_mode(0o755)).unwrap();

        let (asks, asked) = sync_channel(1000);
        let host = Arc::new(Host { awake: Mutex::new(()), asks });
        let listener = UnixListener::bind(path("host.sock")).unwrap();
        let serving = Arc::clone(&host);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let host = Arc::clone(&serving);
                std::thread::spawn(move || host.serve(stream));
            }
        });
        let process = namespace
            .command(path("mvm-guest"))
            .arg("gateway")
            .env("MVM_GATEWAY_ROUTES", path("routes.json"))
            .env("MVM_GATEWAY_HOST_SOCKET", path("host.sock"))
            .env("MVM_GATEWAY_READY", path("ready"))
            .env("MVM_GATEWAY_CONFIG", path("config.json"))
            .env("MVM_GATEWAY_SECRETS", path("secrets"))
            .env("MVM_GATEWAY_DATA", path("data"))
            .env("MVM_TRUSTED_PROXY", "127.0.0.9")
            .spawn()
            .unwrap();
        Self { process, folder, token, host, asked, bot, model, namespace }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The worker's.
    pub(super) fn worker_token(&self) -> String {
        worker_token(self.token.as_bytes(), "i-0000002a".parse().unwrap())
    }

    /// Says something to the assistant, whose model answers so.
    pub(super) fn say(&self, text: &str, answer: &str) {
        self.model.set_answer(answer);
        self.bot.push_message(ALICE, text);
    }

    #[track_caller]
    pub(super) fn wait_for_answer(&self, text: &str) {
        let waited = self.bot.wait_for(
            |calls| calls.iter().any(|call| call.method == "sendMessage" && call.text() == text),
            LIMIT,
        );
        if let Err(calls) = waited {
            let calls: Vec<_> = calls.iter().map(|call| (&call.method, &call.params)).collect();
            panic!("{text:?} was not said: {calls:?}; mistakes: {:?}", self.bot.mistakes());
        }
    }

    /// Lets whoever asks for the machine wait while `act` runs, which begins when somebody asks.
    pub(super) fn asleep_until_asked(&self, before: impl FnOnce(), act: impl FnOnce()) {
        let _asleep = self.host.awake.lock().unwrap();
        while self.asked.try_recv().is_ok() {}
        before();
        self.asked.recv_timeout(LIMIT).expect("nobody asked for the machine");
        act();
    }

    /// Gives it another key for the model, which is the only one that is taken from now on. Returns when it uses that.
    pub(super) fn rotate_model_key(&self) -> String {
        let key = fresh();
        fs::write(self.folder.path().join("secrets/anthropic/ANTHROPIC_API_KEY"), &key).unwrap();
        self.model.set_key(&key);
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let deadline = Instant::now() + LIMIT;
        while !self.lists_models().is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(Instant::now() < deadline, "the gateway does not use the new key");
            std::thread::sleep(Duration::from_millis(50));
        }
        key
    }

    /// What the gateway answers to the worker's question which models there are.
    fn lists_models(&self) -> Option<String> {
        let connect = || TcpStream::connect((GATEWAY, WORKER_PORT));
        let mut stream = self.namespace.inside(connect).ok()?;
        let token = self.worker_token();
        let request = format!(
            "GET /anthropic/v1/models HTTP/1.1\r\nHost: gateway\r\nx-api-key: {token}\r\n\
             anthropic-version: 2023-06-01\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Host {
    fn serve(&self, mut stream: UnixStream) {
        while let Some(request) = read_frame(&mut stream) {
            match serde_json::from_slice(&request).unwrap() {
                HostRequest::Hold { .. } => {
                    let _ = self.asks.send(());
                    drop(self.awake.lock().unwrap());
                    let reply = HostReply::Held {
                        instance_id: "i-0000002a".parse().unwrap(),
                        guest_ip: [127, 0, 0, 1].into(),
                        generation: Some(1),
                    };
                    let text = serde_json::to_vec(&reply).unwrap();
                    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
                    if stream.write_all(&[length.as_slice(), &text].concat()).is_err() {
                        return;
                    }
                }
                HostRequest::Keep { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

fn read_frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut text = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut text).ok()?;
    Some(text)
}
