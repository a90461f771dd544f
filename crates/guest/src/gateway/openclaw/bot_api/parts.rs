//! Uploads: a form in parts, with files among them. Each part is checked and passed on as it comes; the end of the form,
//! without which Telegram does nothing, is sent only when all of it was in order.

use std::collections::HashSet;
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

use super::super::outgoing::{Body, BodyError};
use super::Refused;
use super::methods::Method;
use super::parameters::{LONGEST, Parameters, is_chat};
use crate::lock;

/// What Telegram takes, with all that is not a file.
const LARGEST: u64 = (50 << 20) + LONGEST as u64;
/// A worker that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.get(..19).is_some_and(|start| start.eq_ignore_ascii_case("multipart/form-data"))
}

/// A form on its way.
pub(super) struct Upload {
    parts: Multipart<'static>,
    parameters: Parameters,
    method: &'static Method,
    boundary: String,
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
        let frames = BodyStream::new(request.into_body());
        let bytes = frames.filter_map(async |frame| match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(error)),
        });
        let limits = SizeLimit::new().whole_stream(LARGEST);
        let parts =
            Multipart::with_constraints(bytes.boxed(), boundary, Constraints::new().size_limit(limits));
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
        while let Some(mut part) = next(&mut self.parts).await? {
            let name = part.name().unwrap_or_default().to_owned();
            if part.file_name().is_none() {
                let value = text_of(part).await?;
                self.parameters.add(&name, Value::String(value))?;
                let value = self.parameters.values().get(&name).unwrap_or(&Value::Null);
                send(text_part(&self.boundary, &name, value)).await?;
                continue;
            }
            check_file(&name, &mut files)?;
            send(file_head(&self.boundary, &name, &part)).await?;
            while let Some(chunk) = in_time(part.chunk()).await? {
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

async fn next(parts: &mut Multipart<'static>) -> Result<Option<Field<'static>>, Refused> {
    in_time(parts.next_field()).await
}

async fn in_time<T>(what: impl Future<Output = multer::Result<T>>) -> Result<T, Refused> {
    match timeout(SILENCE, what).await {
        Ok(Ok(got)) => Ok(got),
        Ok(Err(multer::Error::StreamSizeExceeded { .. })) => {
            Err(Refused::new(413, "Request Entity Too Large"))
        }
        Ok(Err(error)) => Err(Refused::bad_request(error)),
        Err(_) => Err(Refused::new(408, "Request Timeout")),
    }
}

async fn text_of(mut part: Field<'static>) -> Result<String, Refused> {
    let mut text = Vec::new();
    while let Some(chunk) = in_time(part.chunk()).await? {
        if text.len() + chunk.len() > LONGEST {
            return Err(Refused::new(413, "Request Entity Too Large"));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).map_err(|_| Refused::bad_request("a parameter is not UTF-8"))
}

/// A file's part may have any plain name, as others refer to it, but that of no chat.
fn check_file(name: &str, seen: &mut HashSet<String>) -> Result<(), Refused> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let is_plain = (1..=128).contains(&name.len()) && name.bytes().all(fits);
    if !is_plain || is_chat(name) || !seen.insert(name.to_owned()) {
        return Err(Refused::bad_request(format_args!("{name:?} is no name for a file's part")));
    }
    Ok(())
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
