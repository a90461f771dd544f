//! Answers of the gateway's own.

use std::error::Error;
use std::io;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};

use super::hold::HoldError;

/// Why a request is not answered by a machine. What is displayed is what the client sees; the sources are for the
/// access log only.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// A request that could be understood in two ways, or in none.
    #[error("{0}")]
    Malformed(&'static str),
    /// CONNECT.
    #[error("CONNECT is not supported: this is no forward proxy")]
    Unsupported,
    /// A body that is longer than the route takes.
    #[error("route `{route}`: a request's body may have {mib} MiB at most")]
    TooLarge {
        /// The route's name.
        route: String,
        /// How much it takes.
        mib: u32,
    },
    /// Nothing in the table.
    #[error("no route matches this port, path and sender")]
    NoRoute,
    /// The host gave none.
    #[error("route `{route}`: no machine is ready for this request; try again later")]
    NoMachine {
        /// The route's name.
        route: String,
        /// Why not.
        source: HoldError,
    },
    /// The machine is ready, its service is not.
    #[error("route `{route}`: nothing accepts connections on its target port")]
    Unreachable {
        /// The route's name.
        route: String,
        /// Why not.
        source: io::Error,
    },
    /// The machine's service did not speak HTTP to the end of its answer's head.
    #[error("route `{route}`: the connection broke before there was an answer")]
    Broken {
        /// The route's name.
        route: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The machine's service switched to a protocol that nobody asked for.
    #[error("route `{route}`: the answer makes no sense")]
    Nonsense {
        /// The route's name.
        route: String,
    },
    /// The machine ended while it had the request in hand.
    #[error("route `{route}`: the machine went to sleep or stopped before there was an answer")]
    Gone {
        /// The route's name.
        route: String,
    },
    /// No byte for too long, or no end.
    #[error("route `{route}`: there was no answer in time")]
    Silent {
        /// The route's name.
        route: String,
    },
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
            Refusal::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Refusal::NoRoute => StatusCode::NOT_FOUND,
            Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::NoMachine { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Unreachable { .. }
            | Refusal::Broken { .. }
            | Refusal::Nonsense { .. }
            | Refusal::Gone { .. } => StatusCode::BAD_GATEWAY,
            Refusal::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        if let Refusal::NoMachine { source, .. } = self {
            // In seconds. A place is free again soon; a machine may take longer.
            let wait = if matches!(source, HoldError::Busy) { 1 } else { 5 };
            headers.insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        headers
    }

    pub(super) fn body(&self) -> String {
        serde_json::json!({ "error": self.to_string() }).to_string()
    }

    /// With all reasons, for the access log.
    pub(super) fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}
