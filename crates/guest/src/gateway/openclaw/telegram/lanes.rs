//! The updates of each chat, one after the other; chats side by side.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::Context;
use super::claim::{self, Claim, Claimed};
use super::ledger::Ledger;
use super::parked::{Parked, Unreadable};
use super::update::Update;
use super::{Backoff, api, deliver};
use crate::gateway::note;
use crate::lock;

/// Deliveries at once.
const AT_ONCE: usize = 64;
/// What is in hand when the gateway ends has so long.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// For so long a person is shown that their update is on its way.
const TYPING: Duration = Duration::from_secs(120);
const CALL: Duration = Duration::from_secs(20);
const GREETING: &str = "Welcome! This bot is your assistant now: write to it whatever you like.";
const NO_GREETING: &str = "This link is not valid any more. Ask whoever gave it to you for a new one.";

/// All chats that something waits in.
#[derive(Debug)]
pub(super) struct Lanes {
    context: Arc<Context>,
    ledger: Arc<Ledger>,
    parked: Parked,
    lanes: Mutex<HashMap<i64, Lane>>,
    places: Semaphore,
    deliveries: TaskTracker,
    ending: CancellationToken,
}

/// One chat; its first item is in hand.
#[derive(Debug)]
struct Lane {
    user: String,
    /// It began with a link of theirs, and who they are may not be decided.
    is_claiming: bool,
    items: VecDeque<Item>,
    /// What waits is to be kept here: its own task does it, as that knows what it has in hand.
    to_park: bool,
    asked: Arc<Notify>,
}

/// What is in hand.
struct First {
    user: String,
    item: Item,
    asked: Arc<Notify>,
}

/// Something to be done.
#[derive(Debug, Clone)]
struct Item {
    id: i64,
    since: Instant,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// Telegram has it.
    Fresh(Arc<Update>),
    /// It is kept here.
    Parked,
    /// There were too many.
    Dropped,
}

impl Item {
    fn is_fresh(&self) -> bool {
        matches!(self.what, What::Fresh(_))
    }
}

impl Drop for Lanes {
    /// Another bot is served, whose updates are counted anew.
    fn drop(&mut self) {
        for lane in lock(&self.lanes).values() {
            for item in &lane.items {
                self.context.metrics.waiting(&lane.user, -1);
                if matches!(item.what, What::Parked) {
                    self.context.metrics.parked(&lane.user, -1);
                }
            }
        }
    }
}

impl Lanes {
    /// Goes on with what is kept, until `ending`.
    ///
    /// # Errors
    /// What is kept cannot be gone on with.
    pub(super) async fn open(
        context: Arc<Context>,
        ledger: Arc<Ledger>,
        parked: Parked,
        deliveries: TaskTracker,
        ending: CancellationToken,
    ) -> io::Result<Arc<Lanes>> {
        let kept = parked.all();
        // Where the gateway ended before it wrote that down.
        ledger.is_kept(kept.values().flatten().copied()).await?;
        let (lanes, places) = (Mutex::default(), Semaphore::new(AT_ONCE));
        let lanes = Arc::new(Lanes { context, ledger, parked, lanes, places, deliveries, ending });
        let settings = lanes.context.settings();
        for (chat, ids) in kept {
            let person = lanes.context.claims.person(&settings, chat);
            let user = person.map_or("", |person| &person.served.user);
            for id in ids {
                lanes.context.metrics.parked(user, 1);
                lanes.add(chat, user, Item { id, since: Instant::now(), what: What::Parked });
            }
        }
        Ok(lanes)
    }

    /// Adds an update to those of a chat.
    pub(super) fn push(self: &Arc<Self>, chat: i64, user: &str, update: Update) {
        let item = Item { id: update.id, since: Instant::now(), what: What::Fresh(Arc::new(update)) };
        self.add(chat, user, item);
    }

    /// Whether somebody in this chat has opened a link, and it is not decided yet what comes of it.
    pub(super) fn is_claiming(&self, chat: i64) -> bool {
        lock(&self.lanes).get(&chat).is_some_and(|lane| lane.is_claiming)
    }

    fn add(self: &Arc<Self>, chat: i64, user: &str, item: Item) {
        let is_claiming = self.context.claims.person(&self.context.settings(), chat).is_none();
        let mut lanes = lock(&self.lanes);
        let is_new = !lanes.contains_key(&chat);
        let lane = lanes.entry(chat);
        let lane = lane.or_insert_with(|| Lane {
            user: user.to_owned(),
            is_claiming,
            items: VecDeque::new(),
            to_park: false,
            asked: Arc::default(),
        });
        self.context.metrics.waiting(&lane.user, 1);
        lane.items.push_back(item);
        if is_new {
            let lanes = Arc::clone(self);
            self.deliveries.spawn(async move { lanes.run(chat).await });
        }
    }

