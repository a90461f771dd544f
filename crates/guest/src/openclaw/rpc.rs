//! OpenClaw's admin RPC: one HTTP request on the loopback address a call.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

const PATH: &str = "/api/v1/admin/rpc";
/// How long a call may take. All that are made are answered from memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 4 * 1024 * 1024;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RpcError {
    /// Nobody listens.
    #[error("OpenClaw does not run")]
    Down,
    /// OpenClaw said no.
    #[error("{method}: {message}")]
    Refused {
        /// What was called.
        method: String,
        /// Its reason.
        message: String,
        /// When to try again, where it says so.
        retry_after: Option<Duration>,
    },
    /// No answer, or none that could be understood.
    #[error("{method}: {reason}")]
    Broken {
        /// What was called.
        method: String,
        /// What happened.
        reason: String,
    },
}

/// Where OpenClaw listens, and with what it is asked.
#[derive(Debug, Clone)]
pub(super) struct Rpc {
    /// On the loopback address.
    pub(super) port: u16,
    /// `gateway.auth.token`.
    pub(super) token: String,
    /// When whoever asks wants to be done, with all their calls.
    pub(super) until: Instant,
}

impl Rpc {
    /// Calls a method and gives its payload.
    pub(super) async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let broken = |reason: String| RpcError::Broken { method: method.to_owned(), reason };
        let body = json!({ "method": method, "params": params }).to_string();
        let patience = PATIENCE.min(self.until.saturating_duration_since(Instant::now()));
        let answer = match tokio::time::timeout(patience, self.exchange(body)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Exchange::Refused)) => return Err(RpcError::Down),
            Ok(Err(Exchange::Broken(reason))) => return Err(broken(reason)),
            Err(_) => return Err(broken(format!("no answer within {:.1} s", patience.as_secs_f64()))),
        };
        let (status, body) = answer;
        let Ok(mut answer) = serde_json::from_slice::<Value>(&body) else {
            return Err(broken(format!("answered with {status}")));
        };
        if answer["ok"] == true {
            return Ok(answer["payload"].take());
        }
        let error = &answer["error"];
        let message =
            error["message"].as_str().map_or_else(|| format!("answered with {status}"), str::to_owned);
        let retry_after = error["retryAfterMs"].as_u64().map(Duration::from_millis);
        Err(RpcError::Refused { method: method.to_owned(), message, retry_after })
    }

    async fn exchange(&self, body: String) -> Result<(hyper::StatusCode, Bytes), Exchange> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            let _ = connection.await;
        }));
        let request = Request::post(PATH)
            .header(HOST, "localhost")
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Exchange::Broken(error.to_string()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| Exchange::Broken(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }
}

/// Why there is no answer.
enum Exchange {
    Refused,
    Broken(String),
}

impl From<std::io::Error> for Exchange {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::ConnectionRefused {
            return Self::Refused;
        }
        Self::Broken(error.to_string())
    }
}

impl From<hyper::Error> for Exchange {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}
