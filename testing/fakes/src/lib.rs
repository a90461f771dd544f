//! Services outside that tests cannot reach, spoken as their documentation says and strict about what they are sent:
//! [`BotApi`] is Telegram's, [`ModelApi`] is Anthropic's.
//!
//! Each is given a listener, so that it can be bound in a network namespace, and has a thread of its own. What it was
//! asked is recorded; what is to go wrong can be ordered with a [`Fault`].

mod anthropic;
mod parameters;
mod recorded;
mod server;
mod telegram;

pub use anthropic::{ModelApi, ModelCall};
pub use recorded::Fault;
pub use telegram::{BotApi, BotCall};