    /// The first item of a chat; its lane goes with the last one.
    fn first(&self, chat: i64) -> Option<First> {
        let mut lanes = lock(&self.lanes);
        let lane = lanes.get(&chat)?;
        let first = lane.items.front().map(|item| First {
            user: lane.user.clone(),
            item: item.clone(),
            asked: Arc::clone(&lane.asked),
        });
        if first.is_none() {
            lanes.remove(&chat);
        }
        first
    }

    async fn run(self: Arc<Self>, chat: i64) {
        let mut changes = self.context.settings.subscribe();
        let mut backoff = Backoff::of(&self.context);
        let (mut tries, mut trying) = (0_u32, 0);
        while let Some(First { user, item, asked }) = self.first(chat) {
            if item.id != trying {
                (tries, trying) = (0, item.id);
            }
            let Some(tried) = self.attempt_to_the_end(chat, &item, &asked).await else { return };
            let Err(error) = tried else {
                self.finish(chat).await;
                backoff.reset();
                if self.ending.is_cancelled() {
                    return;
                }
                continue;
            };
            tries += 1;
            self.context.metrics.failed(&user);
            if tries.is_power_of_two() {
                note(&format!(
                    "update {} of `{user}` is not delivered yet, after {tries} tries: {error}",
                    item.id
                ));
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = asked.notified() => self.keep_waiting(chat).await,
                // It may be mended.
                _ = changes.changed() => {}
                () = self.ending.cancelled() => return,
            }
        }
    }

    /// Does what is to be done once, while what waits may be kept. None where there is no time left.
    async fn attempt_to_the_end(&self, chat: i64, item: &Item, asked: &Notify) -> Option<Result<(), String>> {
        let mut attempt = pin!(self.attempt(chat, item));
        let mut ended = pin!(async {
            self.ending.cancelled().await;
            sleep(LAST_WORDS).await;
        });
        loop {
            tokio::select! {
                tried = &mut attempt => return Some(tried),
                () = &mut ended => return None,
                () = asked.notified() => self.keep_waiting(chat).await,
            }
        }
    }

    /// Does what is to be done once.
    async fn attempt(&self, chat: i64, item: &Item) -> Result<(), String> {
        match &item.what {
            What::Dropped => Ok(()),
            What::Fresh(update) => self.decide(chat, update, item.since.elapsed() < TYPING).await,
            What::Parked => match self.parked.read(chat, item.id).await {
                Ok(content) => match Update::parse(content) {
                    Some(update) => self.decide(chat, &update, false).await,
                    None => Ok(()),
                },
                Err(Unreadable::Lost(why)) => {
                    note(&format!("update {} was kept, and is lost: {why}", item.id));
                    Ok(())
                }
                Err(error @ Unreadable::ForNow(_)) => Err(error.to_string()),
            },
        }
    }

    /// Delivers an update, or makes its sender a user by it.
    async fn decide(&self, chat: i64, update: &Update, lately: bool) -> Result<(), String> {
        let settings = self.context.settings();
        if update.start_code().is_some_and(|code| self.context.claims.has_opened(&settings, chat, code)) {
            // Once more, or after a sudden end.
            return Ok(());
        }
        let is_served = self.context.claims.person(&settings, chat).is_some();
        let Some(code) = update.start_code().filter(|_| !is_served) else {
            return self.deliver(chat, update, lately).await;
        };
        match self.context.claims.find(&settings, code) {
            Some(user) => {
                let claim = Claim { code: code.to_owned(), user: user.to_owned(), telegram: chat };
                self.claim(&claim).await
            }
            None => {
                self.is_nobody(chat);
                self.say(chat, NO_GREETING).await;
                Ok(())
            }
        }
    }

    /// `lately`: the person may still be waiting.
    async fn deliver(&self, chat: i64, update: &Update, lately: bool) -> Result<(), String> {
        let settings = self.context.settings();
        // They are not served any more.
        let Some(person) = self.context.claims.person(&settings, chat) else { return Ok(()) };
        let Some(worker) = &person.worker else { return Err("they have no worker at present".to_owned()) };
        let _place = self.places.acquire().await.map_err(|closed| closed.to_string())?;
        let typing = &self.context.typing;
        if lately && update.wants_answer() {
            typing.show(&self.context, chat);
        }
        deliver::hand_over(&self.context, worker, chat, &update.content).await?;
        self.context.metrics.delivered(&person.served.user);
        match lately {
            true => typing.go_on(chat),
            false if update.wants_answer() => typing.show(&self.context, chat),
            false => {}
        }
        Ok(())
    }

