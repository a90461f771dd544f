//! A gateway on a loopback address of its own, what it talks to, and what talks to it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_protocol::control::{HostReply, HostRequest};
use mvm_protocol::frame;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};

use super::super::{AccessLog, Config, Gateway, Limits, OpenClawConfig, TrustedProxy};

/// The port that tests publish; every gateway has an address of its own.
pub(super) const PORT: u16 = 8080;
/// Where the machines of tests are.
pub(super) const MACHINE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The only peer that is trusted with PROXY headers, and one that is not.
pub(super) const TRUSTED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 21);
pub(super) const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 22);

/// Nothing in these tests takes long; what does not come at all fails.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what).await.expect("it does not come")
}

/// A loopback address that no other test uses, in this process or in another.
pub(super) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::from_bits(0x7f80_0000 | (std::process::id() & 0x7fff) << 8 | next)
}

pub(super) fn limits() -> Limits {
    Limits { hold: Duration::from_secs(20), connect: Duration::from_secs(10), ..Limits::default() }
}

pub(super) fn route(name: &str, prefix: &str, target_port: u16) -> Value {
    json!({
        "name": name,
        "match_rule": { "port": PORT, "path_prefix": prefix },
        "target": { "pool_id": name, "instance_selector": "any", "target_port": target_port },
    })
}

/// A route with limits.
pub(super) fn limited(target_port: u16, limits: Value) -> Value {
    let mut route = route("all", "/", target_port);
    route["limits"] = limits;
    route
}

pub(super) struct Setup {
    pub(super) gateway: Gateway,
    pub(super) address: Ipv4Addr,
    pub(super) host: Host,
    pub(super) log: Log,
    folder: TempDir,
}

pub(super) fn config(folder: &TempDir, limits: Limits) -> Config {
    let path = |name: &str| folder.path().join(name);
    let openclaw = OpenClawConfig {
        machine_config: path("config.json"),
        secrets: path("secrets"),
        data: path("data"),
        ..OpenClawConfig::default()
    };
    Config {
        openclaw,
        routes: folder.path().join("routes.json"),
        host_socket: folder.path().join("host.sock"),
        ready: folder.path().join("run/gateway.ready"),
        listen: own_address(),
        trusted_proxy: TrustedProxy::Address(TRUSTED),
        limits,
    }
}

impl Setup {
    pub(super) async fn new(routes: &[Value], limits: Limits, host: Answering) -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder, limits);
        std::fs::write(&config.routes, json!({ "routes": routes }).to_string()).unwrap();
        let host = Host::start(config.host_socket.clone(), host);
        let (address, log) = (config.listen, Log::default());
        let (access_log, _) = AccessLog::to(log.clone());
        let gateway = Gateway::start(config, access_log).await.unwrap();
        Setup { gateway, address, host, log, folder }
    }

    /// One route for all paths, to `port`, and a host that has the machine ready.
    pub(super) async fn to(port: u16) -> Setup {
        Setup::new(&[route("all", "/", port)], limits(), held()).await
    }

    pub(super) fn write_routes(&self, text: &str) {
        std::fs::write(self.folder.path().join("routes.json"), text).unwrap();
    }

    pub(super) async fn client(&self) -> Peer {
        Peer::connect(STRANGER, self.address, PORT).await.unwrap()
    }
}

/// What the host answers to a request, the number of which it is told; nothing where it takes for ever.
pub(super) type Answering = Box<dyn Fn(&HostRequest, usize) -> Option<HostReply> + Send + Sync>;

pub(super) fn held() -> Answering {
    Box::new(|_, _| Some(granted()))
}

pub(super) fn granted() -> HostReply {
    HostReply::Held { instance_id: "i-0000002a".parse().unwrap(), guest_ip: MACHINE, generation: Some(7) }
}

/// What the host's end of port 53 has seen.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    /// Every request.
    pub(super) requests: Vec<HostRequest>,
    /// Streams that are open.
    pub(super) open: usize,
    /// Which requests' streams have ended, in this order.
    pub(super) ended: Vec<usize>,
    /// What was said about whether machines are to run on, in this order.
    pub(super) keeps: Vec<bool>,
}

impl Seen {
    pub(super) fn pools(&self) -> Vec<String> {
        let pool = |request: &HostRequest| match request {
            HostRequest::Hold { pool_id, .. } => pool_id.to_string(),
            other => panic!("not a Hold: {other:?}"),
        };
        self.requests.iter().map(pool).collect()
    }
}

/// The host's end of port 53.
pub(super) struct Host {
    seen: watch::Sender<Seen>,
    notices: broadcast::Sender<Option<HostReply>>,
}

impl Host {
    pub(super) fn start(socket: PathBuf, answering: Answering) -> Host {
        let seen = watch::Sender::new(Seen::default());
        let listener = UnixListener::bind(socket).unwrap();
        let answering = Arc::new(answering);
        let notices = broadcast::Sender::new(8);
        let (host, to_all) = (seen.clone(), notices.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_hold(stream, host.clone(), Arc::clone(&answering), to_all.subscribe()));
            }
        });
        Host { seen, notices }
    }

    /// Says something on every stream that is open; `None` breaks them.
    pub(super) fn say(&self, notice: Option<HostReply>) {
        self.notices.send(notice).unwrap();
    }

    /// Waits until all of this was said about whether machines are to run on.
    pub(super) async fn was_told(&self, keeps: &[bool]) {
        let mut seen = self.seen.subscribe();
        let _ = soon(seen.wait_for(|seen| seen.keeps == keeps)).await.unwrap();
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until the stream of this request has ended.
    pub(super) async fn ended(&self, request: usize) {
        let mut seen = self.seen.subscribe();
        let _ = soon(seen.wait_for(|seen| seen.ended.contains(&request))).await.unwrap();
    }

    /// Waits until so many requests have come in all, and so many streams are open.
    pub(super) async fn has(&self, requests: usize, open: usize) {
        let mut seen = self.seen.subscribe();
        let there = seen.wait_for(|seen| seen.requests.len() == requests && seen.open == open);
        let waited = timeout(Duration::from_secs(30), there).await.map(drop);
        assert!(waited.is_ok(), "{requests} requests and {open} streams: {:?}", self.seen());
    }
}

