//! Asks Telegram for updates, and decides for each who it is for.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::super::settings::BOT_TOKEN;
use super::api::{self, ApiError};
use super::update::{KINDS, Update};
use super::{Backoff, Session};
use crate::gateway::note;

/// How long Telegram is to wait for an update, in seconds, and how much longer its answer may take.
const LONG_POLL: u64 = 50;
const MARGIN: Duration = Duration::from_secs(15);
/// As many as Telegram gives at once.
const BATCH: usize = 100;
/// From so many on that Telegram shows, done with or not, those of the chat that the first one waits in are kept here, so that
/// the next ones are seen.
const CROWDED: usize = 64;
/// While something waits for its worker Telegram would answer at once with that, so it is asked in these steps.
const STEP: Duration = Duration::from_millis(250);
const LONG_STEP: Duration = Duration::from_secs(1);
/// Steps are short for so long after the last update.
const LIVELY: Duration = Duration::from_secs(10);

impl Session {
    /// Polls until another bot is to be served.
    pub(super) async fn poll(&self, bot_id: u64) {
        let mut changes = self.context.settings.subscribe();
        let mut backoff = Backoff::of(&self.context);
        let mut troubled = false;
        let mut last_new = Instant::now();
        loop {
            let settings = changes.borrow_and_update().clone();
            let Some(bot) = settings.bot.clone().filter(|bot| bot.bot_id() == bot_id) else { return };
            let (offset, waiting) = (self.ledger.offset(), self.ledger.waiting());
            let seconds = if waiting == 0 { LONG_POLL } else { 0 };
            let mut asked = json!({ "timeout": seconds, "limit": BATCH, "allowed_updates": KINDS });
            if let Some(offset) = offset {
                asked["offset"] = json!(offset);
            }
            let limit = Duration::from_secs(seconds) + MARGIN;
            let asked_at = Instant::now();
            let call = api::call(&self.context.outgoing, &settings, &bot, "getUpdates", &asked, limit);
            let answered = tokio::select! {
                answered = call => answered,
                changed = changes.changed() => match changed {
                    // With the new token, or to another place.
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let pause = match answered {
                Ok(updates) => {
                    if std::mem::take(&mut troubled) {
                        note("Telegram answers again");
                    }
                    backoff.reset();
                    let is_new = self.take_in(updates, offset).await;
                    if is_new {
                        last_new = Instant::now();
                    }
                    // Who is asked to wait and does not would be asked again and again.
                    let idle = !is_new && seconds > 0 && asked_at.elapsed() < LONG_STEP;
                    match self.ledger.waiting() {
                        0 if !idle => Duration::ZERO,
                        _ if last_new.elapsed() < LIVELY => STEP,
                        _ => LONG_STEP,
                    }
                }
                Err(error) => {
                    if matches!(error, ApiError::Refused { code: 401 | 404, .. }) {
                        self.context.metrics.key_refused(BOT_TOKEN);
                    }
                    if !std::mem::replace(&mut troubled, true) {
                        note(&explain(&error));
                    }
                    self.after(&error, &mut backoff)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.ledger.progress(), if !troubled => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    fn after(&self, error: &ApiError, backoff: &mut Backoff) -> Duration {
        match error {
            ApiError::Refused { retry_after: Some(time), .. } => *time,
            ApiError::Refused { code: 401 | 404 | 409, .. } => self.context.config.pace.slow_pause,
            _ => backoff.pause(),
        }
    }

    /// Whether anything was new.
    async fn take_in(&self, updates: Value, asked: Option<i64>) -> bool {
        let Value::Array(updates) = updates else { return false };
        let updates: Vec<Update> = updates.into_iter().filter_map(Update::parse).collect();
        let ids: Vec<i64> = updates.iter().map(|update| update.id).collect();
        let new = self.ledger.take_in(&ids, asked);
        for update in updates.into_iter().filter(|update| new.contains(&update.id)) {
            self.route(update);
        }
        if !new.is_empty() {
            // Those that go to nobody are done with.
            self.ledger.save().await;
        }
        self.lanes.park(self.ledger.in_the_way(CROWDED));
        !new.is_empty()
    }

    fn route(&self, update: Update) {
        let settings = self.context.settings();
        let Some(sender) = update.sender else { return self.ledger.done(update.id) };
        if let Some(person) = self.context.claims.person(&settings, sender) {
            return self.lanes.push(sender, &person.served.user, update);
        }
        let link = update.start_code().and_then(|code| self.context.claims.find(&settings, code));
        match link {
            Some(user) => self.lanes.push(sender, user, update),
            // Who they are is decided first.
            None if self.lanes.is_claiming(sender) => self.lanes.push(sender, "", update),
            None => {
                self.strangers.refuse(sender);
                self.ledger.done(update.id);
            }
        }
    }
}

fn explain(error: &ApiError) -> String {
    match error {
        ApiError::Refused { code: 401 | 404, .. } => {
            format!(
                "{error}: the bot's token is not valid (any more); give the tenant another telegram_token"
            )
        }
        ApiError::Refused { code: 409, description, .. } if description.contains("webhook") => {
            format!("{error}: a webhook is set for this bot, and while it is nothing can be taken; delete it")
        }
        ApiError::Refused { code: 409, .. } => {
            format!("{error}: something else takes this bot's updates; end it, or use a bot of its own")
        }
        _ => format!("updates are not to be had: {error}; trying again"),
    }
}
