//! Against the stand-in that keeps OpenClaw's contract, with a server in place of the gateway machine.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mvm_protocol::openclaw::{WEBHOOK_PATH, WORKER_PORT, WorkerConfig, webhook_secret};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const TOKEN: &str = "a-workers-token";
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/openclaw/worker/standin.py");

/// What the gateway machine is for a worker: the Bot API and the model API.
#[derive(Default)]
struct Gateway {
    /// Method and body of calls of the Bot API, with the token they came with.
    calls: Mutex<Vec<(String, Value)>>,
    /// What questions came with.
    keys: Mutex<Vec<String>>,
    /// Held while the model thinks.
    thinking: tokio::sync::Mutex<()>,
}

impl Gateway {
    /// On an address of its own of the loopback network, as the port is always the same.
    async fn start() -> (Arc<Self>, Ipv4Addr) {
        let id = std::process::id();
        let address = Ipv4Addr::new(127, 77, (id >> 8) as u8, (id as u8).max(1));
        let listener = TcpListener::bind((address, WORKER_PORT)).await.unwrap();
        let gateway = Arc::new(Self::default());
        let served = Arc::clone(&gateway);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let gateway = Arc::clone(&served);
                let answer = service_fn(move |request| {
                    let gateway = Arc::clone(&gateway);
                    async move { Ok::<_, Infallible>(gateway.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), answer));
            }
        });
        (gateway, address)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        if let Some(call) = head.uri.path().strip_prefix("/telegram/bot") {
            lock(&self.calls).push((call.to_owned(), body));
            return Response::new(Full::from(r#"{"ok":true,"result":true}"#));
        }
        assert_eq!(head.uri.path(), "/anthropic/v1/messages");
        lock(&self.keys).push(head.headers["x-api-key"].to_str().unwrap().to_owned());
        let _thought = self.thinking.lock().await;
        let events = [
            json!({ "type": "content_block_delta", "delta": { "type": "text_delta", "text": "yes" } }),
            json!({ "type": "message_stop" }),
        ];
        let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        Response::new(Full::from(text))
    }

    fn sent(&self) -> Vec<(String, String)> {
        let calls = lock(&self.calls);
        let sent = calls.iter().filter(|(call, _)| call.ends_with("/sendMessage"));
        sent.map(|(call, body)| (call.clone(), body["text"].as_str().unwrap().to_owned())).collect()
    }
}

