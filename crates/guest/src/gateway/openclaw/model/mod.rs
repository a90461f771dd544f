//! The model API for workers: their own token in, the real key out, and what it costs counted.
//!
//! | file | does |
//! |---|---|
//! | `calls` | how many a worker has in hand |
//! | `meter` | reads from an answer on its way what it used |
//! | `prices` | what that costs, by estimate |
//! | `spending` | what each person has used, by month, and kept |

mod calls;
mod meter;
mod prices;
mod spending;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{self, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::super::headers;
use super::Context;
use super::outgoing::{Body, OutgoingError, Timely, json_response};
use super::settings::{MODEL_KEY, Person, Settings, Worker};

pub(super) use calls::Calls;
use meter::{Metered, ReadingOn};
pub(super) use spending::Spending;

/// A model may think for so long before it says anything, and between two words.
const SILENCE: Duration = Duration::from_secs(300);
/// What the API takes.
const LARGEST: usize = 32 << 20;
/// When a worker may ask again, in seconds, that has as many calls in hand as it may, or when the key is refused.
const BUSY: u64 = 5;
/// Whose key it is, which is nothing for workers.
const ORGANIZATION: HeaderName = HeaderName::from_static("anthropic-organization-id");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// An answer of the gateway's own that says no, in the API's form.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// After how many seconds it may be tried again.
    retry_after: Option<u64>,
}

impl Refused {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Refused {
        Refused { status, kind, message: message.into(), retry_after: None }
    }

    fn too_many(message: impl Into<String>, seconds: u64) -> Refused {
        let refused = Refused::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Refused { retry_after: Some(seconds), ..refused }
    }

