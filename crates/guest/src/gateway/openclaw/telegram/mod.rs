//! Updates from Telegram to the workers of those who sent them.
//!
//! | file | does |
//! |---|---|
//! | `api` | calls of the gateway's own |
//! | `poll` | asks for updates |
//! | `update` | who sent one, and what it asks for |
//! | `ledger` | which updates are done with: kept, so that none is lost and none comes twice |
//! | `lanes` | the updates of each chat, one after the other |
//! | `deliver` | hands one to a worker |
//! | `parked` | updates that are kept here, as Telegram does not keep them long enough |
//! | `claim` | makes whoever opens a one-time link its user |
//! | `strangers` | who has been told that they are not served |
//! | `typing` | shows a person that something happens |

mod api;
mod claim;
mod deliver;
mod lanes;
mod ledger;
mod parked;
mod poll;
mod strangers;
mod typing;
mod update;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::settings::BotToken;
use super::{Context, durable};
use crate::gateway::note;

pub(super) use claim::Claims;
pub(super) use typing::Typing;

use lanes::Lanes;
use ledger::Ledger;
use parked::Parked;
use strangers::Strangers;

/// What is kept of one bot, and what is in hand for it. A new token of the same bot goes on with it.
struct Session {
    context: Arc<Context>,
    ledger: Arc<Ledger>,
    lanes: Arc<Lanes>,
    strangers: Strangers,
}

/// Polls for whichever bot there is, until the gateway ends.
pub(super) async fn run(context: Arc<Context>) {
    let mut changes = context.settings.subscribe();
    loop {
        let bot = changes.borrow_and_update().bot.clone();
        let (deliveries, ending) = (TaskTracker::new(), CancellationToken::new());
        let session = async {
            match &bot {
                Some(bot) => serve(&context, bot, &deliveries, &ending).await,
                None => note(
                    "there is no telegram/TELEGRAM_BOT_TOKEN that could be one: nothing is taken from Telegram",
                ),
            }
            // Until there is a bot, or another one.
            while changes.changed().await.is_ok() {
                if changes.borrow().bot.as_ref().map(BotToken::bot_id) != bot_id(&bot) {
                    return;
                }
            }
        };
        let ends = context.closing.run_until_cancelled(session).await.is_none();
        // What is in hand is written down before anybody goes on with the same bot.
        ending.cancel();
        deliveries.close();
        deliveries.wait().await;
        if ends {
            return;
        }
    }
}

fn bot_id(bot: &Option<BotToken>) -> Option<u64> {
    bot.as_ref().map(BotToken::bot_id)
}

/// Serves a bot, until another one is to be served.
async fn serve(context: &Arc<Context>, bot: &BotToken, deliveries: &TaskTracker, ending: &CancellationToken) {
    let (mut pause, mut noted) = (Backoff::of(context), false);
    let session = loop {
        match Session::open(context, bot, deliveries, ending).await {
            Ok(session) => break session,
            Err(error) if !std::mem::replace(&mut noted, true) => note(&format!(
                "nothing is taken from Telegram until this is mended: {}: {error}; the gateways' pool needs a data disk",
                context.config.data.display()
            )),
            Err(_) => {}
        }
        pause.wait().await;
    };
    session.poll(bot.bot_id()).await;
}

impl Session {
    async fn open(
        context: &Arc<Context>,
        bot: &BotToken,
        deliveries: &TaskTracker,
        ending: &CancellationToken,
    ) -> io::Result<Session> {
        let folder = context.config.data.join("telegram").join(bot.bot_id().to_string());
        durable::tidy(&folder).await;
        let ledger = Arc::new(Ledger::open(folder.join("position.json")).await?);
        let parked = Parked::open(folder.join("parked")).await?;
        let lanes =
            Lanes::open(Arc::clone(context), Arc::clone(&ledger), parked, deliveries.clone(), ending.clone())
                .await?;
        let strangers = Strangers::open(Arc::clone(context), folder.join("strangers")).await?;
        Ok(Session { context: Arc::clone(context), ledger, lanes, strangers })
    }
}

/// Pauses that grow, each of a length of its own, so that not everybody tries at once.
struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    fn of(context: &Context) -> Backoff {
        let pace = &context.config.pace;
        Backoff { next: pace.first_pause, first: pace.first_pause, longest: pace.longest_pause }
    }

    fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause: half to all of what it has grown to.
    fn pause(&mut self) -> Duration {
        let mut random = [0; 1];
        // Without randomness it is three quarters.
        let part = match rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()) {
            Ok(1) => f64::from(random[0]) / 255.0,
            _ => 0.5,
        };
        let pause = self.next.mul_f64(0.5 + part / 2.0);
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    async fn wait(&mut self) {
        sleep(self.pause()).await;
    }
}