struct StandIn {
    child: Child,
    worker: Worker,
    config: WorkerConfig,
    _root: tempfile::TempDir,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn worker(root: &Path) -> Worker {
    let places = Places {
        folder: root.join("data"),
        config_name: "openclaw.json".to_owned(),
        secrets: root.join("run"),
        control_port: free_port(),
        webhook_port: free_port(),
    };
    Worker::new(places, rustix::process::geteuid().as_raw())
}

fn machine_config(worker: Option<&WorkerConfig>) -> String {
    let mut config = json!({
        "instance_id": "i-0000002a", "pool_id": "workers", "tenant_id": "alice", "role": "capability-openclaw",
        "guest_ip": "10.240.0.4", "vcpus": 1, "mem_mib": 512, "integrations": [],
        "min_runtime_policy": mvm_model::RuntimePolicy::default(),
    });
    if let Some(worker) = worker {
        config["openclaw"] = json!({ "worker": worker });
    }
    config.to_string()
}

fn configure(worker: &Worker, config: &WorkerConfig, token: &str) {
    let token = SecretBytes::new(token.as_bytes().to_vec());
    worker.configure(&machine_config(Some(config)), Some(&token)).unwrap();
}

fn written(worker: &Worker) -> Value {
    let text = fs::read_to_string(worker.places.folder.join("openclaw.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

impl StandIn {
    async fn start(gateway_ip: Ipv4Addr) -> Self {
        Self::start_for(Some(777), gateway_ip).await
    }

    async fn start_for(telegram: Option<i64>, gateway_ip: Ipv4Addr) -> Self {
        let root = tempfile::tempdir().unwrap();
        let worker = worker(root.path());
        let config = WorkerConfig { user: "alice".to_owned(), gateway_ip, telegram };
        configure(&worker, &config, TOKEN);
        let child = Self::launch(&worker);
        let stand_in = Self { child, worker, config, _root: root };
        stand_in.until_ready().await;
        stand_in
    }

    fn launch(worker: &Worker) -> Child {
        let config = worker.places.folder.join("openclaw.json");
        Command::new("python3").arg(STAND_IN).env("OPENCLAW_CONFIG_PATH", config).spawn().unwrap()
    }

    async fn until_ready(&self) {
        until("it is ready", async || self.probe("/readyz").await == Some(StatusCode::OK)).await;
    }

    async fn probe(&self, path: &str) -> Option<StatusCode> {
        let request = Request::get(path).body(Full::default()).unwrap();
        request_of(self.worker.places.control_port, request).await.map(|answer| answer.status())
    }

    /// Posts a message as the gateway does.
    async fn post(&self, id: u64, text: &str, secret: &str) -> Response<Incoming> {
        let update = json!({ "update_id": id, "message": {
            "message_id": id, "date": 1, "text": text,
            "chat": { "id": 777, "type": "private" }, "from": { "id": 777, "is_bot": false, "first_name": "A" },
        } });
        let request = Request::post(WEBHOOK_PATH)
            .header("x-telegram-bot-api-secret-token", secret)
            .body(Full::from(update.to_string()))
            .unwrap();
        request_of(self.worker.places.webhook_port, request).await.unwrap()
    }

    async fn say(&self, id: u64, text: &str) {
        let answer = self.post(id, text, &webhook_secret(TOKEN, Some(777))).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["x-openclaw-delivery-accepted"], "durable");
    }
}

async fn request_of(port: u16, request: Request<Full<Bytes>>) -> Option<Response<Incoming>> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    sender.send_request(request).await.ok()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 20 s: {what}");
}

#[tokio::test]
async fn a_message_is_answered_through_the_gateway_and_once() {
    let (gateway, address) = Gateway::start().await;
    let stand_in = StandIn::start(address).await;
    assert_eq!(stand_in.post(1, "x", "wrong").await.status(), StatusCode::UNAUTHORIZED);
    stand_in.say(7, "hello").await;
    stand_in.say(7, "hello").await;
    stand_in.say(8, "again").await;
    until("both are answered", async || gateway.sent().len() >= 2).await;
    sleep(Duration::from_millis(300)).await;
    let call = format!("1:{TOKEN}/sendMessage");
    assert_eq!(gateway.sent(), [(call.clone(), "yes".to_owned()), (call, "yes".to_owned())]);
    assert_eq!(*lock(&gateway.keys), [TOKEN, TOKEN]);
    let webhook =
        lock(&gateway.calls).iter().find(|(call, _)| call.ends_with("/setWebhook")).unwrap().1.clone();
    assert_eq!(webhook["secret_token"], webhook_secret(TOKEN, Some(777)));
    let integrations = stand_in.worker.integrations().await;
    assert_eq!(integrations, BTreeMap::from([("telegram".to_owned(), IntegrationStatus::Active)]));
}

#[tokio::test]
async fn it_is_suspended_when_it_has_nothing_in_hand_and_takes_messages_meanwhile() {
    let (gateway, address) = Gateway::start().await;
    let stand_in = StandIn::start(address).await;
    let worker = &stand_in.worker;
    assert_eq!(worker.activity().await, Activity::default());

    let thinking = gateway.thinking.lock().await;
    stand_in.say(1, "remind me in 3600 s").await;
    until("the model is asked", async || !lock(&gateway.keys).is_empty()).await;
    let busy = worker.suspend(Duration::from_millis(200)).await.unwrap_err();
    assert!(busy.starts_with("OpenClaw is busy: 1 embedded-run"), "{busy}");
    assert_eq!(stand_in.probe("/readyz").await, Some(StatusCode::OK), "it goes on");
    lock_admission(worker).asked = None;
    let activity = worker.activity().await;
    assert!(activity.is_busy && activity.last_activity > 1_700_000_000, "{activity:?}");

    let suspending = worker.suspend(Duration::from_secs(20));
    let answering = async {
        sleep(Duration::from_millis(200)).await;
        drop(thinking);
    };
    let (wake_at, ()) = tokio::join!(suspending, answering);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let wake_at = wake_at.unwrap().unwrap();
    assert!((now + 3560..=now + 3600).contains(&wake_at), "{wake_at} at {now}");
    assert_eq!(gateway.sent().len(), 1, "the turn came to its end first");
    assert_eq!(stand_in.probe("/readyz").await, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(worker.integrations().await["telegram"], IntegrationStatus::Paused);
    assert!(!worker.activity().await.is_busy);

    stand_in.say(2, "are you there?").await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.sent().len(), 1);
    worker.resume().await;
    assert_eq!(stand_in.probe("/readyz").await, Some(StatusCode::OK));
    until("the second is answered", async || gateway.sent().len() == 2).await;
}

fn lock_admission(worker: &Worker) -> tokio::sync::MutexGuard<'_, Admission> {
    worker.admission.try_lock().unwrap()
}

#[tokio::test]
async fn asking_what_it_does_leaves_it_open() {
    let (_gateway, address) = Gateway::start().await;
    let stand_in = StandIn::start(address).await;
    assert!(!stand_in.worker.activity().await.is_busy);
    assert_eq!(stand_in.probe("/readyz").await, Some(StatusCode::OK));
    assert!(lock_admission(&stand_in.worker).suspension.is_none());
}

#[tokio::test]
async fn a_kill_loses_no_turn() {
    let (gateway, address) = Gateway::start().await;
    let mut stand_in = StandIn::start(address).await;
    let thinking = gateway.thinking.lock().await;
    stand_in.say(1, "one").await;
    stand_in.say(2, "two").await;
    until("the model is asked", async || !lock(&gateway.keys).is_empty()).await;
    stand_in.child.kill().unwrap();
    stand_in.child.wait().unwrap();
    assert!(
        stand_in.worker.suspend(Duration::from_millis(100)).await.is_err(),
        "one that should run is waited for"
    );
    assert!(stand_in.worker.activity().await.is_starting);
    {
        let mut admission = lock_admission(&stand_in.worker);
        admission.down_since = Instant::now().checked_sub(STARTS_WITHIN);
        (admission.asked, admission.next_wake) = (None, Some(4_000_000_000));
    }
    assert!(!stand_in.worker.activity().await.is_starting);
    let slept = stand_in.worker.suspend(Duration::from_secs(1)).await;
    assert_eq!(slept, Ok(Some(4_000_000_000)), "but not for ever, and what it planned stands");
    drop(thinking);
    stand_in.child = StandIn::launch(&stand_in.worker);
    stand_in.until_ready().await;
    until("both are answered", async || gateway.sent().len() == 2).await;
    let log = fs::read_to_string(stand_in.worker.places.folder.join("updates.log")).unwrap();
    assert_eq!(log, "1 777 'one'\n2 777 'two'\n");
}

#[tokio::test]
async fn a_new_token_is_taken_over_without_a_new_start() {
    let (gateway, address) = Gateway::start().await;
    let stand_in = StandIn::start(address).await;
    configure(&stand_in.worker, &stand_in.config, "another-token");
    assert!(!stand_in.worker.activity().await.is_busy);
    let [old, new] = [TOKEN, "another-token"].map(|token| webhook_secret(token, Some(777)));
    until("it has taken it over", async || stand_in.post(1, "x", &new).await.status() == StatusCode::OK)
        .await;
    assert_eq!(stand_in.post(1, "x", &old).await.status(), StatusCode::UNAUTHORIZED);
    until("it is answered", async || !gateway.sent().is_empty()).await;
    assert_eq!(*lock(&gateway.keys), ["another-token"]);
    assert_eq!(gateway.sent()[0].0, "1:another-token/sendMessage");
    let left = fs::read_dir(&stand_in.worker.places.secrets).unwrap().count();
    assert_eq!(left, 1, "the old secrets are gone");
}

#[tokio::test]
async fn it_takes_nothing_of_a_person_before_it_knows_that_they_are_its_user() {
    let (gateway, address) = Gateway::start().await;
    let mut stand_in = StandIn::start_for(None, address).await;
    let post = async |stand_in: &StandIn| {
        stand_in.post(1, "hello", &webhook_secret(TOKEN, Some(777))).await.status()
    };
    assert_eq!(post(&stand_in).await, StatusCode::UNAUTHORIZED);
    stand_in.config.telegram = Some(777);
    configure(&stand_in.worker, &stand_in.config, TOKEN);
    assert_eq!(post(&stand_in).await, StatusCode::UNAUTHORIZED, "it takes it over a little later");
    until("it is taken", async || post(&stand_in).await == StatusCode::OK).await;
    until("it is answered", async || !gateway.sent().is_empty()).await;
    let left = fs::read_dir(&stand_in.worker.places.secrets).unwrap().count();
    assert_eq!(left, 1, "the old secrets are gone");
}

#[test]
fn what_the_assistant_changed_in_its_config_stays() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let worker = worker(root.path());
    let mut config =
        WorkerConfig { user: "alice".to_owned(), gateway_ip: [10, 240, 0, 3].into(), telegram: None };
    configure(&worker, &config, TOKEN);
    let path = worker.places.folder.join("openclaw.json");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let first = written(&worker);
    assert_eq!(first["channels"]["telegram"]["dmPolicy"], "disabled");
    assert_eq!(first["agents"]["defaults"]["heartbeat"]["every"], "0m");
    assert!(!fs::read_to_string(&path).unwrap().contains(TOKEN), "secrets are referred to");

