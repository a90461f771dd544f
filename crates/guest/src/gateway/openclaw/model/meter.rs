//! Reads from an answer on its way what it used.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep};

use super::spending::Tokens;
use crate::gateway::openclaw::outgoing::BodyError;

/// A line, or a whole answer, that is longer is passed on unread.
const LONGEST: usize = 4 << 20;

/// What an answer used.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) model: String,
    pub(super) tokens: Tokens,
}

/// Somebody who is told at the end, however it comes.
type Told = Box<dyn FnOnce(Used) + Send>;

/// An answer's body, passed on as it comes. It breaks off where nothing comes for too long.
pub(super) struct Metered {
    body: Incoming,
    reader: Reader,
    told: Option<Told>,
    silence: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl Metered {
    /// `told` learns what was used when the body has ended or is dropped, unless that is nothing.
    pub(super) fn new(
        body: Incoming,
        is_stream: bool,
        silence: Duration,
        told: impl FnOnce(Used) + Send + 'static,
    ) -> Metered {
        let reader = Reader { is_stream, ..Reader::default() };
        Metered { body, reader, told: Some(Box::new(told)), silence, deadline: Box::pin(sleep(silence)) }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let used = std::mem::take(&mut self.reader).finish();
        if let Some(told) = self.told.take()
            && used != Used::default()
        {
            told(used);
        }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.reader.read(data);
                }
                this.deadline.as_mut().reset(Instant::now() + this.silence);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(this.deadline.as_mut().poll(cx));
                Poll::Ready(Some(Err("the model API has fallen silent".into())))
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

/// Takes an answer in pieces of any size: a message as JSON, or events with parts of it.
#[derive(Debug, Default)]
struct Reader {
    is_stream: bool,
    held: Vec<u8>,
    /// The line, or all of it, is too long.
    skipping: bool,
    used: Used,
}

#[derive(Deserialize)]
struct Event {
    message: Option<Message>,
    usage: Option<Usage>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    usage: Option<Usage>,
}

/// Each counts from the start of the answer on, so the last word is the right one.
#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

impl Reader {
    fn read(&mut self, data: &[u8]) {
        if !self.is_stream {
            return self.hold(data);
        }
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.hold(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn hold(&mut self, data: &[u8]) {
        if self.skipping || self.held.len() + data.len() > LONGEST {
            self.skipping = true;
            self.held = Vec::new();
        } else {
            self.held.extend_from_slice(data);
        }
    }

    fn end_line(&mut self) {
        if !std::mem::take(&mut self.skipping)
            && let Some(data) = self.held.strip_prefix(b"data:")
            && contains(data, b"\"usage\"")
        {
            // What is none of these tells nothing of what was used.
            let event = serde_json::from_slice(data).ok();
            self.take(event);
        }
        self.held.clear();
    }

    fn take(&mut self, event: Option<Event>) {
        let Some(Event { message, usage, model }) = event else { return };
        let (inner_model, inner) = message.map_or((None, None), |message| (message.model, message.usage));
        if let Some(model) = inner_model.or(model) {
            self.used.model = model;
        }
        for usage in [inner, usage].into_iter().flatten() {
            let tokens = &mut self.used.tokens;
            for (counted, said) in [
                (&mut tokens.input, usage.input_tokens),
                (&mut tokens.output, usage.output_tokens),
                (&mut tokens.cache_written, usage.cache_creation_input_tokens),
                (&mut tokens.cache_read, usage.cache_read_input_tokens),
            ] {
                *counted = said.unwrap_or(*counted);
            }
        }
    }

    fn finish(mut self) -> Used {
        if !self.is_stream && !self.skipping {
            let message = serde_json::from_slice(&self.held).ok();
            self.take(message);
        }
        self.used
    }
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\
        \"usage\":{\"input_tokens\":10,\"output_tokens\":1,\"cache_read_input_tokens\":3}}}\n\n\
        event: content_block_delta\r\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"\\\"usage\\\"\"}}\r\n\r\n\
        event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":25}}\n\n";

    fn used() -> Used {
        let tokens = Tokens { input: 10, output: 25, cache_written: 0, cache_read: 3 };
        Used { model: "claude-x".to_owned(), tokens }
    }

    proptest! {
        #[test]
        fn events_are_read_in_pieces_of_any_size(size in 1_usize..80) {
            let mut reader = Reader { is_stream: true, ..Reader::default() };
            STREAM.as_bytes().chunks(size).for_each(|piece| reader.read(piece));
            prop_assert_eq!(reader.finish(), used());
        }
    }

    #[test]
    fn a_message_is_read_as_a_whole_and_what_is_too_long_is_not() {
        let text = br#"{"model":"claude-x","usage":{"input_tokens":10,"output_tokens":25,"cache_read_input_tokens":3}}"#;
        let mut reader = Reader::default();
        text.chunks(7).for_each(|piece| reader.read(piece));
        assert_eq!(reader.finish(), used());
        let mut reader = Reader { is_stream: true, ..Reader::default() };
        reader.read(b"data: ");
        (0..5).for_each(|_| reader.read(&vec![b'x'; 1 << 20]));
        reader.read(b"\n");
        reader.read(STREAM.as_bytes());
        assert_eq!(reader.finish(), used());
    }
}