    async fn claim(&self, claim: &Claim) -> Result<(), String> {
        let answer = claim::ask(&self.context.host_socket, claim).await.map_err(|error| error.to_string())?;
        let text = match answer {
            Claimed::Is(user) => {
                // The host holds them for this user now, whether this can be written down or not: it says so again.
                let kept = self.context.claims.add(claim.telegram, user.clone()).await;
                kept.map_err(|error| format!("that they are `{user}` is not written down: {error}"))?;
                note(&format!("`{user}` has opened their link"));
                GREETING
            }
            Claimed::Refused(why) => {
                note(&format!("the link of `{}` was opened and refused: {why}", claim.user));
                self.is_nobody(claim.telegram);
                NO_GREETING
            }
        };
        self.say(claim.telegram, text).await;
        Ok(())
    }

    /// The link in hand makes them nobody's user. Another that waits may.
    fn is_nobody(&self, chat: i64) {
        if let Some(lane) = lock(&self.lanes).get_mut(&chat) {
            let is_link = |item: &Item| match &item.what {
                What::Fresh(update) => update.start_code().is_some(),
                What::Parked => true,
                What::Dropped => false,
            };
            lane.is_claiming = lane.items.iter().skip(1).any(is_link);
        }
    }

    /// Says something to a person, with a few tries.
    async fn say(&self, chat: i64, text: &str) {
        let mut backoff = Backoff::of(&self.context);
        for _ in 0..3 {
            let settings = self.context.settings();
            let Some(bot) = &settings.bot else { return };
            let said = json!({ "chat_id": chat, "text": text });
            let called = api::call(&self.context.outgoing, &settings, bot, "sendMessage", &said, CALL).await;
            match called {
                Ok(_) => return,
                Err(error) => note(&format!("a greeting was not sent: {error}")),
            }
            backoff.wait().await;
        }
    }

    /// The first item of a chat is done with.
    async fn finish(&self, chat: i64) {
        let (user, item) = {
            let mut lanes = lock(&self.lanes);
            let Some(lane) = lanes.get_mut(&chat) else { return };
            let Some(item) = lane.items.pop_front() else { return };
            (lane.user.clone(), item)
        };
        self.context.metrics.waiting(&user, -1);
        match item.what {
            What::Fresh(_) => {
                self.ledger.done(item.id);
                self.ledger.save().await;
            }
            What::Parked => {
                self.context.metrics.parked(&user, -1);
                if let Err(error) = self.parked.forget(chat, item.id).await {
                    note(&format!("update {} may come twice: {error}", item.id));
                }
            }
            What::Dropped => {}
        }
    }

    /// Has kept here what has waited for long, and what waits in the chat of an update that is `in_the_way` of others.
    pub(super) fn park(&self, in_the_way: Option<i64>) {
        let oldest = self.context.config.pace.park_after;
        for lane in lock(&self.lanes).values_mut() {
            let first = lane.items.iter().find(|item| item.is_fresh());
            let is_due =
                first.is_some_and(|item| in_the_way == Some(item.id) || item.since.elapsed() >= oldest);
            if is_due && !lane.to_park {
                lane.to_park = true;
                lane.asked.notify_one();
            }
        }
    }

    /// Keeps here what waits in a chat, if that is wanted: from the first on, so that after a sudden end what is kept comes
    /// before what Telegram has. The one in hand is among it, and nothing becomes of it meanwhile.
    async fn keep_waiting(&self, chat: i64) {
        let updates = {
            let mut lanes = lock(&self.lanes);
            let Some(lane) = lanes.get_mut(&chat).filter(|lane| lane.to_park) else { return };
            lane.to_park = false;
            let fresh = lane.items.iter().filter_map(|item| match &item.what {
                What::Fresh(update) => Some(Arc::clone(update)),
                _ => None,
            });
            fresh.collect::<Vec<_>>()
        };
        for update in updates {
            let mut what = What::Parked;
            if self.parked.is_full(chat) {
                note(&format!("update {} is dropped: too many wait in its chat", update.id));
                what = What::Dropped;
            } else if let Err(error) = self.parked.keep(chat, update.id, &update.content).await {
                note(&format!("update {} is left with Telegram: {error}", update.id));
                break;
            }
            self.turn(chat, update.id, what);
        }
        self.ledger.save().await;
    }

    /// Turns a fresh item into another.
    fn turn(&self, chat: i64, id: i64, what: What) {
        let mut lanes = lock(&self.lanes);
        let Some(lane) = lanes.get_mut(&chat) else { return };
        let Some(item) = lane.items.iter_mut().find(|item| item.id == id) else { return };
        if matches!(what, What::Parked) {
            self.context.metrics.parked(&lane.user, 1);
        }
        item.what = what;
        self.ledger.done(id);
    }
}
