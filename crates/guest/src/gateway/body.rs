//! Bodies on their way: passed on chunk by chunk, watched for silence, counted.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::access_log::Entry;
use super::hold::Hold;

/// When a request last moved, in either direction. Clones are of the same request.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub(super) fn now() -> Activity {
        Activity(Arc::new(Mutex::new(Instant::now())))
    }

    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is ready when nothing has moved for `limit`.
    pub(super) fn silence(&self, limit: Duration) -> Silence {
        let timer = Box::pin(sleep_until(self.last() + limit));
        Silence { activity: self.clone(), limit, timer }
    }
}

/// Waits for [`Activity`] to cease.
#[derive(Debug)]
pub(super) struct Silence {
    activity: Activity,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Future for Silence {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let end = self.activity.last() + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end);
        }
    }
}

/// A request's body on its way to the machine.
#[derive(Debug)]
pub(super) struct Upload {
    body: Incoming,
    activity: Activity,
}

impl Upload {
    pub(super) fn new(body: Incoming, activity: Activity) -> Upload {
        Upload { body, activity }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.activity.touch();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A machine's answer, with everything that is needed until its last byte has come.
#[derive(Debug)]
pub(super) struct Download {
    body: Incoming,
    silence: Silence,
    // In this order: the machine may go when the connection to it has.
    _connection: AbortOnDropHandle<()>,
    _hold: Hold,
}

/// Why an answer ends too early. The client sees its connection break.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    /// The machine's side.
    #[error("the machine's answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// No byte for too long.
    #[error("the machine's answer did not go on in time")]
    Silent,
}

impl Download {
    /// `connection` drives the connection to the machine that `hold` keeps running.
    pub(super) fn new(
        body: Incoming,
        silence: Silence,
        connection: AbortOnDropHandle<()>,
        hold: Hold,
    ) -> Download {
        Download { body, silence, _connection: connection, _hold: hold }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.silence.activity.touch();
            return Poll::Ready(frame.map(|frame| frame.map_err(DownloadError::Broken)));
        }
        Pin::new(&mut self.silence).poll(cx).map(|()| Some(Err(DownloadError::Silent)))
    }
}

/// Where an answer's bytes come from.
#[derive(Debug)]
pub(super) enum Content {
    /// The gateway itself.
    Own(Full<Bytes>),
    /// A machine.
    Machine(Download),
}

/// The body of an answer; its log line is written when it is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    content: Content,
    entry: Entry,
}

impl Answer {
    pub(super) fn new(content: Content, entry: Entry) -> Answer {
        let mut answer = Answer { content, entry };
        answer.note_end();
        answer
    }

    fn note_end(&mut self) {
        if self.is_end_stream() {
            self.entry.line.aborted = false;
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
        });
        match &frame {
            Some(Ok(frame)) => {
                this.entry.line.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                this.note_end();
            }
            Some(Err(error)) => this.entry.line.error = Some(error.to_string()),
            None => this.entry.line.aborted = false,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_end_stream(),
            Content::Machine(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => text.size_hint(),
            Content::Machine(download) => download.body.size_hint(),
        }
    }
}
