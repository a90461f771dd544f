//! Bodies on their way: passed on chunk by chunk, watched for silence, counted.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::access_log::Entry;

/// For so long what is sent to a request that was refused is taken and thrown away.
pub(super) const DISCARDING: Duration = Duration::from_secs(5);

/// When a request last moved, in either direction, whose turn it is, and whether it moved too much. Clones are of the same
/// request.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Moved>);

#[derive(Debug)]
struct Moved {
    last: Mutex<Instant>,
    /// The client has something to take before more is asked of the machine.
    with_client: AtomicBool,
    too_much: AtomicBool,
}

impl Activity {
    pub(super) fn now() -> Activity {
        let (with_client, too_much) = (AtomicBool::new(false), AtomicBool::new(false));
        Activity(Arc::new(Moved { last: Mutex::new(Instant::now()), with_client, too_much }))
    }

    pub(super) fn touch(&self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn last(&self) -> Instant {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request's body is longer than it may be.
    pub(super) fn was_too_much(&self) -> bool {
        self.0.too_much.load(Ordering::Relaxed)
    }

    /// Is ready when nothing has moved for `limit`.
    pub(super) fn silence(&self, limit: Duration) -> Silence {
        self.silence_or(limit, limit, None)
    }

    /// Is ready when nothing has moved for `limit`, or at `deadline`. A client that is to take something has `patience` where
    /// that is more: what it takes is seen only when much of it is gone.
    pub(super) fn silence_or(
        &self,
        limit: Duration,
        patience: Duration,
        deadline: Option<Instant>,
    ) -> Silence {
        let timer = Box::pin(sleep_until(self.last()));
        let mut silence =
            Silence { activity: self.clone(), limit, patience: patience.max(limit), deadline, timer };
        let end = silence.next_look(self.last());
        silence.timer.as_mut().reset(end);
        silence
    }

    fn is_with(&self, client: bool) {
        if self.0.with_client.swap(client, Ordering::Relaxed) != client {
            self.touch();
        }
    }
}

/// Waits for [`Activity`] to cease.
#[derive(Debug)]
pub(super) struct Silence {
    activity: Activity,
    limit: Duration,
    patience: Duration,
    deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    fn end(&self) -> Instant {
        let with_client = self.activity.0.with_client.load(Ordering::Relaxed);
        let end = self.activity.last() + if with_client { self.patience } else { self.limit };
        self.deadline.map_or(end, |deadline| deadline.min(end))
    }

    /// Whose turn it is may change before the end.
    fn next_look(&self, now: Instant) -> Instant {
        self.end().min(now + self.limit)
    }
}

impl Future for Silence {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.end() <= now {
                return Poll::Ready(());
            }
            let look = self.next_look(now);
            self.timer.as_mut().reset(look);
        }
    }
}

/// A request's body on its way to the machine.
#[derive(Debug)]
pub(super) struct Upload {
    /// Gone when it was too much.
    body: Option<Incoming>,
    /// How much more of it may come.
    room: u64,
    activity: Activity,
}

/// Why a request's body ends too early. The machine sees its connection break.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The client's side.
    #[error("the request's body broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// More than the route takes.
    #[error("the request's body is longer than its route takes")]
    TooLong,
}

impl Upload {
    /// At most `room` bytes are taken.
    pub(super) fn new(body: Incoming, room: u64, activity: Activity) -> Upload {
        Upload { body: Some(body), room, activity }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        self.activity.touch();
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = frame?;
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(room) = self.room.checked_sub(length) else {
            self.activity.0.too_much.store(true, Ordering::Relaxed);
            if let Some(rest) = self.body.take() {
                discard(rest);
            }
            return Poll::Ready(Some(Err(UploadError::TooLong)));
        };
        self.room = room;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::new, Body::size_hint)
    }
}

/// Takes what is still to come of a body that nobody wants, for a while: most clients read an answer only when they have
/// sent all, and what was not taken would break the connection before.
pub(super) fn discard(mut body: Incoming) {
    tokio::spawn(timeout(DISCARDING, async move { while let Some(Ok(_)) = body.frame().await {} }));
}

/// Why the gateway has ended an answer, if it has.
pub(super) type Fate = Arc<OnceLock<Cut>>;

/// What ends an answer before its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    /// No byte for too long, or too long in all.
    #[error("the machine's answer did not go on in time, or its client did not take it")]
    Silent,
    /// It sleeps or has stopped, before its time.
    #[error("the machine does not run any longer")]
    Gone,
}

/// A machine's answer. What watches it meanwhile ends with it: a client that does not read does not ask for more either.
#[derive(Debug)]
pub(super) struct Download {
    body: Incoming,
    activity: Activity,
    fate: Fate,
    _driver: AbortOnDropHandle<()>,
}

/// Why an answer ends too early. The client sees its connection break.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    /// The machine's side.
    #[error("the machine's answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// The gateway has ended it.
    #[error(transparent)]
    Cut(#[from] Cut),
}

impl Download {
    /// `driver` drives the connection to the machine and keeps that running, until its `fate` is decided or this is dropped.
    pub(super) fn new(
        body: Incoming,
        activity: Activity,
        fate: Fate,
        driver: AbortOnDropHandle<()>,
    ) -> Download {
        Download { body, activity, fate, _driver: driver }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                self.activity.is_with(false);
                return Poll::Pending;
            }
        };
        if let Some(cut) = self.fate.get() {
            return Poll::Ready(Some(Err((*cut).into())));
        }
        self.activity.touch();
        self.activity.is_with(true);
        Poll::Ready(frame.map(|frame| frame.map_err(DownloadError::Broken)))
    }
}

/// Where an answer's bytes come from.
#[derive(Debug)]
pub(super) enum Content {
    /// The gateway itself.
    Own(Full<Bytes>),
    /// A machine.
    Machine(Download),
    /// Nowhere: what follows is of another protocol, and its log line is written at that's end.
    Tunnel,
}

/// The body of an answer; its log line is written when it is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    content: Content,
    entry: Option<Entry>,
}

impl Answer {
    pub(super) fn new(content: Content, entry: Entry) -> Answer {
        let mut answer = Answer { content, entry: Some(entry) };
        answer.note_end();
        answer
    }

    /// The head of an answer after which the connection is a tunnel.
    pub(super) fn tunnel() -> Answer {
        Answer { content: Content::Tunnel, entry: None }
    }

    fn note_end(&mut self) {
        let ended = self.is_end_stream();
        if let Some(entry) = &mut self.entry {
            entry.line.aborted = !ended;
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // A client that did not read has not asked for the error either.
        if let (Content::Machine(download), Some(entry)) = (&self.content, &mut self.entry)
            && entry.line.aborted
            && entry.line.error.is_none()
        {
            entry.line.error = download.fate.get().map(Cut::to_string);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let this = &mut *self;
        let frame = ready!(match &mut this.content {
            Content::Own(text) => Pin::new(text).poll_frame(cx).map_err(|never: Infallible| match never {}),
            Content::Machine(download) => download.poll_frame(cx),
            Content::Tunnel => return Poll::Ready(None),
        });
        let Some(entry) = &mut this.entry else { return Poll::Ready(frame) };
        match &frame {
            Some(Ok(frame)) => {
                entry.line.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                this.note_end();
            }
            Some(Err(error)) => entry.line.error = Some(error.to_string()),
            None => entry.line.aborted = false,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_end_stream(),
            Content::Machine(download) => download.body.is_end_stream(),
            Content::Tunnel => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => text.size_hint(),
            Content::Machine(download) => download.body.size_hint(),
            Content::Tunnel => SizeHint::with_exact(0),
        }
    }
}
