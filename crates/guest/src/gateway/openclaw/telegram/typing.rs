//! Shows a person that something happens, until their worker says something itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::super::Context;
use super::api;
use crate::lock;

/// Nobody believes it for longer.
const LONGEST: Duration = Duration::from_secs(120);
const CALL: Duration = Duration::from_secs(10);

/// In which chats it is shown.
#[derive(Debug, Default)]
pub(in super::super) struct Typing(Mutex<HashMap<i64, Shown>>);

#[derive(Debug)]
struct Shown {
    until: Arc<Mutex<Instant>>,
    _task: AbortOnDropHandle<()>,
}

impl Typing {
    /// From a moment after now on, for two minutes at most.
    pub(super) fn show(&self, context: &Arc<Context>, chat: i64) {
        let deadline = Instant::now() + LONGEST;
        let mut shown = lock(&self.0);
        if shown.contains_key(&chat) {
            return;
        }
        let until = Arc::new(Mutex::new(deadline));
        let task = show(Arc::clone(context), chat, Arc::clone(&until));
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        shown.insert(chat, Shown { until, _task: task });
    }

    /// For two more minutes, unless the worker has said something already.
    pub(super) fn go_on(&self, chat: i64) {
        if let Some(shown) = lock(&self.0).get(&chat) {
            *lock(&shown.until) = Instant::now() + LONGEST;
        }
    }

    /// The worker has said something.
    pub(in super::super) fn hide(&self, chat: i64) {
        lock(&self.0).remove(&chat);
    }

    /// The gateway ends.
    pub(in super::super) fn hide_all(&self) {
        lock(&self.0).clear();
    }
}

async fn show(context: Arc<Context>, chat: i64, until: Arc<Mutex<Instant>>) {
    sleep(context.config.pace.typing_after).await;
    while Instant::now() < *lock(&until) {
        let settings = context.settings();
        if let Some(bot) = &settings.bot {
            let said = json!({ "chat_id": chat, "action": "typing" });
            // It is a courtesy: what comes of it does not matter.
            let _ = api::call(&context.outgoing, &settings, bot, "sendChatAction", &said, CALL).await;
        }
        sleep(context.config.pace.typing_every).await;
    }
    // This ends the task itself, at its next rest; there is none.
    let ended = lock(&context.typing.0).remove(&chat);
    drop(ended);
}
