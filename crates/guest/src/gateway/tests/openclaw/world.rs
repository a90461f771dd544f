//! A gateway in a runtime of its own, which can be killed, and all that is around it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use mvm_fakes::{BotApi, ModelApi};
use mvm_model::{InstanceId, InstanceSelector};
use mvm_protocol::control::{HostReply, HostRequest};
use mvm_protocol::openclaw::{WORKER_PORT, worker_bot_token, worker_token};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::super::super::openclaw::Pace;
use super::super::super::{AccessLog, Config, Gateway};
use super::super::harness::{Answering, Host, Message, Peer, config, limits, own_address};
use super::worker::Worker;

pub(super) const ALICE: i64 = 777;
pub(super) const BOB: i64 = 888;
/// Carol is who opens her link; a link of hers.
pub(super) const CAROL: i64 = 999;
pub(super) const CODE: &str = "carols-code";
pub(super) const TOKEN: &str = "12345:AAtest";
pub(super) const KEY: &str = "sk-ant-real";
const TOKEN_KEY: &[u8] = b"token key\n";

pub(super) struct World {
    pub(super) bot: BotApi,
    pub(super) model: ModelApi,
    pub(super) alice: Worker,
    pub(super) bob: Worker,
    pub(super) carol: Worker,
    pub(super) host: Host,
    /// Whether machines wake. Where not, a Hold is not answered.
    pub(super) wake: Arc<AtomicBool>,
    pub(super) config: Config,
    pub(super) block: Value,
    pub(super) folder: TempDir,
    gateway: Option<(Runtime, Gateway)>,
    around: Runtime,
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn loopback() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

impl World {
    /// Everybody is there, and the gateway runs.
    pub(super) fn new() -> World {
        let mut world = World::asleep();
        world.start();
        world
    }

