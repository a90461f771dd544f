//! People who are not served: each is told so once a day, and no more is done for them.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::{Context, durable};
use super::api;
use crate::gateway::note;
use crate::lock;

/// Nobody is told any more when so many have been in a day.
const PER_DAY: usize = 10_000;
/// Those who are still to be told; one more is not.
const QUEUE: usize = 256;
const CALL: Duration = Duration::from_secs(20);
const REFUSAL: &str =
    "This bot only talks with people it was set up for. If somebody gave you a link, open that.";

/// Who was told today.
#[derive(Debug)]
pub(super) struct Strangers {
    context: Arc<Context>,
    told: Arc<Mutex<Told>>,
    queue: mpsc::Sender<(u64, i64)>,
    _telling: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Told {
    day: u64,
    people: HashSet<i64>,
}

impl Strangers {
    /// As it is written in `folder`, in a file a day.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(super) async fn open(context: Arc<Context>, folder: PathBuf) -> io::Result<Strangers> {
        let day = today();
        forget_other_days(&folder, day).await;
        let lines = durable::read(&folder.join(day.to_string())).await?.unwrap_or_default();
        let lines = String::from_utf8_lossy(&lines);
        let people = lines.lines().filter_map(|line| line.parse().ok()).collect();
        let (queue, waiting) = mpsc::channel(QUEUE);
        let telling = tell(Arc::clone(&context), folder, waiting);
        let telling = AbortOnDropHandle::new(tokio::spawn(telling));
        let told = Arc::new(Mutex::new(Told { day, people }));
        Ok(Strangers { context, told, queue, _telling: telling })
    }

    /// Tells somebody that they are not served, unless they were told today.
    pub(super) fn refuse(&self, person: i64) {
        let mut told = lock(&self.told);
        let day = today();
        if told.day != day {
            *told = Told { day, people: HashSet::new() };
        }
        let is_new = told.people.len() < PER_DAY && !told.people.contains(&person);
        let queued = is_new && self.queue.try_send((day, person)).is_ok();
        if queued {
            told.people.insert(person);
        }
        self.context.metrics.stranger(queued);
    }
}

async fn tell(context: Arc<Context>, folder: PathBuf, mut waiting: mpsc::Receiver<(u64, i64)>) {
    let mut current = today();
    while let Some((day, person)) = waiting.recv().await {
        if day != current {
            current = day;
            forget_other_days(&folder, day).await;
        }
        // First: rather not told than told again and again.
        if let Err(error) = durable::append(folder.join(day.to_string()), person.to_string()).await {
            note(&format!("a stranger is not told that they are not served: {}: {error}", folder.display()));
            continue;
        }
        let settings = context.settings();
        let Some(bot) = &settings.bot else { continue };
        let said = json!({ "chat_id": person, "text": REFUSAL });
        // Who blocked the bot does not get it; it is not worth another try.
        let _ = api::call(&context.outgoing, &settings, bot, "sendMessage", &said, CALL).await;
    }
}

async fn forget_other_days(folder: &std::path::Path, day: u64) {
    let Ok(mut files) = tokio::fs::read_dir(folder).await else { return };
    while let Ok(Some(file)) = files.next_entry().await {
        if file.file_name() != *day.to_string() {
            // Tried again the next day.
            let _ = durable::remove(file.path()).await;
        }
    }
}

/// Days since 1970.
fn today() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400)
}