async fn serve_hold(
    mut stream: UnixStream,
    seen: watch::Sender<Seen>,
    answering: Arc<Answering>,
    mut notices: broadcast::Receiver<Option<HostReply>>,
) {
    let Ok(Some(request)) = frame::read::<HostRequest, _>(&mut stream).await else { return };
    let mut number = 0;
    let reply = answering(&request, seen.borrow().requests.len());
    seen.send_modify(|seen| {
        number = seen.requests.len();
        seen.requests.push(request);
        seen.open += 1;
    });
    match reply {
        // Says that the stream breaks, in a language that only this file knows.
        Some(HostReply::Error { message }) if message == "break" => {}
        Some(reply) => {
            let _ = frame::write(&mut stream, &reply).await;
            let (mut reader, mut writer) = stream.into_split();
            let listen = async {
                while let Ok(Some(HostRequest::Keep { running })) = frame::read(&mut reader).await {
                    seen.send_modify(|seen| seen.keeps.push(running));
                }
            };
            let speak = async {
                while let Ok(Some(notice)) = notices.recv().await {
                    let _ = frame::write(&mut writer, &notice).await;
                }
            };
            tokio::select! {
                () = listen => {}
                () = speak => {}
            }
        }
        None => {
            let _ = stream.read(&mut [0]).await;
        }
    }
    seen.send_modify(|seen| {
        seen.open -= 1;
        seen.ended.push(number);
    });
}

/// The access log.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines, when there are so many.
    pub(super) async fn lines(&self, count: usize) -> Vec<Value> {
        soon(async {
            loop {
                let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
                if text.lines().count() >= count {
                    return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                }
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

/// A message as it was on the wire, and what it says.
#[derive(Debug)]
pub(super) struct Message {
    /// The first line.
    pub(super) start: String,
    /// All lines of the head, in lower case.
    pub(super) head: Vec<String>,
    pub(super) body: String,
}

impl Message {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(super) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn error(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str::<Value>(&self.body).unwrap()["error"].as_str().unwrap().to_owned()
    }
}

/// One end of a connection: a client, or a service of a machine.
#[derive(Debug)]
pub(super) struct Peer(pub(super) BufReader<TcpStream>);

impl Peer {
    pub(super) async fn connect(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> io::Result<Peer> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(from, 0).into())?;
        let stream = socket.connect(SocketAddr::from((to, port))).await?;
        Ok(Peer(BufReader::new(stream)))
    }

    pub(super) async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(text.as_ref()).await.unwrap();
    }

    pub(super) async fn get(&mut self, path: &str) -> Message {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n\r\n")).await;
        self.message().await
    }

    /// The next message, and its body to the end.
    pub(super) async fn message(&mut self) -> Message {
        let mut message = self.head().await;
        if message.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().await {
                message.body += &chunk;
            }
        } else if let Some(length) = message.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            soon(self.0.read_exact(&mut body)).await.unwrap();
            message.body = String::from_utf8(body).unwrap();
        }
        message
    }

    /// The next message without its body.
    pub(super) async fn head(&mut self) -> Message {
        let start = self.line().await;
        let mut head = Vec::new();
        loop {
            let line = self.line().await.to_lowercase();
            if line.is_empty() {
                return Message { start, head, body: String::new() };
            }
            head.push(line);
        }
    }

    /// The next chunk of a body; `None` at its end, trailers skipped.
    pub(super) async fn chunk(&mut self) -> Option<String> {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        if size == 0 {
            while !self.line().await.is_empty() {}
            return None;
        }
        let mut chunk = vec![0; size + 2];
        soon(self.0.read_exact(&mut chunk)).await.unwrap();
        Some(String::from_utf8(chunk).unwrap().trim_end_matches("\r\n").to_owned())
    }

    pub(super) async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.0.read_line(&mut line)).await.unwrap();
        line.trim_end_matches("\r\n").to_owned()
    }

    /// All that comes until the connection ends, well or badly.
    pub(super) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = soon(self.0.read_to_end(&mut rest)).await;
        String::from_utf8(rest).unwrap()
    }
}

/// A port of a machine, on which a test plays the service by hand.
pub(super) struct Service(pub(super) TcpListener);

impl Service {
    pub(super) async fn new() -> (Service, u16) {
        let listener = TcpListener::bind((MACHINE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Service(listener), port)
    }

    pub(super) async fn accept(&self) -> Peer {
        Peer(BufReader::new(soon(self.0.accept()).await.unwrap().0))
    }

    /// Answers every request with what it was.
    pub(super) async fn echo() -> u16 {
        let (service, port) = Service::new().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = service.0.accept().await {
                tokio::spawn(answer_with_request(Peer(BufReader::new(stream))));
            }
        });
        port
    }
}

async fn answer_with_request(mut peer: Peer) {
    let request = peer.message().await;
    let text = format!("{}\n{}\n\n{}", request.start, request.head.join("\n"), request.body);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nServer: echo\r\n\r\n", text.len());
    peer.send(head + if request.start.starts_with("HEAD ") { "" } else { &text }).await;
}
