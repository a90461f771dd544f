//! Calls of the gateway's own to the Bot API.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::super::outgoing::{Outgoing, OutgoingError, full, in_full};
use super::super::settings::{BotToken, Settings};

/// More than a hundred updates of the greatest length.
const LONGEST_ANSWER: usize = 8 << 20;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The bot's or the request's fault, or too much of it.
    #[error("Telegram answers {code}: {description}")]
    Refused {
        /// As of HTTP.
        code: u16,
        /// Telegram's words.
        description: String,
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// No answer.
    #[error("Telegram {0}")]
    Outgoing(#[from] OutgoingError),
    /// An answer that is none.
    #[error("Telegram's answer is not understood: {0}")]
    Nonsense(String),
}

/// What the Bot API says to everything.
#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error_code: u16,
    #[serde(default)]
    description: String,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize, Default)]
struct Parameters {
    #[serde(default)]
    retry_after: Option<u64>,
}

/// Calls a method, `limit` at most.
///
/// # Errors
/// [`ApiError`]
pub(super) async fn call(
    outgoing: &Outgoing,
    settings: &Settings,
    bot: &BotToken,
    method: &str,
    parameters: &Value,
    limit: Duration,
) -> Result<Value, ApiError> {
    let uri = format!("{}/bot{}/{method}", settings.endpoints.telegram, bot.expose());
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(full(parameters.to_string()))
        .map_err(|error| ApiError::Nonsense(error.to_string()))?;
    let response = outgoing.send(request, limit).await?;
    let (status, body) = (response.status(), Limited::new(response.into_body(), LONGEST_ANSWER));
    let body = timeout(limit, body.collect()).await.map_err(|_| OutgoingError::Late(limit))?;
    let body = body.map_err(|error| OutgoingError::Lost(in_full(&*error)))?.to_bytes();
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| ApiError::Nonsense(format!("{status}: {error}")))?;
    if answer.ok {
        return Ok(answer.result);
    }
    let retry_after = answer.parameters.retry_after.map(Duration::from_secs);
    Err(ApiError::Refused { code: answer.error_code, description: answer.description, retry_after })
}
