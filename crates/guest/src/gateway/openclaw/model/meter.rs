//! Reads from an answer on its way what it used.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::spending::Tokens;
use crate::gateway::openclaw::outgoing::{BodyError, Timely};

/// Of a line, or a whole answer, that is longer only the end is looked at.
const LONGEST: usize = 4 << 20;
const END: usize = 64 << 10;
/// For so long an answer is read on whose client has left.
const READ_ON: Duration = Duration::from_secs(900);

/// What an answer used.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) model: String,
    pub(super) tokens: Tokens,
}

/// Somebody who is told at the end, however it comes.
type Told = Box<dyn FnOnce(Used) + Send>;

/// An answer's body, passed on as it comes. Who leaves before its end has it read nevertheless: it costs what it costs.
pub(super) struct Metered(Option<Answer>);

struct Answer {
    body: Timely,
    reader: Reader,
    told: Told,
    ended: bool,
    reading_on: ReadingOn,
}

/// Where answers are read on whose client has left, until the gateway ends.
#[derive(Debug, Clone)]
pub(super) struct ReadingOn {
    pub(super) tasks: TaskTracker,
    pub(super) ending: CancellationToken,
}

impl Metered {
    /// `told` learns what was used when the body has ended, unless that is nothing. What has to be read on is among
    /// `reading_on`.
    pub(super) fn new(
        body: Timely,
        is_stream: bool,
        reading_on: ReadingOn,
        told: impl FnOnce(Used) + Send + 'static,
    ) -> Metered {
        let reader = Reader { is_stream, ..Reader::default() };
        Metered(Some(Answer { body, reader, told: Box::new(told), ended: false, reading_on }))
    }
}

impl Answer {
    fn finish(self) {
        let used = self.reader.finish();
        if used != Used::default() {
            (self.told)(used);
        }
    }

    async fn read_on(mut self) {
        let reading = async {
            while let Some(Ok(frame)) = self.body.frame().await {
                if let Some(data) = frame.data_ref() {
                    self.reader.read(data);
                }
            }
        };
        // What came until then counts in any case.
        let _ = self.reading_on.ending.run_until_cancelled(timeout(READ_ON, reading)).await;
        self.finish();
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let Some(answer) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) if !answer.ended && !answer.body.is_end_stream() => {
                let tasks = answer.reading_on.tasks.clone();
                tasks.spawn_on(answer.read_on(), &runtime);
            }
            _ => answer.finish(),
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
        let Some(answer) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut answer.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    answer.reader.read(data);
                }
            }
            Some(Err(_)) | None => answer.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|answer| answer.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(SizeHint::default, |answer| answer.body.size_hint())
    }
}

/// Takes an answer in pieces of any size: a message as JSON, or events with parts of it.
#[derive(Debug, Default)]
struct Reader {
    is_stream: bool,
    held: Vec<u8>,
    /// The line, or all of it, is too long: only its end is held.
    skipping: bool,
    /// Of all that came.
    length: usize,
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
    cache_creation: Option<CacheCreation>,
}

/// Those written to the cache, by how long they stay there.
#[derive(Deserialize)]
struct CacheCreation {
    ephemeral_1h_input_tokens: Option<u64>,
}

impl Reader {
    fn read(&mut self, data: &[u8]) {
        self.length += data.len();
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
        self.held.extend_from_slice(data);
        if self.held.len() > if self.skipping { 2 * END } else { LONGEST } {
            if !std::mem::replace(&mut self.skipping, true) {
                self.used.model = model_in(&self.held).unwrap_or_default();
            }
            self.held = self.held.split_off(self.held.len() - END);
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
            let hour = usage.cache_creation.and_then(|written| written.ephemeral_1h_input_tokens);
            for (counted, said) in [
                (&mut tokens.input, usage.input_tokens),
                (&mut tokens.output, usage.output_tokens),
                (&mut tokens.cache_written, usage.cache_creation_input_tokens),
                (&mut tokens.cache_written_for_an_hour, hour),
                (&mut tokens.cache_read, usage.cache_read_input_tokens),
            ] {
                *counted = said.unwrap_or(*counted);
            }
        }
    }

    fn finish(mut self) -> Used {
        if self.is_stream {
            return self.used;
        }
        if !self.skipping {
            let message = serde_json::from_slice(&self.held).ok();
            self.take(message);
            return self.used;
        }
        match usage_in(&self.held) {
            Some(usage) => self.take(Some(Event { message: None, usage: Some(usage), model: None })),
            // An estimate: some four bytes a token.
            None => self.used.tokens.output = (self.length / 4) as u64,
        }
        self.used
    }
}

/// The last one, in a message of which only the end is there.
fn usage_in(end: &[u8]) -> Option<Usage> {
    const NAME: &[u8] = b"\"usage\":";
    let at = end.windows(NAME.len()).rposition(|window| window == NAME)?;
    serde_json::Deserializer::from_slice(end.get(at + NAME.len()..)?).into_iter().next()?.ok()
}

/// The first one, in a message of which only the start is there.
fn model_in(start: &[u8]) -> Option<String> {
    const NAME: &[u8] = b"\"model\":";
    let at = start.windows(NAME.len()).position(|window| window == NAME)?;
    serde_json::Deserializer::from_slice(start.get(at + NAME.len()..)?).into_iter().next()?.ok()
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
        let tokens = Tokens { input: 10, output: 25, cache_read: 3, ..Tokens::default() };
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
    fn of_a_message_that_is_too_long_the_end_is_read() {
        let read = |usage: &str| {
            let mut reader = Reader::default();
            reader.read(br#"{"model":"claude-x","content":[{"text":""#);
            (0..5).for_each(|_| reader.read(&vec![b'x'; 1 << 20]));
            reader.read(format!(r#"\"usage\": \""}}]{usage}}}"#).as_bytes());
            reader.finish()
        };
        let usage = r#","usage": {"input_tokens":10,"output_tokens":25,"cache_read_input_tokens":3}"#;
        assert_eq!(read(usage), used());
        let estimated = read("");
        assert_eq!((estimated.model.as_str(), estimated.tokens.input), ("claude-x", 0));
        assert!(estimated.tokens.output > 1_000_000);
    }

    #[test]
    fn what_stays_in_the_cache_for_an_hour_is_known() {
        let mut reader = Reader::default();
        reader.read(
            br#"{"usage":{"cache_creation_input_tokens":9,"cache_creation":{"ephemeral_1h_input_tokens":7}}}"#,
        );
        let tokens = reader.finish().tokens;
        assert_eq!((tokens.cache_written, tokens.cache_written_for_an_hour), (9, 7));
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
