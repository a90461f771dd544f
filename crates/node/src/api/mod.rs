//! HTTP over the agent's Unix socket. What the paths are is listed in [`mvm_protocol::api`].

mod backup;
mod instances;
mod integrations;
mod logs;
mod node;
mod pools;
mod secrets;
mod stats;
mod status;
mod streams;
mod tenants;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use mvm_protocol::api::{ApiError, ErrorCode};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::machine::ActError;

type Shared = axum::extract::State<Arc<Agent>>;

/// Serves until told to stop.
///
/// # Errors
/// The listener's own.
pub async fn serve(
    agent: Arc<Agent>,
    listener: UnixListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/agent", get(node::info))
        .route("/v1/agent/stop", post(node::stop))
        .route("/v1/deploy", post(node::deploy))
        .route("/v1/change", post(node::change))
        .route("/v1/net/verify", post(node::verify))
        .route("/v1/events/{tenant}", get(tenants::events))
        .route("/v1/events/{tenant}/follow", get(tenants::follow_events))
        .route("/v1/status", get(status::node))
        .route("/v1/status/{tenant}", get(status::tenant))
        .route("/v1/tenants", get(tenants::list))
        .route("/v1/tenants/{tenant}", get(tenants::info).delete(tenants::destroy))
        .route("/v1/tenants/{tenant}/secrets", get(secrets::list).post(secrets::set))
        .route("/v1/tenants/{tenant}/manifest", get(tenants::manifest))
        .route("/v1/users", get(users::list))
        .route("/v1/users/{tenant}/{user}/link", post(users::link))
        .route("/v1/pools", get(tenants::pools))
        .route("/v1/pools/{tenant}/{pool}", get(tenants::pool).delete(pools::destroy))
        .route("/v1/pools/{tenant}/{pool}/build", post(pools::build))
        .route("/v1/pools/{tenant}/{pool}/rollback", post(pools::roll_back))
        .route("/v1/pools/{tenant}/{pool}/gc", post(pools::collect))
        .route("/v1/node/scrub", post(node::scrub))
        .route("/v1/pools/{tenant}/{pool}/scale", post(tenants::scale))
        .route("/v1/stats", get(stats::instances))
        .route("/v1/node", get(stats::info))
        .route("/v1/node/stats", get(stats::node))
        .route("/v1/node/disk", get(stats::disk))
        .route("/v1/instances", get(instances::list))
        .route("/v1/instances/{tenant}/{pool}/{instance}", get(instances::info).delete(instances::destroy))
        .route("/v1/instances/{tenant}/{pool}/{instance}/exec", post(streams::exec))
        .route("/v1/instances/{tenant}/{pool}/{instance}/copy", post(streams::copy))
        .route("/v1/instances/{tenant}/{pool}/{instance}/forward", post(streams::forward))
        .route("/v1/instances/{tenant}/{pool}/{instance}/logs", post(logs::show))
        .route("/v1/instances/{tenant}/{pool}/{instance}/backup", post(backup::back_up))
        .route("/v1/instances/{tenant}/{pool}/{instance}/restore", post(backup::restore))
        .route("/v1/pools/{tenant}/{pool}/restore", post(backup::restore_new))
        .route("/v1/instances/{tenant}/{pool}/{instance}/stats", get(stats::instance))
        .route("/v1/instances/{tenant}/{pool}/{instance}/{act}", post(instances::act))
        .fallback(no_such_path)
        .layer(axum::extract::DefaultBodyLimit::max(8 * 1024 * 1024))
        .with_state(agent);
    // Exec streams and deployments in progress do not hold the end up: machines go on, and clients see it.
    tokio::select! {
        served = axum::serve(listener, router) => served,
        () = stop.cancelled() => Ok(()),
    }
}

/// Events as lines, as they come.
fn lines<T: Serialize + Send + 'static>(events: UnboundedReceiver<T>) -> Response {
    let lines = UnboundedReceiverStream::new(events).map(|event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(line)
    });
    ([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn no_such_path() -> Failure {
    Failure(ApiError {
        code: ErrorCode::NotFound,
        message: "this agent's API has no such path; is the client of another version of mvm?".to_owned(),
        key: None,
    })
}

/// An [`ApiError`] as a response.
struct Failure(ApiError);

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Ambiguous | ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::Refused => StatusCode::CONFLICT,
            ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(self.0)).into_response()
    }
}

impl From<ActError> for ApiError {
    fn from(error: ActError) -> Self {
        let code = match error {
            ActError::Refused(_)
            | ActError::Stopped { .. }
            | ActError::NeverRestarted { .. }
            | ActError::Quota(_) => ErrorCode::Refused,
            ActError::Failed(_) => ErrorCode::Failed,
            ActError::Gone => ErrorCode::NotFound,
        };
        Self { code, message: error.to_string(), key: None }
    }
}

fn fault(code: ErrorCode, message: impl ToString) -> Failure {
    Failure(ApiError { code, message: message.to_string(), key: None })
}

fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, Failure>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| fault(ErrorCode::Invalid, error))
}
