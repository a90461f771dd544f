//! The methods, one by one.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Bot, BotCall, Refused, State, unix_seconds};
use crate::recorded::lock;

/// Methods that send something to a chat, each with what it must have beside `chat_id`.
const SENDING: [(&str, &str); 8] = [
    ("sendMessage", "text"),
    ("sendPhoto", "photo"),
    ("sendDocument", "document"),
    ("sendVoice", "voice"),
    ("sendAudio", "audio"),
    ("sendVideo", "video"),
    ("sendAnimation", "animation"),
    ("sendMediaGroup", "media"),
];

const OTHERS: [&str; 17] = [
    "getMe",
    "getUpdates",
    "getChat",
    "sendChatAction",
    "editMessageText",
    "deleteMessage",
    "deleteMessages",
    "setMessageReaction",
    "setMyCommands",
    "deleteMyCommands",
    "getMyCommands",
    "getFile",
    "answerCallbackQuery",
    "setWebhook",
    "deleteWebhook",
    "getWebhookInfo",
    "logOut",
];

/// What updates are given when nobody says which.
const NOT_BY_DEFAULT: [&str; 3] = ["chat_member", "message_reaction", "message_reaction_count"];

/// How Telegram spells a method; names may be in any case.
pub(super) fn spelling(method: &str) -> Option<&'static str> {
    let sending = SENDING.iter().map(|(name, _)| *name);
    sending.chain(OTHERS).find(|name| name.eq_ignore_ascii_case(method))
}

/// getUpdates: what comes before the offset is acknowledged. Ends an older one.
pub(super) async fn get_updates(bot: &Bot, call: &BotCall) -> Result<Value, Refused> {
    let number = |name| integer(&call.params, name);
    let (offset, limit, seconds) = (number("offset")?, number("limit")?, number("timeout")?.unwrap_or(0));
    let limit = limit.unwrap_or(100);
    if !(1..=100).contains(&limit) || seconds < 0 {
        return Err(Refused::bad_request("limit must be from 1 to 100 and timeout not negative"));
    }
    let poll = {
        let mut state = lock(&bot.state);
        if !state.webhook.is_empty() {
            let text =
                "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook first";
            return Err(Refused::new(409, text));
        }
        if let Some(allowed) = call.params.get("allowed_updates") {
            state.allowed = Some(names(allowed)?).filter(|names| !names.is_empty());
        }
        state.acknowledge(offset.unwrap_or(0));
        state.poll += 1;
        state.poll
    };
    bot.pushed.notify_waiters();
    let _running = Running { bot, poll };
    let deadline = Instant::now() + Duration::from_secs(seconds.unsigned_abs());
    loop {
        let pushed = bot.pushed.notified();
        {
            let mut state = lock(&bot.state);
            if state.poll != poll {
                state.mistakes.push("getUpdates while another getUpdates runs".to_owned());
                let text = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running";
                return Err(Refused::new(409, text));
            }
            let waiting = state.wanted(usize::try_from(limit).unwrap_or(100));
            if !waiting.is_empty() || Instant::now() >= deadline {
                return Ok(Value::Array(waiting));
            }
        }
        let _ = timeout_at(deadline, pushed).await;
    }
}

/// While a poll is in hand; one that is given up is not in the way of the next.
struct Running<'a> {
    bot: &'a Bot,
    poll: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.bot.state);
        if state.poll == self.poll {
            state.poll += 1;
        }
    }
}

impl State {
    fn acknowledge(&mut self, offset: i64) {
        if offset < 0 {
            let keep = usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX);
            let surplus = self.updates.len().saturating_sub(keep);
            self.updates.drain(..surplus);
        } else {
            self.updates.retain(|update| update["update_id"].as_i64() >= Some(offset));
        }
    }

    fn wanted(&self, limit: usize) -> Vec<Value> {
        let is_wanted = |update: &&Value| {
            let kind = update.as_object().and_then(|fields| fields.keys().find(|key| *key != "update_id"));
            let kind = kind.map_or("", String::as_str);
            match &self.allowed {
                Some(allowed) => allowed.iter().any(|name| name == kind),
                None => !NOT_BY_DEFAULT.contains(&kind),
            }
        };
        self.updates.iter().filter(is_wanted).take(limit).cloned().collect()
    }
}

