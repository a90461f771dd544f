//! Who sent an update, and what it asks for.

use serde_json::Value;

/// What is asked for: what OpenClaw understands of a private chat.
pub(super) const KINDS: [&str; 4] = ["message", "edited_message", "callback_query", "message_reaction"];

/// An update as it came, and what the gateway reads of it.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) id: i64,
    /// All of it.
    pub(super) content: Value,
    /// Who sent it, in their private chat with the bot; none for groups and channels.
    pub(super) sender: Option<i64>,
}

impl Update {
    /// None without an id.
    pub(super) fn parse(content: Value) -> Option<Update> {
        let id = content.get("update_id")?.as_i64()?;
        let sender = private_sender(&content);
        Some(Update { id, content, sender })
    }

    /// Its text, where it is a message.
    fn text(&self) -> Option<&str> {
        self.content.get("message")?.get("text")?.as_str()
    }

    /// The code of a one-time link, which Telegram sends as the first message.
    pub(super) fn start_code(&self) -> Option<&str> {
        let code = self.text()?.strip_prefix("/start")?.strip_prefix([' ', '\n'])?.trim();
        Some(code).filter(|code| !code.is_empty())
    }

    /// Whether an answer will come to it.
    pub(super) fn wants_answer(&self) -> bool {
        self.content.get("message").is_some() || self.content.get("callback_query").is_some()
    }
}

fn private_sender(content: &Value) -> Option<i64> {
    let kind = KINDS.iter().find_map(|kind| content.get(kind))?;
    let sender = kind.get("from").or_else(|| kind.get("user"))?.get("id")?.as_i64()?;
    let chat = kind.get("chat").or_else(|| kind.get("message")?.get("chat"))?;
    let is_private = chat.get("type")? == "private" && chat.get("id")?.as_i64() == Some(sender);
    is_private.then_some(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sender(update: Value) -> Option<i64> {
        Update::parse(update).unwrap().sender
    }

    #[test]
    fn only_what_a_person_does_in_their_private_chat_has_a_sender() {
        let private = json!({ "id": 7, "type": "private" });
        let group = json!({ "id": -7, "type": "group" });
        let by = json!({ "id": 7 });
        assert_eq!(sender(json!({ "update_id": 1, "message": { "from": by, "chat": private } })), Some(7));
        let query =
            json!({ "update_id": 1, "callback_query": { "from": by, "message": { "chat": private } } });
        assert_eq!(sender(query), Some(7));
        assert_eq!(
            sender(json!({ "update_id": 1, "message_reaction": { "user": by, "chat": private } })),
            Some(7)
        );
        for other in [
            json!({ "update_id": 1, "message": { "from": by, "chat": group } }),
            json!({ "update_id": 1, "message": { "from": { "id": 8 }, "chat": private } }),
            json!({ "update_id": 1, "callback_query": { "from": by, "inline_message_id": "x" } }),
            json!({ "update_id": 1, "channel_post": { "chat": { "id": 7, "type": "private" } } }),
            json!({ "update_id": 1 }),
        ] {
            assert_eq!(sender(other.clone()), None, "{other}");
        }
        assert!(Update::parse(json!({ "message": {} })).is_none());
    }

    #[test]
    fn a_code_is_what_follows_start() {
        let code = |text: &str| {
            let update = Update::parse(json!({ "update_id": 1, "message": { "text": text } })).unwrap();
            update.start_code().map(str::to_owned)
        };
        assert_eq!(code("/start abc_D-1").as_deref(), Some("abc_D-1"));
        for text in ["/start", "/start ", "/started abc", "start abc", "hello"] {
            assert_eq!(code(text), None, "{text}");
        }
    }
}