    /// Everybody is there but the gateway.
    pub(super) fn asleep() -> World {
        let folder = tempfile::tempdir().unwrap();
        let around = runtime();
        let people = [("alice", Some(ALICE)), ("bob", Some(BOB)), ("carol", None)];
        let (mut workers, mut users) = (Vec::new(), Vec::new());
        for (number, (user, telegram)) in (1..).zip(people) {
            let instance = InstanceId::new(number);
            let ip = own_address();
            workers.push(around.block_on(Worker::start(ip, worker_token(TOKEN_KEY, instance), telegram)));
            let worker = json!({ "pool_id": "workers", "instance_id": instance, "ip": ip });
            let mut served = json!({ "user": user, "worker": worker });
            match telegram {
                Some(telegram) => served["telegram"] = json!(telegram),
                None => served["link"] = link(CODE, 3600),
            }
            users.push(served);
        }
        let mut config = config(&folder, limits());
        config.openclaw.metrics = SocketAddrV4::new(config.listen, 9464);
        config.openclaw.pace = Pace {
            first_pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(100),
            slow_pause: Duration::from_millis(150),
            ..Pace::default()
        };
        std::fs::write(&config.routes, r#"{"routes": []}"#).unwrap();
        let (bot, model) =
            (BotApi::start(loopback(), TOKEN).unwrap(), ModelApi::start(loopback(), KEY).unwrap());
        let endpoints = json!({ "telegram": bot.url(), "anthropic": model.url() });
        let block = json!({ "endpoints": endpoints, "users": users });
        let ips: Vec<Ipv4Addr> = workers.iter().map(|worker| worker.ip).collect();
        let guard = around.enter();
        let wake = Arc::new(AtomicBool::new(true));
        let host = Host::start(config.host_socket.clone(), answering(ips, Arc::clone(&wake)));
        drop(guard);
        let [alice, bob, carol] = workers.try_into().unwrap();
        let world =
            World { bot, model, alice, bob, carol, host, wake, config, block, folder, gateway: None, around };
        world.secret("openclaw/OPENCLAW_TOKEN_KEY", TOKEN_KEY);
        world.secret("telegram/TELEGRAM_BOT_TOKEN", format!("{TOKEN}\n").as_bytes());
        world.secret("anthropic/ANTHROPIC_API_KEY", KEY.as_bytes());
        world.write_block();
        world
    }

    pub(super) fn secret(&self, name: &str, content: &[u8]) {
        let path = self.config.openclaw.secrets.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(super) fn write_block(&self) {
        let text = json!({ "instance_id": "i-000000ff", "openclaw": { "gateway": self.block } }).to_string();
        std::fs::write(&self.config.openclaw.machine_config, text).unwrap();
    }

    pub(super) fn start(&mut self) {
        let runtime = runtime();
        let (log, _) = AccessLog::to(std::io::sink());
        let gateway = runtime.block_on(Gateway::start(self.config.clone(), log)).unwrap();
        self.gateway = Some((runtime, gateway));
    }

    /// What SIGHUP does.
    pub(super) fn reload(&mut self) {
        self.write_block();
        let (runtime, gateway) = self.gateway.as_mut().unwrap();
        runtime.block_on(gateway.reload()).unwrap();
    }

    /// At once, without a word.
    pub(super) fn kill(&mut self) {
        let (runtime, gateway) = self.gateway.take().unwrap();
        std::mem::forget(gateway);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// As SIGTERM does.
    pub(super) fn stop(&mut self) {
        let (runtime, gateway) = self.gateway.take().unwrap();
        runtime.block_on(gateway.shutdown());
    }

    /// Waits until Telegram has been told that everything is done with.
    pub(super) fn all_acknowledged(&self) {
        self.until(|world| world.bot.unacknowledged().is_empty());
    }

    pub(super) fn until(&self, is_so: impl Fn(&World) -> bool) {
        let begin = std::time::Instant::now();
        while !is_so(self) {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "it does not come: {:?}",
                self.bot.calls().last()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A request of a worker's, as it is on the wire.
    pub(super) fn raw(&self, from: Ipv4Addr, request: impl AsRef<[u8]>) -> Message {
        self.around.block_on(async {
            let mut peer = Peer::connect(from, self.config.listen, WORKER_PORT).await.unwrap();
            peer.send(request).await;
            peer.message().await
        })
    }

    /// Opens a connection, for tests that read an answer piece by piece.
    pub(super) fn peer(&self, from: Ipv4Addr) -> Peer {
        self.around.block_on(Peer::connect(from, self.config.listen, WORKER_PORT)).unwrap()
    }

    pub(super) fn block_on<T>(&self, what: impl Future<Output = T>) -> T {
        self.around.block_on(what)
    }

    /// A call of the Bot API, with JSON.
    pub(super) fn call(&self, worker: &Worker, method: &str, parameters: &Value) -> Message {
        let path = format!("/telegram/bot{}/{method}", worker_bot_token(&worker.token));
        self.raw(worker.ip, post(&path, "application/json", parameters.to_string()))
    }

    pub(super) fn metrics(&self) -> String {
        let address = self.config.openclaw.metrics;
        let message = self.around.block_on(async {
            let mut peer = Peer::connect(Ipv4Addr::LOCALHOST, *address.ip(), address.port()).await.unwrap();
            peer.get("/metrics").await
        });
        assert_eq!(message.status(), 200);
        message.body
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((runtime, gateway)) = self.gateway.take() {
            std::mem::forget(gateway);
            runtime.shutdown_background();
        }
    }
}

pub(super) fn link(code: &str, seconds: u64) -> Value {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let digest: String = Sha256::digest(code).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "code_sha256": digest, "expires_at": now + seconds })
}

pub(super) fn post(path: &str, kind: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Holds are given, and the link is Carol's.
fn answering(ips: Vec<Ipv4Addr>, wake: Arc<AtomicBool>) -> Answering {
    Box::new(move |request, _| {
        Some(match request {
            HostRequest::Hold { .. } if !wake.load(Ordering::Relaxed) => return None,
            HostRequest::Hold { instance_selector: InstanceSelector::ByInstance(id), .. } => {
                HostReply::Held {
                    instance_id: *id,
                    guest_ip: ips[usize::try_from(id.get()).unwrap() - 1],
                    generation: Some(1),
                }
            }
            HostRequest::ClaimUser { code, .. } if code == CODE => {
                HostReply::UserClaimed { user: "carol".to_owned() }
            }
            _ => HostReply::Error { message: "no".to_owned() },
        })
    })
}