/// Every other method.
pub(super) fn call(state: &mut State, call: &BotCall) -> Result<Value, Refused> {
    let params = &call.params;
    if let Some((_, content)) = SENDING.iter().find(|(name, _)| *name == call.method) {
        return send(state, call, content);
    }
    match call.method.as_str() {
        "getMe" => {
            let id: i64 =
                state.tokens.first().and_then(|token| token.split(':').next()?.parse().ok()).unwrap_or(1);
            Ok(json!({ "id": id, "is_bot": true, "first_name": "Fake", "username": "fake_bot" }))
        }
        "sendChatAction" => {
            chat(state, params)?;
            text(params, "action", 64).map(|_| json!(true))
        }
        "getChat" => {
            chat(state, params).map(|id| json!({ "id": id, "type": "private", "first_name": "User" }))
        }
        "editMessageText" => {
            let (chat, message_id) = (chat(state, params)?, required(params, "message_id")?);
            Ok(message(chat, message_id, text(params, "text", 4096)?))
        }
        "deleteMessage" | "setMessageReaction" => {
            chat(state, params)?;
            required(params, "message_id").map(|_| json!(true))
        }
        "deleteMessages" => chat(state, params).map(|_| json!(true)),
        "answerCallbackQuery" => text(params, "callback_query_id", 256).map(|_| json!(true)),
        "getFile" => {
            let file_id = text(params, "file_id", 256)?;
            let size = state.files.get(file_id).map(Vec::len);
            let size = size.ok_or_else(|| Refused::bad_request("invalid file_id"))?;
            let path = format!("documents/{file_id}");
            Ok(json!({ "file_id": file_id, "file_unique_id": file_id, "file_size": size, "file_path": path }))
        }
        "setMyCommands" | "deleteMyCommands" => Ok(json!(true)),
        "getMyCommands" => Ok(json!([])),
        "setWebhook" => {
            state.webhook = text(params, "url", 2048)?.to_owned();
            state.mistakes.push(format!("setWebhook {}", state.webhook));
            Ok(json!(true))
        }
        "deleteWebhook" => {
            state.webhook.clear();
            Ok(json!(true))
        }
        "getWebhookInfo" => {
            let waiting = state.updates.len();
            Ok(
                json!({ "url": state.webhook, "has_custom_certificate": false, "pending_update_count": waiting }),
            )
        }
        other => {
            state.mistakes.push(other.to_owned());
            Ok(json!(true))
        }
    }
}

fn send(state: &mut State, call: &BotCall, content: &str) -> Result<Value, Refused> {
    let chat = chat(state, &call.params)?;
    let said = match call.files.contains_key(content) {
        true => "",
        false if content == "text" => text(&call.params, content, 4096)?,
        false if call.params.contains_key(content) => "",
        false => return Err(Refused::bad_request(format!("there is no {content} in the request"))),
    };
    let message_id = state.next_message;
    state.next_message += 1;
    Ok(message(chat, message_id, said))
}

fn message(chat: i64, message_id: i64, text: &str) -> Value {
    json!({
        "message_id": message_id, "date": unix_seconds(), "text": text,
        "chat": { "id": chat, "type": "private", "first_name": format!("User {chat}") },
    })
}

/// The chat; the bot knows only those that wrote to it.
fn chat(state: &State, params: &Map<String, Value>) -> Result<i64, Refused> {
    let chat = integer(params, "chat_id")?.ok_or_else(|| Refused::bad_request("chat_id is empty"))?;
    if state.chats.contains(&chat) { Ok(chat) } else { Err(Refused::bad_request("chat not found")) }
}

fn required(params: &Map<String, Value>, name: &str) -> Result<i64, Refused> {
    integer(params, name)?.ok_or_else(|| Refused::bad_request(format!("parameter {name} is required")))
}

fn integer(params: &Map<String, Value>, name: &str) -> Result<Option<i64>, Refused> {
    match params.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_i64()),
        Some(Value::String(text)) => {
            text.parse().map(Some).map_err(|_| Refused::bad_request(format!("{name} is no number")))
        }
        Some(_) => Err(Refused::bad_request(format!("{name} is no number"))),
    }
}

fn text<'a>(params: &'a Map<String, Value>, name: &str, longest: usize) -> Result<&'a str, Refused> {
    match params.get(name).and_then(Value::as_str) {
        None | Some("") => Err(Refused::bad_request(format!("{name} is empty"))),
        Some(text) if text.chars().count() > longest => {
            Err(Refused::bad_request(format!("{name} is too long")))
        }
        Some(text) => Ok(text),
    }
}

fn names(value: &Value) -> Result<Vec<String>, Refused> {
    let parsed = match value {
        Value::String(text) => serde_json::from_str(text),
        other => serde_json::from_value(other.clone()),
    };
    parsed.map_err(|_| Refused::bad_request("can't parse allowed updates"))
}
