//! The call to Telegram, with the bot's token.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method as HttpMethod, Request, Response, StatusCode};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::Context;
use super::super::outgoing::{Body, OutgoingError, Timely, full, in_full};
use super::super::settings::{BOT_TOKEN, BotToken, Settings, Worker};
use super::methods::Method;
use super::parts::Upload;
use super::{Refused, with_retry_after};
use crate::lock;

/// How long Telegram may take with a call, or between two pieces of a file, and with an upload.
const CALL: Duration = Duration::from_secs(60);
const UPLOAD: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The longest answer that is none of a file.
const LONGEST_ANSWER: usize = 4 << 20;

/// Passes a call on. What was not sent, or was too much, is tried again; what may have been carried out is not. Where the
/// token is refused it waits for another one.
pub(super) async fn call(
    context: &Context,
    worker: &Worker,
    method: &Method,
    parameters: Map<String, Value>,
) -> Result<Response<Body>, Refused> {
    let body = Bytes::from(Value::Object(parameters).to_string());
    let (deadline, mut pause) = (Instant::now() + context.config.pace.patience, FIRST_PAUSE);
    let mut changes = context.settings.subscribe();
    loop {
        // As they are now: the token of the try before may be revoked.
        let settings = Arc::clone(&changes.borrow_and_update());
        let uri = format!("{}/bot{}/{}", settings.endpoints.telegram, bot(&settings)?.expose(), method.name);
        let request = Request::builder()
            .method(HttpMethod::POST)
            .uri(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(full(body.clone()))
            .map_err(|_| Refused::new(502, "Bad Gateway: the endpoint is no URL"))?;
        let wait = match context.outgoing.send(request, CALL).await {
            Ok(response) => {
                let (status, answer) = whole(response).await?;
                if is_of_the_token(status) {
                    if !changes.has_changed().unwrap_or_default() {
                        context.key_refused(&settings, BOT_TOKEN);
                    }
                    match timeout_at(deadline, changes.changed()).await {
                        Ok(Ok(())) => continue,
                        _ => return Err(Refused::no_access()),
                    }
                }
                match retry_after(status, &answer) {
                    Some(wait) if Instant::now() + wait <= deadline => wait,
                    wait => {
                        if method.name == "getFile" {
                            remember_path(context, worker, &answer);
                        }
                        return Ok(answered(status, answer, wait));
                    }
                }
            }
            Err(OutgoingError::NotSent(_)) if Instant::now() + pause <= deadline => {
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            }
            Err(error) => return Err(bad_gateway(&error)),
        };
        sleep(wait).await;
    }
}

/// Passes an upload on as it comes. It comes once, so it is tried once.
pub(super) async fn upload(
    context: &Context,
    settings: &Settings,
    method: &Method,
    upload: Upload,
) -> Result<Response<Body>, Refused> {
    let bot = bot(settings)?;
    let uri = format!("{}/bot{}/{}", settings.endpoints.telegram, bot.expose(), method.name);
    let request =
        Request::builder().method(HttpMethod::POST).uri(uri).header(CONTENT_TYPE, upload.content_type()?);
    let (body, driving, why) = upload.into_body();
    let request = request.body(body).map_err(|_| Refused::new(502, "Bad Gateway: the endpoint is no URL"))?;
    let sending = context.outgoing.send(request, UPLOAD);
    let (mut sending, mut driving) = (std::pin::pin!(sending), std::pin::pin!(driving));
    let early = tokio::select! {
        sent = &mut sending => Some(sent),
        () = &mut driving => None,
    };
    let refused = lock(&why).take();
    if let Some(refused) = refused {
        return Err(refused);
    }
    let sent = match early {
        Some(sent) => sent,
        None => sending.await,
    };
    let sent = sent.map_err(|error| bad_gateway(&error))?;
    if is_of_the_token(sent.status()) {
        return Err(without_access(context, settings));
    }
    let (status, answer) = whole(sent).await?;
    let wait = retry_after(status, &answer);
    Ok(answered(status, answer, wait))
}

/// Passes a file on as it comes, if this worker has asked about it.
pub(super) async fn download(
    context: &Context,
    settings: &Settings,
    worker: &Worker,
    path: &str,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    if request.method() != HttpMethod::GET {
        return Err(Refused::new(405, "Method Not Allowed"));
    }
    if !context.files.has(worker.assigned.instance_id, path) {
        return Err(Refused::new(404, "Not Found: ask for the file by getFile first"));
    }
    let bot = bot(settings)?;
    let uri = format!("{}/file/bot{}/{path}", settings.endpoints.telegram, bot.expose());
    let outgoing = Request::builder().uri(uri).body(full(Bytes::new()));
    let outgoing = outgoing.map_err(|_| Refused::bad_request("file_path"))?;
    let response = context.outgoing.send(outgoing, CALL).await.map_err(|error| bad_gateway(&error))?;
    if response.status() == StatusCode::UNAUTHORIZED {
        return Err(without_access(context, settings));
    }
    let (head, body) = response.into_parts();
    let mut passed = Response::new(Timely::new(body, CALL).boxed_unsync());
    *passed.status_mut() = head.status;
    for name in [CONTENT_TYPE, CONTENT_LENGTH] {
        passed.headers_mut().extend(head.headers.get(&name).map(|value| (name.clone(), value.clone())));
    }
    Ok(passed)
}

fn bot(settings: &Settings) -> Result<&BotToken, Refused> {
    settings.bot.as_ref().ok_or_else(|| Refused::new(502, "Bad Gateway: the gateway has no bot token"))
}

/// Whether Telegram says of a method that the token is none: 404 where it does not look like one. Methods that it does not know
/// are not called. Of a file 404 says that it has gone.
fn is_of_the_token(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
}

fn without_access(context: &Context, settings: &Settings) -> Refused {
    context.key_refused(settings, BOT_TOKEN);
    Refused::no_access()
}

fn bad_gateway(error: &OutgoingError) -> Refused {
    Refused::new(502, format!("Bad Gateway: Telegram {error}"))
}

async fn whole(response: Response<Incoming>) -> Result<(StatusCode, Bytes), Refused> {
    let (head, body) = response.into_parts();
    let late = || Refused::new(502, "Bad Gateway: Telegram's answer does not end");
    let body = timeout(CALL, Limited::new(body, LONGEST_ANSWER).collect()).await.map_err(|_| late())?;
    let body = body.map_err(|error| Refused::new(502, format!("Bad Gateway: {}", in_full(&*error))))?;
    Ok((head.status, body.to_bytes()))
}

fn retry_after(status: StatusCode, answer: &[u8]) -> Option<Duration> {
    if status != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let answer: Value = serde_json::from_slice(answer).ok()?;
    answer["parameters"]["retry_after"].as_u64().map(Duration::from_secs)
}

fn answered(status: StatusCode, answer: Bytes, wait: Option<Duration>) -> Response<Body> {
    let mut response = Response::new(full(answer));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match wait {
        Some(wait) => with_retry_after(response, wait.as_secs()),
        None => response,
    }
}

fn remember_path(context: &Context, worker: &Worker, answer: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<Value>(answer) else { return };
    let path = answer["result"]["file_path"].as_str();
    // Only what can stand in a URL as it is.
    let is_plain = |path: &&str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-' | b'.');
        path.bytes().all(fits) && !path.split('/').any(|segment| matches!(segment, "" | "." | ".."))
    };
    if let Some(path) = path.filter(is_plain) {
        context.files.add(worker.assigned.instance_id, path);
    }
}
