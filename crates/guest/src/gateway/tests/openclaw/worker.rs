//! A worker: takes updates as OpenClaw does, or badly, and calls the APIs of its gateway.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mvm_protocol::openclaw::{WEBHOOK_PATH, WEBHOOK_PORT, webhook_secret};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::sleep;

/// What becomes of one update that comes in; without it, it is taken durably.
#[derive(Debug, Clone, Copy)]
pub(super) enum Does {
    Status(u16),
    /// 200 without the word that counts.
    NotDurable,
    /// Takes it, and the connection breaks.
    Drop,
    /// Takes it only after so long.
    Slow(Duration),
    /// Takes it and never answers.
    Hang,
}

#[derive(Debug, Default)]
struct Inner {
    /// Ids of updates in the order in which they came, each time they came.
    came: Mutex<Vec<i64>>,
    taken: Mutex<Vec<Value>>,
    grown: Condvar,
    next: Mutex<VecDeque<Does>>,
    always: Mutex<Option<Does>>,
    /// Whom it serves, as far as it knows.
    telegram: Mutex<Option<i64>>,
    /// How often it was sent something with another secret than its own.
    refused: Mutex<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) ip: Ipv4Addr,
    pub(super) token: String,
    inner: Arc<Inner>,
}

impl Worker {
    pub(super) async fn start(ip: Ipv4Addr, token: String, telegram: Option<i64>) -> Worker {
        let worker = Worker { ip, token, inner: Arc::default() };
        *worker.inner.telegram.lock().unwrap() = telegram;
        let listener = TcpListener::bind(SocketAddrV4::new(ip, WEBHOOK_PORT)).await.unwrap();
        let serving = worker.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let worker = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| worker.answer(request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        worker
    }

    /// The next updates are dealt with in this way, each one.
    pub(super) fn next(&self, does: &[Does]) {
        self.inner.next.lock().unwrap().extend(does);
    }

    /// All updates are, or none any more.
    pub(super) fn always(&self, does: Option<Does>) {
        *self.inner.always.lock().unwrap() = does;
    }

    /// It is told whom it serves.
    pub(super) fn serves(&self, telegram: i64) {
        *self.inner.telegram.lock().unwrap() = Some(telegram);
    }

    pub(super) fn refused(&self) -> usize {
        *self.inner.refused.lock().unwrap()
    }

    pub(super) fn taken(&self) -> Vec<i64> {
        self.inner.taken.lock().unwrap().iter().map(|update| update["update_id"].as_i64().unwrap()).collect()
    }

    pub(super) fn last(&self) -> Value {
        self.inner.taken.lock().unwrap().last().unwrap().clone()
    }

    pub(super) fn came(&self) -> Vec<i64> {
        self.inner.came.lock().unwrap().clone()
    }

    /// Waits until it has taken so many.
    pub(super) fn takes(&self, count: usize) -> Vec<i64> {
        let taken = self.inner.taken.lock().unwrap();
        let limit = Duration::from_secs(20);
        let waited = self.inner.grown.wait_timeout_while(taken, limit, |taken| taken.len() < count).unwrap();
        assert!(!waited.1.timed_out(), "{count} are not taken: {:?}", *waited.0);
        drop(waited);
        self.taken()
    }

    pub(super) fn comes(&self, count: usize) {
        let begin = Instant::now();
        while self.came().len() < count {
            assert!(begin.elapsed() < Duration::from_secs(20), "{count} do not come: {:?}", self.came());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, std::io::Error> {
        assert_eq!(request.uri().path(), WEBHOOK_PATH);
        let mut response = Response::new(Empty::new());
        let secret =
            request.headers().get("x-telegram-bot-api-secret-token").map(|value| value.as_bytes().to_vec());
        let own = webhook_secret(&self.token, *self.inner.telegram.lock().unwrap());
        if secret.as_deref() != Some(own.as_bytes()) {
            *self.inner.refused.lock().unwrap() += 1;
            *response.status_mut() = hyper::StatusCode::UNAUTHORIZED;
            return Ok(response);
        }
        let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
        let update: Value = serde_json::from_slice(&body).unwrap();
        self.inner.came.lock().unwrap().push(update["update_id"].as_i64().unwrap());
        let does = self.inner.next.lock().unwrap().pop_front();
        let does = does.or(*self.inner.always.lock().unwrap());
        match does {
            Some(Does::Status(code)) => {
                *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap();
                return Ok(response);
            }
            Some(Does::NotDurable) => return Ok(response),
            Some(Does::Drop) => {
                self.take(update);
                return Err(std::io::Error::other("dropped"));
            }
            Some(Does::Hang) => {
                self.take(update);
                std::future::pending::<()>().await;
            }
            Some(Does::Slow(time)) => {
                sleep(time).await;
                self.take(update);
            }
            None => self.take(update),
        }
        response.headers_mut().insert("x-openclaw-delivery-accepted", "durable".parse().unwrap());
        Ok(response)
    }

    fn take(&self, update: Value) {
        self.inner.taken.lock().unwrap().push(update);
        self.inner.grown.notify_all();
    }
}