    let mut changed = first;
    changed["agents"]["defaults"] = json!({ "heartbeat": { "every": "2h" }, "model": "anthropic/other" });
    changed["plugins"]["allow"] = json!(["weather"]);
    changed["channels"]["telegram"]["apiRoot"] = "https://elsewhere.example".into();
    changed["channels"]["telegram"]["replyToMode"] = "first".into();
    changed["mcp"] = json!({ "servers": {} });
    fs::write(&path, changed.to_string()).unwrap();
    config.telegram = Some(777);
    configure(&worker, &config, TOKEN);
    let second = written(&worker);
    assert_eq!(second["agents"]["defaults"], changed["agents"]["defaults"]);
    assert_eq!(second["mcp"], changed["mcp"]);
    assert_eq!(
        second["plugins"]["allow"],
        json!(["weather", "admin-http-rpc", "anthropic", "memory-core", "telegram"])
    );
    let telegram = &second["channels"]["telegram"];
    assert_eq!(telegram["apiRoot"], "http://10.240.0.3:8788/telegram");
    assert_eq!(telegram["replyToMode"], "first");
    assert_eq!((&telegram["dmPolicy"], &telegram["allowFrom"]), (&json!("allowlist"), &json!(["777"])));

    let written_at = || fs::metadata(&path).unwrap().modified().unwrap();
    let before = written_at();
    configure(&worker, &config, TOKEN);
    assert_eq!(written_at(), before, "what is right is not written again");
}

