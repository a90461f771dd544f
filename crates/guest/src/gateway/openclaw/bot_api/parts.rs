//! Uploads: a form in parts, with files among them. Each part is checked and passed on as it comes; the end of the form,
//! without which Telegram does nothing, is sent only when all of it was in order.

use std::collections::HashSet;
use std::future::ready;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::Value;
use tokio::time::timeout;

use super::super::outgoing::{Body, BodyError, in_full};
use super::Refused;
use super::methods::Method;
use super::parameters::{LONGEST, Parameters, check_not_refused, is_chat};
use crate::lock;

/// What Telegram takes, with all that is not a file.
const LARGEST: u64 = (50 << 20) + LONGEST as u64;
/// Parts of a form that are files.
const MOST_FILES: usize = 64;
/// What is held while neither a part's head is whole nor anything of its content is there.
const LONGEST_HEAD: usize = 64 << 10;
/// A worker that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.get(..19).is_some_and(|start| start.eq_ignore_ascii_case("multipart/form-data"))
}

/// A form on its way.
pub(super) struct Upload {
    parts: Parts,
    parameters: Parameters,
    method: &'static Method,
    boundary: String,
}

/// The parts as they come.
struct Parts {
    read: Multipart<'static>,
    /// What came since there was last something to take.
    held: Arc<AtomicUsize>,
}

/// Why it was broken off, to be asked for when the call has failed.
pub(super) type WhyBroken = Arc<Mutex<Option<Refused>>>;

impl Upload {
    pub(super) fn new(
        request: Request<Incoming>,
        parameters: Parameters,
        method: &'static Method,
    ) -> Result<Upload, Refused> {
        let kind =
            request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(kind).map_err(Refused::bad_request)?;
        let parts = Parts::new(request.into_body(), boundary);
        let boundary = own_boundary()?;
        Ok(Upload { parts, parameters, method, boundary })
    }

    pub(super) fn content_type(&self) -> Result<HeaderValue, Refused> {
        let kind = format!("multipart/form-data; boundary={}", self.boundary);
        HeaderValue::from_str(&kind).map_err(Refused::bad_request)
    }

    /// The body that Telegram gets, and what drives it.
    pub(super) fn into_body(self) -> (Body, impl Future<Output = ()> + Send, WhyBroken) {
        let (mut sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(1);
        let why = WhyBroken::default();
        let told = Arc::clone(&why);
        let driving = async move {
            let Err(refused) = self.pass(&mut sender).await else { return };
            // Without its end it is no form: Telegram does nothing.
            let error = std::io::Error::other(refused.description.clone());
            *lock(&told) = Some(refused);
            let _ = sender.send(Err(error.into())).await;
        };
        (StreamBody::new(receiver).boxed_unsync(), driving, why)
    }

    async fn pass(
        mut self,
        sender: &mut mpsc::Sender<Result<Frame<Bytes>, BodyError>>,
    ) -> Result<(), Refused> {
        let mut send = async |bytes: Bytes| {
            sender
                .send(Ok(Frame::data(bytes)))
                .await
                .map_err(|_| Refused::new(502, "Bad Gateway: broken off"))
        };
        for (name, value) in self.parameters.values() {
            send(text_part(&self.boundary, name, value)).await?;
        }
        let mut files = HashSet::new();
        while let Some(mut part) = self.parts.next().await? {
            let name = part.name().unwrap_or_default().to_owned();
            if part.file_name().is_none() {
                let text = self.parts.text_of(part).await?;
                self.parameters.add_part(&name, text)?;
                let value = self.parameters.values().get(&name).unwrap_or(&Value::Null);
                send(text_part(&self.boundary, &name, value)).await?;
                continue;
            }
            check_file(&name, &mut files)?;
            send(file_head(&self.boundary, &name, &part)).await?;
            while let Some(chunk) = self.parts.chunk(&mut part).await? {
                send(chunk).await?;
            }
            send(Bytes::from_static(b"\r\n")).await?;
        }
        if files.iter().any(|name| self.parameters.values().contains_key(name)) {
            return Err(Refused::bad_request("a file and a parameter have the same name"));
        }
        self.parameters.complete(self.method)?;
        send(Bytes::from(format!("--{}--\r\n", self.boundary))).await
    }
}

impl Parts {
    fn new(body: Incoming, boundary: String) -> Parts {
        let held = Arc::new(AtomicUsize::new(0));
        let holding = Arc::clone(&held);
        let bytes = BodyStream::new(body).filter_map(move |frame| {
            let more = match frame {
                // It would hold all of it, and find the end of a head in it or not.
                Ok(_) if holding.load(Ordering::Relaxed) > LONGEST_HEAD => {
                    Some(Err("the head of a part is too long".into()))
                }
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(BodyError::from(error))),
            };
            if let Some(Ok(data)) = &more {
                holding.fetch_add(data.len(), Ordering::Relaxed);
            }
            ready(more)
        });
        let limits = SizeLimit::new().whole_stream(LARGEST);
        let limits = Constraints::new().size_limit(limits);
        Parts { read: Multipart::with_constraints(bytes.boxed(), boundary, limits), held }
    }

