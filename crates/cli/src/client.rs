//! HTTP over the agent's socket, one connection a request.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mvm_protocol::api;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::failure::Failure;
use crate::lines::Lines;

/// A client of one agent.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the agent at this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The agent's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether anybody listens there.
    ///
    /// # Errors
    /// If that cannot be told: [`Failure::Denied`], mostly.
    pub async fn is_listened_to(&self) -> Result<bool, Failure> {
        match self.connect().await {
            Ok(_) => Ok(true),
            Err(Failure::NoAgent { .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// What the agent answers, or that it does not.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.parsed(self.send(Method::GET, path, None).await?).await
    }

    /// Has something done that needs no further words.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.parsed(self.send(Method::POST, path, None).await?).await
    }

    /// The same with further words.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post_with<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = self.encoded(body)?;
        self.parsed(self.send(Method::POST, path, Some(body)).await?).await
    }

    /// Has something destroyed.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.parsed(self.send(Method::DELETE, path, None).await?).await
    }

    /// Asks for text, which comes as it is made.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn text(&self, path: &str) -> Result<Lines, Failure> {
        Ok(Lines::new(self.clone(), self.send(Method::GET, path, None).await?.into_body()))
    }

    /// Has something done that tells of its progress in lines.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post_for_lines(&self, path: &str, body: &impl Serialize) -> Result<Lines, Failure> {
        let body = self.encoded(body)?;
        Ok(Lines::new(self.clone(), self.send(Method::POST, path, Some(body)).await?.into_body()))
    }

    /// Turns a request's connection into a stream of [`mvm_protocol::record`]s. With it comes for how many milliseconds the
    /// machine had to be woken, if it had.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn upgrade(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(TokioIo<Upgraded>, Option<u64>), Failure> {
        let body = self.encoded(body)?;
        let request = Request::post(path)
            .header(HOST, "mvm")
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, api::UPGRADE)
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let response = self.exchange(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.broken("it did not switch the connection to records"));
        }
        let woken = response.headers().get(api::WOKEN).and_then(|millis| millis.to_str().ok()?.parse().ok());
        let stream = hyper::upgrade::on(response).await.map_err(|error| self.broken(error))?;
        Ok((TokioIo::new(stream), woken))
    }

    /// The agent did not answer as it should.
    pub fn broken(&self, why: impl ToString) -> Failure {
        Failure::Connection { socket: self.socket.clone(), why: why.to_string() }
    }

    fn encoded(&self, body: &impl Serialize) -> Result<Bytes, Failure> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|error| self.broken(error))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "mvm");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request =
            request.body(Full::new(body.unwrap_or_default())).map_err(|error| self.broken(error))?;
        self.exchange(request).await
    }

    /// Sends a request on a connection of its own; an answer that is an error becomes one.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| self.broken(error))?;
        // Its errors come out of the response as well.
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = self.whole(response).await?;
        match serde_json::from_slice(&body) {
            Ok(error) => Err(Failure::Refused(error)),
            Err(_) => Err(self.broken(format!("status {status}: {}", String::from_utf8_lossy(&body)))),
        }
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        UnixStream::connect(&self.socket).await.map_err(|error| {
            let socket = self.socket.clone();
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::NoAgent { socket },
                ErrorKind::PermissionDenied => Failure::Denied { socket },
                _ => self.broken(error),
            }
        })
    }

    async fn parsed<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Failure> {
        let body = self.whole(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = response.into_body().collect().await.map_err(|error| self.broken(error))?;
        Ok(body.to_bytes())
    }
}
