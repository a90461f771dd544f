//! What is around a worker: a gateway machine's port for workers, with a Bot API and a Messages API behind it that answer
//! everything, and the requests that a gateway makes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mvm_harness::{Namespace, fresh};
use mvm_protocol::openclaw::{CONTROL_PORT, WEBHOOK_PATH, WEBHOOK_PORT, WORKER_PORT, webhook_secret};
use serde_json::{Value, json};

/// The gateway's address, in the guest's own network.
pub(super) const GATEWAY: &str = "127.0.0.2";
/// What is said to the assistant, in this order: words that it does not use by itself.
const WORDS: [&str; 6] = ["aardvark", "badger", "caracal", "dolphin", "echidna", "flamingo"];
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(90);

pub(super) struct Outside {
    namespace: Namespace,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Bot token, chat and text of every message that was sent.
    sent: Mutex<Vec<(String, String, String)>>,
    /// Key and messages of every call of the model.
    asked: Mutex<Vec<(String, String)>>,
    /// Held while the model thinks.
    thinking: Mutex<()>,
}

impl Outside {
    pub(super) fn new() -> Self {
        let namespace = Namespace::new(&format!("mvm-{}", &fresh()[..8]));
        namespace.run("ip", &["link", "set", "lo", "up"]);
        let listener = namespace.inside(|| TcpListener::bind((GATEWAY, WORKER_PORT)).unwrap());
        let seen = Arc::new(Seen::default());
        let serving = Arc::clone(&seen);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&serving);
                std::thread::spawn(move || seen.serve(stream));
            }
        });
        Self { namespace, seen }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn sent(&self) -> Vec<(String, String, String)> {
        self.seen.sent.lock().unwrap().clone()
    }

    pub(super) fn last_key(&self) -> String {
        self.seen.asked.lock().unwrap().last().unwrap().0.clone()
    }

    /// Has the model think for as long as this is kept.
    pub(super) fn hold_answers(&self) -> MutexGuard<'_, ()> {
        self.seen.thinking.lock().unwrap()
    }

    pub(super) fn wait_for_answers(&self, count: usize) {
        wait(&format!("{count} messages are sent"), || self.sent().len() >= count);
        assert_eq!(self.sent().len(), count, "{:?}", self.sent());
    }

    pub(super) fn wait_for_question(&self, text: &str) {
        wait(&format!("the model is asked {text:?}"), || {
            self.seen.asked.lock().unwrap().iter().any(|(_, question)| question.contains(text))
        });
    }

    /// Posts a message as a gateway does; status, and whether it was taken durably.
    pub(super) fn post(&self, token: &str, id: u64, text: &str) -> (u16, bool) {
        let update = json!({ "update_id": id, "message": {
            "message_id": id, "date": 1_700_000_000, "text": text,
            "chat": { "id": 777, "type": "private", "first_name": "Alice" },
            "from": { "id": 777, "is_bot": false, "first_name": "Alice" },
        } });
        let secret = format!("X-Telegram-Bot-Api-Secret-Token: {}", webhook_secret(token, Some(777)));
        let (status, headers, _) = self.request(WEBHOOK_PORT, "POST", WEBHOOK_PATH, &secret, Some(&update));
        (
            status,
            headers.iter().any(|line| line.eq_ignore_ascii_case("x-openclaw-delivery-accepted: durable")),
        )
    }

    /// Posts a message until it is taken: after a new start, and with a new secret, the webhook comes a little after the rest.
    pub(super) fn say(&self, token: &str, id: u64, text: &str) {
        wait(&format!("{text:?} is taken"), || self.post(token, id, text) == (200, true));
    }

    /// Posts a message until it is refused, as the worker runs and is of somebody else.
    pub(super) fn is_refused(&self, token: &str, id: u64, text: &str) {
        wait(&format!("{text:?} is refused"), || self.post(token, id, text) == (401, false));
    }

    /// Asks with a token.
    pub(super) fn ask(&self, token: &str, path: &str, body: &Value) -> (u16, Value) {
        let authorization = format!("Authorization: Bearer {token}");
        let (status, _, body) = self.request(CONTROL_PORT, "POST", path, &authorization, Some(body));
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn rpc(&self, token: &str, method: &str, params: Value) -> (u16, Value) {
        self.ask(token, "/api/v1/admin/rpc", &json!({ "method": method, "params": params }))
    }

    /// Has it say something at a time, in seconds since 1970.
    pub(super) fn plan(&self, token: &str, at: u64, text: &str) {
        let output =
            std::process::Command::new("date").args(["--utc", "+%FT%TZ", "-d", &format!("@{at}")]).output();
        let at = String::from_utf8(output.unwrap().stdout).unwrap();
        let job = json!({
            "name": "test", "schedule": { "kind": "at", "at": at.trim() }, "sessionTarget": "isolated",
            "payload": { "kind": "agentTurn", "message": text },
            "delivery": { "mode": "announce", "channel": "telegram", "to": "777" },
        });
        let (status, answer) = self.rpc(token, "cron.add", job);
        assert_eq!(status, 200, "{answer}");
    }

    /// When its scheduler wants to go on, in seconds since 1970.
    pub(super) fn next_wake(&self, token: &str) -> Option<u64> {
        let (status, answer) = self.rpc(token, "cron.status", json!({}));
        assert_eq!(status, 200, "{answer}");
        Some(answer["payload"]["nextWakeAtMs"].as_u64()? / 1000)
    }

    pub(super) fn wait_for_plan(&self, token: &str) {
        wait("something is planned", || self.next_wake(token).is_some());
    }

    pub(super) fn probe(&self, path: &str) -> u16 {
        self.request(CONTROL_PORT, "GET", path, "", None).0
    }

    /// Status, head and body of the answer; zeros where there is none.
    fn request(
        &self,
        port: u16,
        method: &str,
        path: &str,
        header: &str,
        body: Option<&Value>,
    ) -> (u16, Vec<String>, Vec<u8>) {
        let answer = self.request_or_none(port, method, path, header, body);
        answer.unwrap_or_default()
    }

    fn request_or_none(
        &self,
        port: u16,
        method: &str,
        path: &str,
        header: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Vec<String>, Vec<u8>)> {
        let mut stream = self.namespace.inside(|| TcpStream::connect(("127.0.0.1", port))).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut reader = BufReader::new(stream);
        let lines = head_of(&mut reader)?;
        let status = lines.first()?.split(' ').nth(1)?.parse().ok()?;
        let length = content_length(&lines);
        let mut body = Vec::new();
        match length {
            Some(length) => reader.take(length).read_to_end(&mut body).ok()?,
            None => reader.read_to_end(&mut body).ok()?,
        };
        Some((status, lines, body))
    }
}

