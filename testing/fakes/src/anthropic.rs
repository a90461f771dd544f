//! The Messages API of Anthropic.

mod stream;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::recorded::{Fault, Recorded, lock};
use crate::server::{Body, Dropped, Server, full, read};

const VERSION: &str = "2023-06-01";
const LARGEST_BODY: usize = 32 << 20;
const MODELS: [&str; 6] = [
    "claude-opus-4-5-20251101",
    "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5-20251001",
    "claude-haiku-4-5",
    "claude-sonnet-4-5",
    "claude-sonnet-5",
];
/// What a request may say; anything else is refused.
const FIELDS: [&str; 20] = [
    "model",
    "messages",
    "max_tokens",
    "system",
    "metadata",
    "stop_sequences",
    "stream",
    "temperature",
    "top_k",
    "top_p",
    "tools",
    "tool_choice",
    "thinking",
    "service_tier",
    "container",
    "context_management",
    "mcp_servers",
    "output_config",
    "cache_control",
    "inference_geo",
];

/// A call as it came in.
#[derive(Debug, Clone)]
pub struct ModelCall {
    /// The path, as `/v1/messages`.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, null where there was none.
    pub body: Value,
    /// When.
    pub at: Instant,
}

/// A Messages API. It stops when this is dropped.
#[derive(Debug)]
pub struct ModelApi {
    model: Arc<Model>,
    server: Server,
}

#[derive(Debug)]
struct Model {
    recorded: Recorded<ModelCall>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    key: String,
    answer: Option<String>,
    cache: (u64, u64),
    pause: Duration,
}

impl ModelApi {
    /// Serves holders of `key` on `listener`.
    ///
    /// # Errors
    /// The listener or the thread cannot be set up.
    pub fn start(listener: TcpListener, key: &str) -> io::Result<ModelApi> {
        let state = Mutex::new(State { key: key.to_owned(), ..State::default() });
        let model = Arc::new(Model { recorded: Recorded::new(), state });
        let serving = Arc::clone(&model);
        let server = Server::start(listener, move |request| answer(Arc::clone(&serving), request))?;
        Ok(ModelApi { model, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// What goes into `endpoints.anthropic`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// What it answers from now on. Until then it repeats the last text of the user's.
    pub fn set_answer(&self, text: &str) {
        lock(&self.model.state).answer = Some(text.to_owned());
    }

    /// Tokens that every answer says were written to the cache, and read from it.
    pub fn set_cache_tokens(&self, written: u64, read: u64) {
        lock(&self.model.state).cache = (written, read);
    }

    /// How long it waits between the events of a stream.
    pub fn set_pause(&self, pause: Duration) {
        lock(&self.model.state).pause = pause;
    }

    /// Takes `key`, and none that it took before.
    pub fn set_key(&self, key: &str) {
        lock(&self.model.state).key = key.to_owned();
    }

    /// Every call so far, those with a wrong key left out.
    pub fn calls(&self) -> Vec<ModelCall> {
        self.model.recorded.all()
    }

    /// Blocks until the calls are as wanted.
    ///
    /// # Errors
    /// The calls that came in this time, which are not.
    pub fn wait_for(
        &self,
        wanted: impl Fn(&[ModelCall]) -> bool,
        limit: Duration,
    ) -> Result<Vec<ModelCall>, Vec<ModelCall>> {
        self.model.recorded.wait_for(wanted, limit)
    }

    /// The next `times` calls of `path` (as `/v1/messages`) go wrong, after those ordered before.
    pub fn order(&self, path: &str, fault: Fault, times: usize) {
        self.model.recorded.order(path, fault, times);
    }
}

/// An answer that says no.
#[derive(Debug)]
struct Refused {
    status: u16,
    kind: &'static str,
    message: String,
}

impl Refused {
    fn invalid(message: impl Into<String>) -> Refused {
        Refused { status: 400, kind: "invalid_request_error", message: message.into() }
    }

    fn into_response(self) -> Response<Body> {
        let body = json!({
            "type": "error",
            "error": { "type": self.kind, "message": self.message },
            "request_id": "req_fake",
        });
        respond(self.status, &body)
    }
}

fn respond(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("request-id", HeaderValue::from_static("req_fake"));
    headers.insert("anthropic-organization-id", HeaderValue::from_static("org_fake"));
    response
}

async fn answer(model: Arc<Model>, request: Request<Incoming>) -> Result<Response<Body>, Dropped> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let state = lock(&model.state).clone();
    if let Err(refused) = check_head(&head.headers, &state) {
        return Ok(refused.into_response());
    }
    let fault = model.recorded.next_fault(&path);
    if fault == Some(Fault::DropBefore) {
        return Err(Dropped);
    }
    let body = match parse(body, &head.headers, &head.method).await {
        Ok(body) => body,
        Err(refused) => return Ok(refused.into_response()),
    };
    let at = Instant::now();
    model.recorded.add(ModelCall { path: path.clone(), headers: head.headers, body: body.clone(), at });
    match fault {
        Some(Fault::DropAfter) => return Err(Dropped),
        Some(Fault::Slow(time)) => sleep(time).await,
        Some(Fault::TooManyRequests { retry_after }) => {
            let message = "This request would exceed your organization's rate limit".to_owned();
            let mut response = Refused { status: 429, kind: "rate_limit_error", message }.into_response();
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after));
            return Ok(response);
        }
        Some(Fault::ServerError) => {
            let message = "Internal server error".to_owned();
            return Ok(Refused { status: 500, kind: "api_error", message }.into_response());
        }
        Some(Fault::Overloaded) => {
            let message = "Overloaded".to_owned();
            return Ok(Refused { status: 529, kind: "overloaded_error", message }.into_response());
        }
        Some(Fault::DropBefore) | None => {}
    }
    Ok(match (head.method, path.as_str()) {
        (Method::POST, "/v1/messages") => messages(&body, &state).unwrap_or_else(Refused::into_response),
        (Method::POST, "/v1/messages/count_tokens") => match check_messages(&body) {
            Ok(()) => respond(200, &json!({ "input_tokens": input_tokens(&body) })),
            Err(refused) => refused.into_response(),
        },
        (Method::GET, "/v1/models") => {
            let models: Vec<Value> = MODELS.iter().map(|id| described(id)).collect();
            let (first, last) = (MODELS.first(), MODELS.last());
            respond(200, &json!({ "data": models, "has_more": false, "first_id": first, "last_id": last }))
        }
        (Method::GET, path) => {
            let wanted = path.strip_prefix("/v1/models/");
            match MODELS.iter().find(|id| Some(**id) == wanted) {
                Some(id) => respond(200, &described(id)),
                None => not_found(path).into_response(),
            }
        }
        (_, path) => not_found(path).into_response(),
    })
}