    async fn next(&mut self) -> Result<Option<Field<'static>>, Refused> {
        self.held.store(0, Ordering::Relaxed);
        in_time(self.read.next_field()).await
    }

    async fn chunk(&self, part: &mut Field<'static>) -> Result<Option<Bytes>, Refused> {
        self.held.store(0, Ordering::Relaxed);
        in_time(part.chunk()).await
    }

    async fn text_of(&self, mut part: Field<'static>) -> Result<String, Refused> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk(&mut part).await? {
            if text.len() + chunk.len() > LONGEST {
                return Err(Refused::new(413, "Request Entity Too Large"));
            }
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).map_err(|_| Refused::bad_request("a parameter is not UTF-8"))
    }
}

async fn in_time<T>(what: impl Future<Output = multer::Result<T>>) -> Result<T, Refused> {
    match timeout(SILENCE, what).await {
        Ok(Ok(got)) => Ok(got),
        Ok(Err(multer::Error::StreamSizeExceeded { .. })) => {
            Err(Refused::new(413, "Request Entity Too Large"))
        }
        Ok(Err(multer::Error::StreamReadFailed(error))) => Err(Refused::bad_request(in_full(&*error))),
        Ok(Err(error)) => Err(Refused::bad_request(error)),
        Err(_) => Err(Refused::new(408, "Request Timeout")),
    }
}

/// What names chats, and is no file: Telegram could read it out of a file's part as well.
const NO_FILES: [&str; 3] = ["reply_parameters", "reply_markup", "media"];

/// A file's part may have any plain name, as others refer to it, but none that means something for a parameter.
fn check_file(name: &str, seen: &mut HashSet<String>) -> Result<(), Refused> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let is_plain = (1..=128).contains(&name.len()) && name.bytes().all(fits);
    if seen.len() == MOST_FILES {
        return Err(Refused::bad_request(format_args!("more than {MOST_FILES} files")));
    }
    if !is_plain || is_chat(name) || NO_FILES.contains(&name) || !seen.insert(name.to_owned()) {
        return Err(Refused::bad_request(format_args!("{name:?} is no name for a file's part")));
    }
    check_not_refused(name)
}

fn text_part(boundary: &str, name: &str, value: &Value) -> Bytes {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Bytes::from(format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n"))
}

fn file_head(boundary: &str, name: &str, part: &Field<'static>) -> Bytes {
    let quoted = |c: char| if c.is_control() || c == '"' || c == '\\' { '_' } else { c };
    let file_name: String = part.file_name().unwrap_or_default().chars().map(quoted).take(255).collect();
    let kind = part.content_type().map_or("application/octet-stream", |kind| kind.essence_str());
    Bytes::from(format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\n\
         Content-Type: {kind}\r\n\r\n"
    ))
}

/// One that is in no file: a worker that knew it could end a part early.
fn own_boundary() -> Result<String, Refused> {
    let mut random = [0; 24];
    match rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()) {
        Ok(24) => Ok(random.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => Err(Refused::new(500, "Internal Server Error: no randomness")),
    }
}
