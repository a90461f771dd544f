//! The Bot API, as far as a worker may use it: with its own person, and without the bot's token.
//!
//! | file | does |
//! |---|---|
//! | `methods` | what may be called |
//! | `parameters` | reads parameters, and lets only those through that are about the worker's own chat |
//! | `parts` | uploads, passed on as they come |
//! | `pass_on` | the call to Telegram |
//! | `files` | which files a worker may download |

mod files;
mod methods;
mod parameters;
mod parts;
mod pass_on;

use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use super::Context;
use super::outgoing::{Body, json_response};
use super::settings::{Person, Settings, Worker};

pub(super) use files::FilesSeen;
use methods::{Does, Method};
use parameters::Parameters;

/// An answer of the gateway's own that says no, in the Bot API's form.
#[derive(Debug)]
struct Refused {
    code: u16,
    description: String,
    /// After how many seconds it may be tried again.
    retry_after: Option<u64>,
}

impl Refused {
    fn new(code: u16, description: impl Into<String>) -> Refused {
        Refused { code, description: description.into(), retry_after: None }
    }

    fn too_many(seconds: u64) -> Refused {
        let description = format!("Too Many Requests: retry after {seconds}");
        Refused { retry_after: Some(seconds), ..Refused::new(429, description) }
    }

    fn bad_request(what: impl std::fmt::Display) -> Refused {
        Refused::new(400, format!("Bad Request: {what}"))
    }

    fn forbidden(what: impl std::fmt::Display) -> Refused {
        Refused::new(403, format!("Forbidden: {what}"))
    }

    /// The gateway's own token is refused, which says nothing of the worker's.
    fn no_access() -> Refused {
        let description = "Service Unavailable: Telegram does not take the gateway's token".to_owned();
        Refused { retry_after: Some(5), ..Refused::new(503, description) }
    }

    fn into_response(self) -> Response<Body> {
        let mut body = json!({ "ok": false, "error_code": self.code, "description": self.description });
        if let Some(seconds) = self.retry_after {
            body["parameters"] = json!({ "retry_after": seconds });
        }
        let mut response = json_response(&body);
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::BAD_GATEWAY);
        match self.retry_after {
            Some(seconds) => with_retry_after(response, seconds),
            None => response,
        }
    }
}

fn ok(result: serde_json::Value) -> Response<Body> {
    json_response(&json!({ "ok": true, "result": result }))
}

/// Answers a worker's request; `path` is what follows `/telegram`.
pub(super) async fn answer(
    context: &Arc<Context>,
    source: Ipv4Addr,
    path: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let settings = context.settings();
    let (person, worker, call) = match identify(&settings, source, path) {
        Ok(identified) => identified,
        Err(refused) => return refused.into_response(),
    };
    let user = &person.served.user;
    if let Err(seconds) = context.bot_api_pacing.take(worker.assigned.instance_id) {
        context.metrics.called(user, "too_many", 429);
        return Refused::too_many(seconds).into_response();
    }
    let (name, answered) = match call {
        Asked::File(path) => ("file", pass_on::download(context, &settings, worker, path, &request).await),
        Asked::Method(name) => match methods::find(name) {
            Some(method) => {
                (method.name, carry_out(context, &settings, (person, worker), method, request).await)
            }
            None => ("other", Err(Refused::new(404, "Not Found: this method is not for workers"))),
        },
    };
    let response = answered.unwrap_or_else(Refused::into_response);
    context.metrics.called(user, name, response.status().as_u16());
    response
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked<'a> {
    Method(&'a str),
    File(&'a str),
}

fn identify<'a, 'b>(
    settings: &'a Settings,
    source: Ipv4Addr,
    path: &'b str,
) -> Result<(&'a Person, &'a Worker, Asked<'b>), Refused> {
    let found = settings.by_address(source);
    let (person, worker) = found.ok_or_else(|| Refused::forbidden("this address is no worker's"))?;
    let (rest, is_file) = match path.strip_prefix("/file/bot") {
        Some(rest) => (Some(rest), true),
        None => (path.strip_prefix("/bot"), false),
    };
    let (token, rest) =
        rest.and_then(|rest| rest.split_once('/')).ok_or_else(|| Refused::new(404, "Not Found"))?;
    if !worker.has_bot_token(token) {
        return Err(Refused::new(401, "Unauthorized"));
    }
    Ok((person, worker, if is_file { Asked::File(rest) } else { Asked::Method(rest) }))
}

async fn carry_out(
    context: &Arc<Context>,
    settings: &Settings,
    (person, worker): (&Person, &Worker),
    method: &'static Method,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    match method.does {
        // The bot is everybody's, and the gateway takes its updates.
        Does::AnswerTrue => Ok(ok(json!(true))),
        Does::AnswerCommands => Ok(ok(json!([]))),
        Does::AnswerWebhook => Ok(ok(json!({
            "url": format!("http://{}:{}/", worker.assigned.ip, mvm_protocol::openclaw::WEBHOOK_PORT),
            "has_custom_certificate": false,
            "pending_update_count": 0,
        }))),
        Does::Refuse => Err(Refused::forbidden("the gateway takes this bot's updates")),
        Does::Plain | Does::ToChat | Does::Say => {
            let chat = context.claims.telegram_of(person);
            let chat = match (chat, method.does) {
                (Some(chat), _) => chat,
                // What may be asked before anybody is served.
                (None, Does::Plain) => 0,
                (None, _) => return Err(Refused::forbidden("nobody is served by this worker yet")),
            };
            if method.does == Does::Say {
                context.typing.hide(chat);
            }
            let parameters = Parameters::of_query(request.uri().query(), chat)?;
            if parts::is_multipart(request.headers()) {
                let upload = parts::Upload::new(request, parameters, method)?;
                return pass_on::upload(context, settings, method, upload).await;
            }
            let parameters = parameters.with_body(request).await?.complete(method)?;
            pass_on::call(context, worker, method, parameters).await
        }
    }
}

/// Says a time to wait as HTTP does, too.
fn with_retry_after(mut response: Response<Body>, seconds: u64) -> Response<Body> {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}
