//! Hands an update to a worker, which is woken for it.

use std::net::SocketAddrV4;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use mvm_model::InstanceSelector;
use mvm_model::routes::Target;
use mvm_protocol::openclaw::{WEBHOOK_PATH, WEBHOOK_PORT, webhook_secret};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::super::Context;
use super::super::outgoing::in_full;
use super::super::settings::Worker;
use crate::gateway::upstream;

/// How long a worker may take to write an update down.
const ANSWER: Duration = Duration::from_secs(60);

/// Returns when the worker has taken it durably. A worker that does not know yet that this chat is its user's takes nothing
/// of it.
///
/// # Errors
/// Why it has not, in words. It may have, where the answer is what went wrong.
pub(super) async fn hand_over(
    context: &Context,
    worker: &Worker,
    chat: i64,
    update: &Value,
) -> Result<(), String> {
    let assigned = &worker.assigned;
    let target = Target {
        pool_id: assigned.pool_id.clone(),
        instance_selector: InstanceSelector::ByInstance(assigned.instance_id),
        target_port: WEBHOOK_PORT,
    };
    let hold = context.gateway.holds.take(&target, Duration::MAX).await;
    let mut hold = hold.map_err(|error| error.to_string())?;
    let secret = webhook_secret(&worker.token, Some(chat));
    let address = SocketAddrV4::new(hold.guest_ip, WEBHOOK_PORT);
    let posting = async {
        let stream = upstream::connect(address, context.gateway.limits.connect).await;
        let stream = stream.map_err(|error| format!("nothing accepts connections on {address}: {error}"))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(WEBHOOK_PATH)
            .header(HOST, address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .header("x-telegram-bot-api-secret-token", secret)
            .body(Full::new(Bytes::from(update.to_string())))
            .map_err(|error| error.to_string())?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| in_full(&error))?;
        let _driving = AbortOnDropHandle::new(tokio::spawn(connection));
        sender.send_request(request).await.map_err(|error| in_full(&error))
    };
    let response = tokio::select! {
        posted = timeout(ANSWER, posting) => posted.unwrap_or_else(|_| Err("no answer in time".to_owned()))?,
        () = hold.gone() => return Err("the machine went to sleep or stopped".to_owned()),
    };
    judge(&response)
}

fn judge<B>(response: &Response<B>) -> Result<(), String> {
    let word = response.headers().get("x-openclaw-delivery-accepted").map(|word| word.as_bytes());
    match (response.status().is_success(), word) {
        (true, Some(b"durable")) => Ok(()),
        (true, _) => Err("it was answered, but not taken durably".to_owned()),
        (false, _) => Err(format!("it was answered {}", response.status())),
    }
}