impl Seen {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some(lines) = head_of(&mut reader) {
            let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
            let mut body = vec![0; usize::try_from(content_length(&lines).unwrap_or(0)).unwrap()];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (kind, text) = match path.strip_prefix("/telegram/bot") {
                Some(call) => ("application/json", self.telegram(call, &body)),
                None => ("text/event-stream", self.model(&lines, &body)),
            };
            let length = text.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{text}");
            if stream.write_all(head.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn telegram(&self, call: &str, body: &Value) -> String {
        let (token, method) = call.split_once('/').unwrap();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let chat = json!({ "id": 777, "type": "private", "first_name": "Alice" });
        let result = match method {
            "getMe" => json!({ "id": 1, "is_bot": true, "first_name": "Bot", "username": "test_bot" }),
            "sendMessage" => {
                let mut sent = self.sent.lock().unwrap();
                sent.push((token.to_owned(), text("chat_id"), text("text")));
                json!({ "message_id": sent.len(), "date": 1_700_000_000, "chat": chat, "text": text("text") })
            }
            _ => json!(true),
        };
        json!({ "ok": true, "result": result }).to_string()
    }

    /// Repeats the word that was said last.
    fn model(&self, lines: &[String], body: &Value) -> String {
        let key =
            lines.iter().find_map(|line| line.strip_prefix("x-api-key: ")).unwrap_or_default().to_owned();
        // It adds messages of its own, also after the person's.
        let question = body["messages"].to_string();
        let word = WORDS.iter().rev().find(|word| question.contains(**word)).unwrap_or(&"something else");
        self.asked.lock().unwrap().push((key, question.clone()));
        let _thought = self.thinking.lock().unwrap();
        let usage = json!({ "input_tokens": 10, "output_tokens": 5 });
        let message = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": body["model"],
            "stop_reason": null, "stop_sequence": null, "usage": usage,
        });
        let delta = json!({ "type": "text_delta", "text": format!("answer to {word}") });
        let events = [
            json!({ "type": "message_start", "message": message }),
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": delta }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": usage }),
            json!({ "type": "message_stop" }),
        ];
        let line = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
        events.iter().map(line).collect()
    }
}

/// The lines before a body; nothing at the end of a connection.
fn head_of(reader: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            text => lines.push(text.to_owned()),
        }
    }
}

fn content_length(lines: &[String]) -> Option<u64> {
    let value = |line: &String| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok()).flatten()
    };
    lines.iter().find_map(value)
}

#[track_caller]
fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
