//! An answer, whole or as events.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::tokens;
use crate::server::Body;

/// What the model says.
pub(super) struct Answer {
    pub(super) model: String,
    pub(super) text: String,
    pub(super) input: u64,
    /// Written, read.
    pub(super) cache: (u64, u64),
}

impl Answer {
    fn message(&self, content: Value, stop: Value, output: u64) -> Value {
        json!({
            "id": "msg_fake", "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": stop, "stop_sequence": null,
            "usage": {
                "input_tokens": self.input, "output_tokens": output,
                "cache_creation_input_tokens": self.cache.0, "cache_read_input_tokens": self.cache.1,
            },
        })
    }

    /// As one message.
    pub(super) fn whole(&self) -> Value {
        let content = json!([{ "type": "text", "text": self.text }]);
        self.message(content, json!("end_turn"), tokens(&self.text))
    }

    fn events(&self) -> Vec<Value> {
        let start = json!({ "type": "message_start", "message": self.message(json!([]), Value::Null, 1) });
        let block = json!({ "type": "text", "text": "" });
        let mut events =
            vec![start, json!({ "type": "content_block_start", "index": 0, "content_block": block })];
        events.push(json!({ "type": "ping" }));
        for word in self.text.split_inclusive(' ') {
            let delta = json!({ "type": "text_delta", "text": word });
            events.push(json!({ "type": "content_block_delta", "index": 0, "delta": delta }));
        }
        events.push(json!({ "type": "content_block_stop", "index": 0 }));
        let delta = json!({ "stop_reason": "end_turn", "stop_sequence": null });
        let usage = json!({ "output_tokens": tokens(&self.text) });
        events.push(json!({ "type": "message_delta", "delta": delta, "usage": usage }));
        events.push(json!({ "type": "message_stop" }));
        events
    }

    /// As events, with a pause before each but the first.
    pub(super) fn into_events(self, pause: Duration) -> Response<Body> {
        let events = self.events().into_iter().enumerate();
        let frames = stream::unfold(events, move |mut events| async move {
            let (index, event) = events.next()?;
            if index > 0 {
                sleep(pause).await;
            }
            let name = event["type"].as_str().unwrap_or_default();
            let text = format!("event: {name}\ndata: {event}\n\n");
            Some((Ok(Frame::data(Bytes::from(text))), events))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        response
    }
}
