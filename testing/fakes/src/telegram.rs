//! The Bot API of Telegram.

mod methods;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::parameters;
use crate::recorded::{Fault, Recorded, lock};
use crate::server::{Body, Dropped, Server, full, read};

/// What the Bot API takes in a body.
const LARGEST_BODY: usize = 50 << 20;

/// A call as it came in.
#[derive(Debug, Clone)]
pub struct BotCall {
    /// As Telegram spells it; `file` for a download.
    pub method: String,
    /// From the query and the body. Of a form and of parts they are all strings.
    pub params: Map<String, Value>,
    /// Files by the name of their part.
    pub files: BTreeMap<String, Vec<u8>>,
    /// When.
    pub at: Instant,
}

impl BotCall {
    /// The chat that it names, as number or as text.
    pub fn chat_id(&self) -> Option<i64> {
        let chat = self.params.get("chat_id")?;
        chat.as_i64().or_else(|| chat.as_str()?.parse().ok())
    }

    /// Its text, empty where it has none.
    pub fn text(&self) -> &str {
        self.params.get("text").and_then(Value::as_str).unwrap_or_default()
    }
}

/// A Bot API with one bot. It stops when this is dropped.
#[derive(Debug)]
pub struct BotApi {
    bot: Arc<Bot>,
    server: Server,
}

#[derive(Debug)]
struct Bot {
    recorded: Recorded<BotCall>,
    state: Mutex<State>,
    pushed: Notify,
}

#[derive(Debug, Default)]
struct State {
    tokens: BTreeSet<String>,
    updates: VecDeque<Value>,
    next_update: i64,
    next_message: i64,
    /// Which getUpdates is the newest.
    poll: u64,
    chats: BTreeSet<i64>,
    files: BTreeMap<String, Vec<u8>>,
    allowed: Option<Vec<String>>,
    webhook: String,
    mistakes: Vec<String>,
}

