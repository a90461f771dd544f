//! HTTP and HTTPS to the services outside.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::super::GatewayError;

/// How long a service may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next call. Less than services do, so that it is they who wait.
const KEEP_IDLE: Duration = Duration::from_secs(50);

/// What goes wrong with a body.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way, in either direction.
pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A client that keeps its connections, and follows no redirects.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutgoingError {
    /// Nothing was sent: it may be tried again whatever it was.
    #[error("cannot be reached: {0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// It may have been carried out.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

impl Outgoing {
    /// Believes the well-known authorities, and those of a PEM file.
    ///
    /// # Errors
    /// The file is not to be read.
    pub(super) fn new(more_roots: Option<&Path>) -> Result<Outgoing, GatewayError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = more_roots {
            let unusable = |source| GatewayError::File { path: path.to_owned(), source };
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|e| unusable(io::Error::other(e)))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unusable(io::Error::other(error)))?;
                roots.add(certificate).map_err(|error| unusable(io::Error::other(error)))?;
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| GatewayError::Runtime(io::Error::other(error)))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .build(connector);
        Ok(Outgoing { client })
    }

    /// Sends a request and waits for the head of its answer, `limit` at most.
    ///
    /// # Errors
    /// [`OutgoingError`]
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        limit: Duration,
    ) -> Result<Response<Incoming>, OutgoingError> {
        match timeout(limit, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(OutgoingError::NotSent(in_full(&error))),
            Ok(Err(error)) => Err(OutgoingError::Lost(in_full(&error))),
            Err(_) => Err(OutgoingError::Late(limit)),
        }
    }
}

/// An answer's body as it comes. It breaks off where nothing comes for too long.
#[derive(Debug)]
pub(super) struct Timely {
    body: Incoming,
    silence: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl Timely {
    /// `silence` at most between two pieces of it.
    pub(super) fn new(body: Incoming, silence: Duration) -> Timely {
        Timely { body, silence, deadline: Box::pin(sleep(silence)) }
    }
}

impl hyper::body::Body for Timely {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.deadline.as_mut().reset(Instant::now() + this.silence);
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Poll::Pending => {
                ready!(this.deadline.as_mut().poll(cx));
                Poll::Ready(Some(Err("the service has fallen silent".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that is there already.
pub(super) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer of the gateway's own.
pub(super) fn json_response(body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(body.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error with all its reasons. The URLs of the Bot API have the token in them, and none of these says a URL.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