    fn into_response(self) -> Response<Body> {
        let body = json!({ "type": "error", "error": { "type": self.kind, "message": self.message } });
        let mut response = json_response(&body);
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Answers a worker's request; `path` is what follows `/anthropic`.
pub(super) async fn answer(
    context: &Arc<Context>,
    source: Ipv4Addr,
    path: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let settings = context.settings();
    let (person, worker) = match identify(&settings, source, request.headers()) {
        Ok(identified) => identified,
        Err(refused) => return refused.into_response(),
    };
    let user = &person.served.user;
    if let Err(seconds) = context.model_pacing.take(worker.assigned.instance_id) {
        context.metrics.called(user, "too_many", 429);
        let text = "this worker makes too many calls; five a second are given to it";
        return Refused::too_many(text, seconds).into_response();
    }
    let (name, answered) = match (request.method(), path) {
        (&Method::POST, "/v1/messages") => {
            ("messages", messages(context, (person, worker), path, request).await)
        }
        (&Method::POST, "/v1/messages/count_tokens") => {
            ("count_tokens", pass_on(context, &settings, path, request).await.map(unmetered))
        }
        (&Method::GET, path) if is_about_models(path) => {
            ("models", pass_on(context, &settings, path, request).await.map(unmetered))
        }
        _ => {
            let text = "this is not for workers: messages, count_tokens and models are";
            ("other", Err(Refused::new(StatusCode::NOT_FOUND, "not_found_error", text)))
        }
    };
    let response = answered.unwrap_or_else(Refused::into_response);
    context.metrics.called(user, name, response.status().as_u16());
    response
}

fn identify<'a>(
    settings: &'a Settings,
    source: Ipv4Addr,
    headers: &HeaderMap,
) -> Result<(&'a Person, &'a Worker), Refused> {
    let (person, worker) = settings.by_address(source).ok_or_else(|| {
        Refused::new(StatusCode::FORBIDDEN, "permission_error", "this address is no worker's")
    })?;
    let key = headers.get(API_KEY).and_then(|key| key.to_str().ok());
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    match key.or(bearer) {
        Some(token) if worker.has_token(token) => Ok((person, worker)),
        _ => Err(Refused::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key")),
    }
}

/// The list, or one of plain name.
fn is_about_models(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    match path.strip_prefix("/v1/models") {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix('/')
            .is_some_and(|id| !id.is_empty() && id.bytes().all(plain) && id != "." && id != ".."),
        None => false,
    }
}

async fn messages(
    context: &Arc<Context>,
    (person, worker): (&Person, &Worker),
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let user = person.served.user.clone();
    // Before it is looked what was spent: what those before it used is counted when there is a place.
    let place = context.model_calls.take(worker.assigned.instance_id).ok_or_else(|| {
        let text = format!("this worker has {} calls in hand, and may not have more", calls::PER_WORKER);
        Refused::too_many(text, BUSY)
    })?;
    if person.served.monthly_limit_cents.is_some() && !context.spending.is_known() {
        let text = spending::UNKNOWN_TEXT;
        return Err(Refused::new(StatusCode::BAD_REQUEST, "invalid_request_error", text));
    }
    if let Some(limit) = person.served.monthly_limit_cents
        && context.spending.reached(&user, limit)
    {
        context.metrics.over_limit(&user);
        // Of a kind that clients show as it is, and do not try again.
        let text = spending::limit_text(limit);
        return Err(Refused::new(StatusCode::BAD_REQUEST, "invalid_request_error", text));
    }
    let (asking, path) = (Arc::clone(context), path.to_owned());
    let asked = async move {
        // With the settings that it came with, or later ones.
        let settings = asking.settings();
        let response = pass_on(&asking, &settings, &path, request).await?;
        if !response.status().is_success() {
            return Ok(unmetered(response));
        }
        let (head, body) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_stream = kind.starts_with(b"text/event-stream");
        let (tasks, ending) = (asking.gateway.connections.clone(), asking.gateway.ending.clone());
        let reading_on = ReadingOn { tasks, ending };
        let told = move |used: meter::Used| {
            asking.spending.add(&user, &used);
            drop(place);
        };
        let metered = Metered::new(Timely::new(body, SILENCE), is_stream, reading_on, told);
        Ok(Response::from_parts(head, metered.boxed_unsync()))
    };
    // It goes on without a client that leaves, as it costs what it costs.
    let asked = context.gateway.ending.clone().run_until_cancelled_owned(asked);
    match context.gateway.connections.spawn(asked).await {
        Ok(Some(answered)) => answered,
        _ => Err(Refused::new(StatusCode::BAD_GATEWAY, "api_error", "the gateway ends")),
    }
}

fn unmetered(response: Response<Incoming>) -> Response<Body> {
    response.map(|body| Timely::new(body, SILENCE).boxed_unsync())
}

/// Passes a request on as it comes, with the real key.
async fn pass_on(
    context: &Context,
    settings: &Settings,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Refused> {
    let bad_gateway = |text: String| Refused::new(StatusCode::BAD_GATEWAY, "api_error", text);
    let key = settings.model_key.as_deref().and_then(|key| HeaderValue::from_str(key).ok());
    let key = key.ok_or_else(|| bad_gateway("the gateway has no anthropic/ANTHROPIC_API_KEY".to_owned()))?;
    let (head, body) = request.into_parts();
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("{}{path}{query}", settings.endpoints.anthropic);
    let outgoing = Request::builder().method(head.method).uri(uri);
    let body = Limited::new(body, LARGEST).boxed_unsync();
    let mut outgoing = outgoing.body(body).map_err(|_| bad_gateway("the endpoint is no URL".to_owned()))?;
    *outgoing.headers_mut() = toward_service(head.headers, key);
    let answered = context.outgoing.send(outgoing, SILENCE).await;
    let mut response = answered.map_err(|error| match error {
        OutgoingError::Lost(text) if text.contains("length limit") => Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            "the request has more than 32 MB",
        ),
        error => bad_gateway(format!("the model API {error}")),
    })?;
    if response.status() == StatusCode::UNAUTHORIZED {
        // The gateway's key and not the worker's token; clients try this again.
        context.key_refused(settings, MODEL_KEY);
        let text = "the model API does not serve the gateway for the moment";
        let refused = Refused::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", text);
        return Err(Refused { retry_after: Some(BUSY), ..refused });
    }
    headers::toward_client(response.headers_mut());
    for name in [header::SET_COOKIE, ORGANIZATION] {
        response.headers_mut().remove(name);
    }
    Ok(response)
}

/// What the service is told: nothing of how the worker reached the gateway. Answers come plain, so that they can be read.
fn toward_service(mut headers: HeaderMap, key: HeaderValue) -> HeaderMap {
    headers::toward_client(&mut headers);
    for name in [header::HOST, header::COOKIE, header::AUTHORIZATION, header::EXPECT, header::FORWARDED] {
        headers.remove(name);
    }
    let forwarded: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in forwarded {
        headers.remove(name);
    }
    headers.insert(API_KEY, key);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}