#[test]
fn a_config_that_cannot_be_read_is_kept_aside_and_links_are_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let worker = worker(root.path());
    let config =
        WorkerConfig { user: "alice".to_owned(), gateway_ip: [10, 240, 0, 3].into(), telegram: None };
    fs::create_dir(&worker.places.folder).unwrap();
    let path = worker.places.folder.join("openclaw.json");
    fs::write(&path, "{ // mine\n").unwrap();
    configure(&worker, &config, TOKEN);
    assert_eq!(fs::read_to_string(path.with_extension("json.unreadable")).unwrap(), "{ // mine\n");
    assert_eq!(written(&worker)["gateway"]["mode"], "local");

    let outside = root.path().join("outside");
    fs::write(&outside, "{}").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    configure(&worker, &config, TOKEN);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "{}");
    assert_eq!(written(&worker)["gateway"]["mode"], "local");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&outside, worker.places.folder.join("openclaw.json.mvm-new")).unwrap();
    configure(&worker, &config, TOKEN);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "{}");
}

#[test]
fn the_folder_of_secrets_is_roots_and_its_files_are_the_users() {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root gives files away");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let worker = Worker { uid: 12_345, ..worker(root.path()) };
    let config =
        WorkerConfig { user: "alice".to_owned(), gateway_ip: [10, 240, 0, 3].into(), telegram: None };
    configure(&worker, &config, TOKEN);
    let folder = fs::read_dir(&worker.places.secrets).unwrap().next().unwrap().unwrap();
    let found = folder.metadata().unwrap();
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o755));
    let file = fs::metadata(folder.path().join("gateway")).unwrap();
    assert_eq!((file.uid(), file.mode() & 0o7777), (12_345, 0o400));
}

