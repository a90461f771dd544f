//! The gateway, with the clients that the day brings: WebSocket, server-sent events, HTTP/2, large bodies.

use std::net::Ipv4Addr;

use mvm_harness::{Connection, Echo, Lab, Value};

const WORKER: &str = "alice/workers";
const GATEWAY: &str = "alice/gateways";

/// Routes to a service of the worker that the tests start themselves.
const ROUTES: &str = r#"
[[routes]]
name = "day"
match_rule = { port = 8080, path_prefix = "/day" }
target = { pool_id = "workers", instance_selector = "any", target_port = 9090 }

[[routes]]
name = "brief"
match_rule = { port = 8080, path_prefix = "/day/brief" }
target = { pool_id = "workers", instance_selector = "any", target_port = 9090 }
limits = { idle_seconds = 1, max_body_mib = 1 }
"#;

/// WebSocket: answers each text with a number that counts them all. GET …/events: an event for each line that comes into
/// the pipe /tmp/events. POST: how long the body is and what it adds up to. GET …/wait: answers when /tmp/go is there.
const SERVICE: &str = r#"
import base64, hashlib, zlib
counted = 0
class Day(Handler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            return self.websocket()
        if self.path.endswith("/events"):
            return self.events()
        while self.path.endswith("/wait") and not os.path.exists("/tmp/go"):
            time.sleep(0.05)
        self.answer("GET " + self.path)
    def do_POST(self):
        left = int(self.headers["Content-Length"])
        total, summed = left, 1
        while left:
            part = self.rfile.read(min(left, 1 << 16))
            left -= len(part)
            summed = zlib.adler32(part, summed)
        self.answer(f"{total} {summed}")
    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        while True:
            with open("/tmp/events") as lines:
                for line in lines:
                    self.wfile.write(f"data: {line}\n".encode())
                    self.wfile.flush()
    def websocket(self):
        global counted
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while head := self.rfile.read(2):
            mask = self.rfile.read(4)
            self.rfile.read(head[1] & 127)
            counted += 1
            text = str(counted).encode()
            self.wfile.write(bytes([0x81, len(text)]) + text)
            self.wfile.flush()
os.mkfifo("/tmp/events")
serve(9090, Day)
"#;

/// An echo deployment whose worker has the service too. A sleep waits for what is in hand as good as for ever.
fn deployed(lab: &Lab) {
    let keys = "runtime_policy = { drain_timeout_seconds = 3600 }";
    lab.deploy(&Echo { worker_keys: keys, more: ROUTES, ..Echo::default() }.manifest());
    lab.serve(WORKER, SERVICE);
    lab.wait_for("nothing is in hand", || holds(lab) == 0);
}

fn holds(lab: &Lab) -> u64 {
    lab.info(WORKER)["holds"].as_u64().unwrap()
}

fn wakes(lab: &Lab) -> usize {
    lab.events("alice", "InstanceWoken").len()
}

/// A conversation by WebSocket, as a client has it.
struct WebSocket(Connection);

impl WebSocket {
    #[track_caller]
    fn open(lab: &Lab, path: &str) -> Self {
        let mut connection = lab.connect(8080);
        let head = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{head}{key}\r\n").as_bytes());
        let answer = connection.response();
        assert_eq!(answer.status, 101, "{}", answer.text());
        // RFC 6455's own example.
        assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Self(connection)
    }

    /// Says something; the number that comes back.
    #[track_caller]
    fn ask(&mut self) -> u64 {
        self.0.send(b"\x81\x82\0\0\0\0hi");
        let (opcode, text) = self.frame();
        assert_eq!(opcode, 1, "{text:?}");
        String::from_utf8(text).unwrap().parse().unwrap()
    }

    #[track_caller]
    fn frame(&mut self) -> (u8, Vec<u8>) {
        let head = self.0.exactly(2);
        (head[0] & 15, self.0.exactly(head[1].into()))
    }

    /// The code with which it is closed, and after which nothing comes.
    #[track_caller]
    fn closed(&mut self) -> u16 {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, 8, "{payload:?}");
        assert_eq!(self.0.rest(), b"");
        u16::from_be_bytes([payload[0], payload[1]])
    }
}

#[test]
fn a_websocket_keeps_nobody_awake_is_closed_at_a_sleep_and_the_next_one_wakes() {
    let lab = Lab::new();
    deployed(&lab);
    let mut first = WebSocket::open(&lab, "/day/chat");
    assert_eq!(first.ask(), 1);
    assert_eq!(holds(&lab), 1, "it holds its worker");
    lab.mvm(&["instance", "sleep", WORKER]);
    assert_eq!(first.closed(), 1012);
    assert_eq!((lab.state(WORKER).as_str(), wakes(&lab)), ("sleeping", 0));

    let mut second = WebSocket::open(&lab, "/day/brief/chat");
    assert_eq!((second.ask(), wakes(&lab)), (2, 1), "its worker has woken with its memory");
    for answer in 3..5 {
        lab.wait_for("an idle one does not keep it awake", || holds(&lab) == 0);
        assert_eq!(second.ask(), answer, "and is still there");
        lab.wait_for("one that speaks does", || holds(&lab) == 1);
    }
    lab.wait_for("it is idle again", || holds(&lab) == 0);
    lab.mvm(&["instance", "sleep", WORKER]);
    assert_eq!(second.closed(), 1012);
    assert_eq!((lab.state(WORKER).as_str(), wakes(&lab)), ("sleeping", 1));

    // A pause and a stop say the same.
    for act in ["warm", "stop"] {
        let mut next = WebSocket::open(&lab, "/day/brief/chat");
        next.ask();
        lab.mvm(&["instance", act, WORKER]);
        assert_eq!(next.closed(), 1012, "{act}");
    }
}

