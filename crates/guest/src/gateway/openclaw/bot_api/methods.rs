//! What a worker may call.

/// A method, and what becomes of a call of it.
#[derive(Debug)]
pub(super) struct Method {
    /// As Telegram spells it.
    pub(super) name: &'static str,
    pub(super) does: Does,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    /// Passed on; names no chat.
    Plain,
    /// Passed on, to the worker's own chat.
    ToChat,
    /// The same, and the person sees something of it.
    Say,
    /// Answered here, with true.
    AnswerTrue,
    /// Answered here: there are no commands.
    AnswerCommands,
    /// Answered here: the webhook is the worker's.
    AnswerWebhook,
    /// Not for workers, and said to be so.
    Refuse,
}

const METHODS: &[Method] = &[
    Method { name: "getMe", does: Does::Plain },
    Method { name: "getFile", does: Does::Plain },
    Method { name: "answerCallbackQuery", does: Does::Plain },
    Method { name: "sendChatAction", does: Does::ToChat },
    Method { name: "setMessageReaction", does: Does::ToChat },
    Method { name: "getChat", does: Does::ToChat },
    Method { name: "pinChatMessage", does: Does::ToChat },
    Method { name: "unpinChatMessage", does: Does::ToChat },
    Method { name: "unpinAllChatMessages", does: Does::ToChat },
    Method { name: "deleteMessage", does: Does::ToChat },
    Method { name: "deleteMessages", does: Does::ToChat },
    Method { name: "stopPoll", does: Does::ToChat },
    Method { name: "sendMessage", does: Does::Say },
    Method { name: "sendMessageDraft", does: Does::Say },
    Method { name: "sendRichMessage", does: Does::Say },
    Method { name: "sendPhoto", does: Does::Say },
    Method { name: "sendDocument", does: Does::Say },
    Method { name: "sendVoice", does: Does::Say },
    Method { name: "sendAudio", does: Does::Say },
    Method { name: "sendVideo", does: Does::Say },
    Method { name: "sendVideoNote", does: Does::Say },
    Method { name: "sendAnimation", does: Does::Say },
    Method { name: "sendSticker", does: Does::Say },
    Method { name: "sendMediaGroup", does: Does::Say },
    Method { name: "sendLocation", does: Does::Say },
    Method { name: "sendVenue", does: Does::Say },
    Method { name: "sendContact", does: Does::Say },
    Method { name: "sendPoll", does: Does::Say },
    Method { name: "sendDice", does: Does::Say },
    Method { name: "copyMessage", does: Does::Say },
    Method { name: "forwardMessage", does: Does::Say },
    Method { name: "editMessageText", does: Does::Say },
    Method { name: "editMessageCaption", does: Does::Say },
    Method { name: "editMessageMedia", does: Does::Say },
    Method { name: "editMessageReplyMarkup", does: Does::Say },
    Method { name: "editMessageLiveLocation", does: Does::Say },
    Method { name: "stopMessageLiveLocation", does: Does::Say },
    Method { name: "setWebhook", does: Does::AnswerTrue },
    Method { name: "deleteWebhook", does: Does::AnswerTrue },
    Method { name: "setMyCommands", does: Does::AnswerTrue },
    Method { name: "deleteMyCommands", does: Does::AnswerTrue },
    Method { name: "getMyCommands", does: Does::AnswerCommands },
    Method { name: "getWebhookInfo", does: Does::AnswerWebhook },
    Method { name: "getUpdates", does: Does::Refuse },
    Method { name: "logOut", does: Does::Refuse },
    Method { name: "close", does: Does::Refuse },
];

/// A method by its name, which Telegram takes in any case.
pub(super) fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name.eq_ignore_ascii_case(name))
}