#[test]
fn whatever_is_in_the_way_of_the_config_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let worker = worker(root.path());
    let config =
        WorkerConfig { user: "alice".to_owned(), gateway_ip: [10, 240, 0, 3].into(), telegram: None };
    let folder = &worker.places.folder;
    for name in ["openclaw.json", "openclaw.json.mvm-new/x", "openclaw.json.unreadable/x"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    configure(&worker, &config, TOKEN);
    assert_eq!(written(&worker)["gateway"]["mode"], "local");
    assert!(folder.join("openclaw.json.unreadable-2").is_dir());
    fs::write(folder.join("openclaw.json"), b"{\"a\": \"\xff\"}").unwrap();
    configure(&worker, &config, TOKEN);
    assert_eq!(written(&worker)["gateway"]["mode"], "local");
    assert!(folder.join("openclaw.json.unreadable-3").is_file());

    // Not even that: the update is taken nevertheless.
    fs::remove_dir_all(folder).unwrap();
    fs::write(folder, "").unwrap();
    configure(&worker, &config, TOKEN);
}

#[tokio::test]
async fn a_resume_that_is_not_answered_is_tried_again_and_its_id_kept() {
    let root = tempfile::tempdir().unwrap();
    let worker = worker(root.path());
    let config =
        WorkerConfig { user: "alice".to_owned(), gateway_ip: [10, 240, 0, 3].into(), telegram: None };
    configure(&worker, &config, TOKEN);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, worker.places.control_port)).await.unwrap();
    let dropping = tokio::spawn(async move {
        for _ in 0..RESUME_TRIES {
            drop(listener.accept().await.unwrap());
        }
        listener
    });
    lock_admission(&worker).suspend("s-1".to_owned());
    worker.resume().await;
    assert!(lock_admission(&worker).is_suspended() && lock_admission(&worker).to_resume);
    drop(dropping.await.unwrap());
    worker.resume().await;
    assert!(lock_admission(&worker).suspension.is_none(), "one that is down has none");
}

#[test]
fn a_machine_that_is_nobodys_worker_gets_no_config() {
    let root = tempfile::tempdir().unwrap();
    let worker = worker(root.path());
    let token = SecretBytes::new(TOKEN.as_bytes().to_vec());
    worker.configure(&machine_config(None), Some(&token)).unwrap();
    let config =
        WorkerConfig { user: "alice".to_owned(), gateway_ip: [10, 240, 0, 3].into(), telegram: None };
    worker.configure(&machine_config(Some(&config)), None).unwrap();
    assert!(!worker.places.folder.exists());
    assert!(worker.rpc(ACT).is_none());
}