fn not_found(what: &str) -> Refused {
    Refused { status: 404, kind: "not_found_error", message: format!("not found: {what}") }
}

fn described(id: &str) -> Value {
    json!({ "type": "model", "id": id, "display_name": id, "created_at": "2025-09-29T00:00:00Z" })
}

fn check_head(headers: &HeaderMap, state: &State) -> Result<(), Refused> {
    let unauthorized =
        |message: &str| Refused { status: 401, kind: "authentication_error", message: message.to_owned() };
    let key = headers.get("x-api-key").ok_or_else(|| unauthorized("x-api-key header is required"))?;
    if key.as_bytes() != state.key.as_bytes() {
        return Err(unauthorized("invalid x-api-key"));
    }
    if headers.get("anthropic-version").is_none_or(|version| version != VERSION) {
        return Err(Refused::invalid("anthropic-version: header is required"));
    }
    Ok(())
}

async fn parse(body: Incoming, headers: &HeaderMap, method: &Method) -> Result<Value, Refused> {
    let body = read(body, LARGEST_BODY).await.map_err(|message| Refused {
        status: 413,
        kind: "request_too_large",
        message,
    })?;
    if method == Method::GET {
        return Ok(Value::Null);
    }
    let is_json =
        headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return Err(Refused::invalid("content-type: must be application/json"));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Refused::invalid(format!("request body is not JSON: {error}")))
}

fn messages(body: &Value, state: &State) -> Result<Response<Body>, Refused> {
    check_messages(body)?;
    if body["max_tokens"].as_u64().is_none_or(|most| most == 0) {
        return Err(Refused::invalid("max_tokens: Field required"));
    }
    let model = body["model"].as_str().unwrap_or_default();
    if !MODELS.contains(&model) {
        return Err(not_found(&format!("model: {model}")));
    }
    let text = state.answer.clone().unwrap_or_else(|| last_text(body));
    let answer =
        stream::Answer { model: model.to_owned(), text, input: input_tokens(body), cache: state.cache };
    if body["stream"] == json!(true) {
        return Ok(answer.into_events(state.pause));
    }
    Ok(respond(200, &answer.whole()))
}

fn check_messages(body: &Value) -> Result<(), Refused> {
    let object = body.as_object().ok_or_else(|| Refused::invalid("the body is no object"))?;
    if let Some(unknown) = object.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(Refused::invalid(format!("{unknown}: Extra inputs are not permitted")));
    }
    if !body["model"].is_string() {
        return Err(Refused::invalid("model: Field required"));
    }
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| Refused::invalid("messages: at least one message is required"))?;
    for (index, message) in messages.iter().enumerate() {
        let role_is_known = matches!(message["role"].as_str(), Some("user" | "assistant"));
        let is_block = |block: &Value| block["type"].is_string();
        let content = &message["content"];
        let has_content =
            content.is_string() || content.as_array().is_some_and(|blocks| blocks.iter().all(is_block));
        if !role_is_known || !has_content {
            return Err(Refused::invalid(format!("messages.{index}: a role and content are required")));
        }
    }
    Ok(())
}

/// The last text that the user said.
fn last_text(body: &Value) -> String {
    let messages = body["messages"].as_array().into_iter().flatten().rev();
    messages
        .filter(|message| message["role"] == "user")
        .map(|message| texts(&message["content"]))
        .next()
        .unwrap_or_default()
}

fn texts(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// A token a word.
fn tokens(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

fn input_tokens(body: &Value) -> u64 {
    let messages = body["messages"].as_array().into_iter().flatten();
    let said: u64 = messages.map(|message| tokens(&texts(&message["content"]))).sum();
    said + tokens(&texts(&body["system"]))
}