#[test]
fn events_come_one_by_one_limits_hold_http_2_is_spoken_and_a_stop_finishes_what_is_in_hand() {
    let lab = Lab::new();
    deployed(&lab);
    let mut events = lab.connect(8080);
    events.send(b"GET /day/events HTTP/1.1\r\nHost: test\r\n\r\n");
    let head = events.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    for number in 0..3 {
        // What the next event waits for is that this one was read.
        lab.exec(WORKER, &["sh", "-c", &format!("echo {number} > /tmp/events")]);
        assert_eq!(events.chunk(), format!("data: {number}\n\n").as_bytes());
    }
    drop(events);

    assert_eq!(http2_get(&lab, "/day/x"), b"GET /day/x");

    lab.wait_for("nothing is in hand", || holds(&lab) == 0);
    lab.mvm(&["instance", "sleep", WORKER]);
    let mut large = lab.connect(8080);
    large.send(b"POST /day/brief HTTP/1.1\r\nHost: test\r\nContent-Length: 1048577\r\n\r\n");
    let refused = large.response();
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert_eq!((lab.state(WORKER).as_str(), wakes(&lab)), ("sleeping", 0), "it was not woken for that");

    let mut waiting = lab.connect(8080);
    waiting.send(b"GET /day/wait HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut socket = WebSocket::open(&lab, "/day/chat");
    socket.ask();
    lab.wait_for("both are in hand", || holds(&lab) == 2);
    let lines = access_log(&lab);
    let stop = lab.mvm_beside(&["instance", "stop", GATEWAY]);
    assert_eq!(socket.closed(), 1001);
    lab.exec(WORKER, &["touch", "/tmp/go"]);
    let answer = waiting.response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "GET /day/wait"));
    assert!(stop.wait_with_output().unwrap().status.success());

    let line = |key: &str, value: Value| {
        lines
            .iter()
            .find(|line| line[key] == value)
            .unwrap_or_else(|| panic!("no {key} {value} in {lines:?}"))
    };
    let events = line("path", "/day/events".into());
    assert_eq!(
        (&events["route"], &events["method"], &events["status"]),
        (&"day".into(), &"GET".into(), &200.into())
    );
    assert_eq!(events["source"].as_str().unwrap().parse(), Ok(Ipv4Addr::LOCALHOST));
    assert!(events["hold_ms"].is_u64() && events["total_ms"].is_u64(), "{events}");
    assert_eq!(line("protocol", "HTTP/2".into())["path"], "/day/x");
    assert_eq!(line("status", 413.into())["instance"], Value::Null);
}

/// The gateway's access log. What it says besides is not JSON.
fn access_log(lab: &Lab) -> Vec<Value> {
    let log = lab.mvm(&["instance", "logs", GATEWAY]);
    let lines = log.lines().filter_map(|line| line.get(line.find('{')?..));
    lines.map(|line| line.parse().unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// A GET in HTTP/2 without TLS and without asking before, byte by byte (RFC 9113 and 7541).
fn http2_get(lab: &Lab, path: &str) -> Vec<u8> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream], payload].concat()
    };
    // :method GET and :scheme http by their numbers, then :path and :authority.
    let text =
        |index: u8, text: &str| [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let headers = [vec![0x82, 0x86], text(0x04, path), text(0x01, "test")].concat();
    let mut connection = lab.connect(8080);
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    connection.send(&frame(SETTINGS, 0, 0, &[]));
    connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers));
    let mut body = Vec::new();
    loop {
        let head = connection.exactly(9);
        let payload = connection.exactly(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize);
        match head[3] {
            // :status 200 has a number of its own.
            HEADERS => assert_eq!(payload[0], 0x88, "{payload:?}"),
            DATA => body.extend_from_slice(&payload),
            _ => continue,
        }
        if head[4] & END_STREAM != 0 {
            return body;
        }
    }
}

#[test]
fn a_body_larger_than_the_gateways_memory_streams_through() {
    const MIB: usize = 300;
    let lab = Lab::new();
    deployed(&lab);
    let chunk: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut connection = lab.connect(8080);
    connection.send(
        format!("POST /day HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", MIB << 20).as_bytes(),
    );
    let (mut low, mut high) = (1u64, 0u64);
    for _ in 0..MIB {
        connection.send(&chunk);
        for byte in &chunk {
            low += u64::from(*byte);
            high += low;
        }
        (low, high) = (low % 65_521, high % 65_521);
    }
    let answer = connection.response();
    assert_eq!((answer.status, answer.text()), (200, format!("{} {}", MIB << 20, high << 16 | low)));
}