impl BotApi {
    /// Serves the bot of `token` on `listener`.
    ///
    /// # Errors
    /// The listener or the thread cannot be set up.
    pub fn start(listener: TcpListener, token: &str) -> io::Result<BotApi> {
        let state = State {
            tokens: BTreeSet::from([token.to_owned()]),
            next_update: 1000,
            next_message: 1,
            ..State::default()
        };
        let bot =
            Arc::new(Bot { recorded: Recorded::new(), state: Mutex::new(state), pushed: Notify::new() });
        let serving = Arc::clone(&bot);
        let server = Server::start(listener, move |request| answer(Arc::clone(&serving), request))?;
        Ok(BotApi { bot, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// What goes into `endpoints.telegram`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// A text message in the private chat of `user`. Returns its update's id.
    pub fn push_message(&self, user: i64, text: &str) -> i64 {
        let mut state = lock(&self.bot.state);
        let message_id = state.next_message;
        state.next_message += 1;
        drop(state);
        let name = format!("User {user}");
        self.push_update(json!({ "message": {
            "message_id": message_id, "date": unix_seconds(), "text": text,
            "from": { "id": user, "is_bot": false, "first_name": name },
            "chat": { "id": user, "type": "private", "first_name": name },
        }}))
    }

    /// Any update, without its id, which is returned.
    pub fn push_update(&self, mut update: Value) -> i64 {
        let mut state = lock(&self.bot.state);
        let id = state.next_update;
        state.next_update += 1;
        update["update_id"] = json!(id);
        for chat in ["message", "edited_message"].map(|kind| update[kind]["chat"]["id"].as_i64()) {
            state.chats.extend(chat);
        }
        state.updates.push_back(update);
        drop(state);
        self.bot.pushed.notify_waiters();
        id
    }

    /// Ids of updates that are not acknowledged.
    pub fn unacknowledged(&self) -> Vec<i64> {
        lock(&self.bot.state).updates.iter().filter_map(|update| update["update_id"].as_i64()).collect()
    }

    /// A file that getFile knows under this id.
    pub fn add_file(&self, file_id: &str, content: &[u8]) {
        lock(&self.bot.state).files.insert(file_id.to_owned(), content.to_vec());
    }

    /// Has a file go, as Telegram's do after a while.
    pub fn remove_file(&self, file_id: &str) {
        lock(&self.bot.state).files.remove(file_id);
    }

    /// Takes `token`, and none that it took before.
    pub fn set_token(&self, token: &str) {
        lock(&self.bot.state).tokens = BTreeSet::from([token.to_owned()]);
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<BotCall> {
        self.bot.recorded.all()
    }

    /// Calls of one method so far.
    pub fn calls_of(&self, method: &str) -> Vec<BotCall> {
        self.calls().into_iter().filter(|call| call.method == method).collect()
    }

    /// Blocks until the calls are as wanted.
    ///
    /// # Errors
    /// The calls that came in this time, which are not.
    pub fn wait_for(
        &self,
        wanted: impl Fn(&[BotCall]) -> bool,
        limit: Duration,
    ) -> Result<Vec<BotCall>, Vec<BotCall>> {
        self.bot.recorded.wait_for(wanted, limit)
    }

    /// The next `times` calls of `method` go wrong, after those ordered before.
    pub fn order(&self, method: &str, fault: Fault, times: usize) {
        self.bot.recorded.order(method, fault, times);
    }

    /// What callers did that no caller with its senses would: a webhook set by a bot that polls, two polls at once.
    pub fn mistakes(&self) -> Vec<String> {
        lock(&self.bot.state).mistakes.clone()
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An answer that says no.
#[derive(Debug)]
struct Refused {
    code: u16,
    description: String,
    retry_after: Option<u64>,
}

impl Refused {
    fn new(code: u16, description: impl Into<String>) -> Refused {
        Refused { code, description: description.into(), retry_after: None }
    }

    fn bad_request(what: impl std::fmt::Display) -> Refused {
        Refused::new(400, format!("Bad Request: {what}"))
    }
}

async fn answer(bot: Arc<Bot>, request: Request<Incoming>) -> Result<Response<Body>, Dropped> {
    let path = request.uri().path().to_owned();
    if let Some(rest) = path.strip_prefix("/file/bot") {
        return Ok(download(&bot, rest));
    }
    let Some((token, method)) = path.strip_prefix("/bot").and_then(|rest| rest.split_once('/')) else {
        return Ok(respond(Err(Refused::new(404, "Not Found"))));
    };
    if !lock(&bot.state).tokens.contains(token) {
        // All of a request is taken before it is refused.
        let _ = read(request.into_body(), LARGEST_BODY).await;
        return Ok(respond(Err(Refused::new(401, "Unauthorized"))));
    }
    let Some(method) = methods::spelling(method) else {
        return Ok(respond(Err(Refused::new(404, "Not Found: method not found"))));
    };
    let fault = bot.recorded.next_fault(method);
    if fault == Some(Fault::DropBefore) {
        return Err(Dropped);
    }
    let (head, body) = request.into_parts();
    let body = match read(body, LARGEST_BODY).await {
        Ok(body) => body,
        Err(error) => return Ok(respond(Err(Refused::new(413, error)))),
    };
    let (params, files) = match parameters::parse(head.uri.query(), &head.headers, body).await {
        Ok(parsed) => parsed,
        Err(error) => return Ok(respond(Err(Refused::bad_request(error)))),
    };
    let call = BotCall { method: method.to_owned(), params, files, at: Instant::now() };
    bot.recorded.add(call.clone());
    match fault {
        Some(Fault::Slow(time)) => sleep(time).await,
        Some(Fault::TooManyRequests { retry_after }) => {
            let mut refused = Refused::new(429, format!("Too Many Requests: retry after {retry_after}"));
            refused.retry_after = Some(retry_after);
            return Ok(respond(Err(refused)));
        }
        Some(Fault::ServerError) => return Ok(respond(Err(Refused::new(500, "Internal Server Error")))),
        Some(Fault::Overloaded) => return Ok(respond(Err(Refused::new(502, "Bad Gateway")))),
        Some(Fault::DropBefore | Fault::DropAfter) | None => {}
    }
    let result = if method == "getUpdates" {
        methods::get_updates(&bot, &call).await
    } else {
        methods::call(&mut lock(&bot.state), &call)
    };
    if fault == Some(Fault::DropAfter) { Err(Dropped) } else { Ok(respond(result)) }
}

fn respond(result: Result<Value, Refused>) -> Response<Body> {
    let (code, body) = match result {
        Ok(result) => (200, json!({ "ok": true, "result": result })),
        Err(Refused { code, description, retry_after }) => {
            let mut body = json!({ "ok": false, "error_code": code, "description": description });
            if let Some(seconds) = retry_after {
                body["parameters"] = json!({ "retry_after": seconds });
            }
            (code, body)
        }
    };
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

fn download(bot: &Bot, rest: &str) -> Response<Body> {
    let Some((token, path)) = rest.split_once('/') else {
        return respond(Err(Refused::new(404, "Not Found")));
    };
    let state = lock(&bot.state);
    if !state.tokens.contains(token) {
        return respond(Err(Refused::new(401, "Unauthorized")));
    }
    let params = Map::from_iter([("file_path".to_owned(), json!(path))]);
    let method = "file".to_owned();
    bot.recorded.add(BotCall { method, params, files: BTreeMap::new(), at: Instant::now() });
    let file = path.strip_prefix("documents/").and_then(|file_id| state.files.get(file_id));
    match file {
        Some(content) => Response::new(full(content.clone())),
        None => respond(Err(Refused::new(404, "Not Found"))),
    }
}
