//! What each person has used, by month (UTC), and kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::meter::Used;
use super::prices;
use crate::gateway::note;
use crate::gateway::openclaw::durable;
use crate::lock;

/// How long the file may lag behind, and how soon it is looked at again when it could not be read.
const BEHIND: Duration = Duration::from_secs(1);
/// Months that are kept.
const MONTHS: usize = 13;
const NANODOLLARS_A_CENT: u64 = 10_000_000;

/// Tokens by kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Tokens {
    pub(super) input: u64,
    pub(super) output: u64,
    /// All of it.
    pub(super) cache_written: u64,
    /// What of it is there for an hour and not for five minutes.
    #[serde(default)]
    pub(super) cache_written_for_an_hour: u64,
    pub(super) cache_read: u64,
}

impl Tokens {
    /// Each with its name.
    pub(in super::super) fn by_kind(self) -> [(&'static str, u64); 4] {
        let Tokens { input, output, cache_written, cache_read, .. } = self;
        [("input", input), ("output", output), ("cache_written", cache_written), ("cache_read", cache_read)]
    }
}

/// Of one person in one month.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Usage {
    pub(in super::super) requests: u64,
    pub(in super::super) tokens: Tokens,
    pub(in super::super) cost_nanodollars: u64,
}

impl Usage {
    fn add(&mut self, more: &Usage) {
        self.requests += more.requests;
        let (tokens, more_tokens) = (&mut self.tokens, &more.tokens);
        tokens.input += more_tokens.input;
        tokens.output += more_tokens.output;
        tokens.cache_written += more_tokens.cache_written;
        tokens.cache_written_for_an_hour += more_tokens.cache_written_for_an_hour;
        tokens.cache_read += more_tokens.cache_read;
        self.cost_nanodollars += more.cost_nanodollars;
    }
}

/// By month (`2026-11`) and name.
type Months = BTreeMap<String, BTreeMap<String, Usage>>;

/// All of it, in memory and on disk.
#[derive(Debug)]
pub(in super::super) struct Spending {
    path: PathBuf,
    months: Mutex<Months>,
    changed: Notify,
    /// The file could not be read: it is not to be overwritten, and what is in memory is only what came since.
    broken: AtomicBool,
}

impl Spending {
    /// As it was written last. A file that cannot be read stays as it is, and until it is mended or removed nobody is served
    /// who has a limit: with a count from zero at each start a limit would be none.
    pub(in super::super) async fn open(path: PathBuf) -> Spending {
        let read = read(&path).await;
        let broken = AtomicBool::new(read.is_err());
        let months = read.unwrap_or_else(|error| {
            note(&format!(
                "what was spent is not known and not kept, and whoever has a limit has no models: {}: {error}; mend it, \
                 or remove it and all count from zero",
                path.display()
            ));
            Months::new()
        });
        Spending { path, months: Mutex::new(months), changed: Notify::new(), broken }
    }

    /// Whether it is known what everybody has spent.
    pub(super) fn is_known(&self) -> bool {
        !self.broken.load(Ordering::Acquire)
    }

    /// Looks whether the file can be read by now, and goes on with it, and with what was counted meanwhile.
    async fn mend(&self) {
        let Ok(read) = read(&self.path).await else { return };
        let mut months = lock(&self.months);
        let meanwhile = std::mem::replace(&mut *months, read);
        for (month, people) in meanwhile {
            let month = months.entry(month).or_default();
            people.iter().for_each(|(user, usage)| month.entry(user.clone()).or_default().add(usage));
        }
        drop(months);
        self.broken.store(false, Ordering::Release);
        note("what was spent is known again");
    }

    /// Counts an answer.
    pub(super) fn add(&self, user: &str, used: &Used) {
        let mut months = lock(&self.months);
        let month = months.entry(Date::today().month()).or_default();
        let cost_nanodollars = prices::cost(&used.model, &used.tokens);
        let usage = Usage { requests: 1, tokens: used.tokens, cost_nanodollars };
        month.entry(user.to_owned()).or_default().add(&usage);
        while months.len() > MONTHS {
            months.pop_first();
        }
        drop(months);
        self.changed.notify_one();
    }

    /// Whether somebody has spent this month what they may.
    pub(super) fn reached(&self, user: &str, limit_cents: u64) -> bool {
        let months = lock(&self.months);
        let usage = months.get(&Date::today().month()).and_then(|month| month.get(user));
        let spent = usage.map_or(0, |usage| usage.cost_nanodollars);
        spent >= limit_cents.saturating_mul(NANODOLLARS_A_CENT)
    }

    /// By name.
    pub(in super::super) fn this_month(&self) -> BTreeMap<String, Usage> {
        lock(&self.months).get(&Date::today().month()).cloned().unwrap_or_default()
    }

    /// Writes down what changes, soon.
    pub(in super::super) async fn keep_saved(&self) {
        if !self.is_known() {
            while !self.is_known() {
                sleep(BEHIND).await;
                self.mend().await;
            }
            self.save().await;
        }
        loop {
            self.changed.notified().await;
            sleep(BEHIND).await;
            self.save().await;
        }
    }

    /// Writes it down now.
    pub(in super::super) async fn save(&self) {
        if !self.is_known() {
            return;
        }
        let text = serde_json::to_vec(&*lock(&self.months)).map_err(std::io::Error::other);
        let written = match text {
            Ok(text) => durable::replace(self.path.clone(), text).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            note(&format!("what was spent is not written down: {}: {error}", self.path.display()));
        }
    }
}

async fn read(path: &Path) -> std::io::Result<Months> {
    match durable::read(path).await? {
        Some(text) => serde_json::from_slice(&text).map_err(std::io::Error::other),
        None => Ok(Months::new()),
    }
}

/// What somebody with a limit is told while it is not known what they have spent.
pub(super) const UNKNOWN_TEXT: &str = "What you have used this month cannot be read, so there are no models for you until that is mended; \
     tell whoever runs this. The gateway's log says what to do.";

/// What somebody is told who has reached their limit, and when it is over. Worded so that OpenClaw shows it as it is.
pub(super) fn limit_text(limit_cents: u64) -> String {
    let next = Date::today().next_month();
    format!(
        "This month's limit of ${}.{:02} for models is reached; it starts anew on {} (UTC).",
        limit_cents / 100,
        limit_cents % 100,
        next.long()
    )
}

/// A day of the Gregorian calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    fn today() -> Date {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Date::of_unix(now.map_or(0, |since| since.as_secs()))
    }

    fn of_unix(seconds: u64) -> Date {
        let (mut days, mut year) = (seconds / 86_400, 1970);
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Date { year, month, day: days + 1 }
    }

    fn month(self) -> String {
        format!("{:04}-{:02}", self.year, self.month)
    }

    fn next_month(self) -> Date {
        let (year, month) = if self.month == 12 { (self.year + 1, 1) } else { (self.year, self.month + 1) };
        Date { year, month, day: 1 }
    }

    fn long(self) -> String {
        const NAMES: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let name = usize::try_from(self.month - 1).ok().and_then(|index| NAMES.get(index)).unwrap_or(&"");
        format!("{} {name} {}", self.day, self.year)
    }
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @… +%F
        for (seconds, year, month, day) in [
            (0, 1970, 1, 1),
            (951_782_400, 2000, 2, 29),
            (1_709_251_199, 2024, 2, 29),
            (1_798_761_599, 2026, 12, 31),
            (4_107_542_400, 2100, 3, 1),
        ] {
            assert_eq!(Date::of_unix(seconds), Date { year, month, day });
        }
        assert_eq!(Date { year: 2026, month: 12, day: 31 }.next_month().long(), "1 January 2027");
    }

    #[tokio::test]
    async fn what_was_spent_is_kept_and_a_broken_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway/usage.json");
        let spending = Spending::open(path.clone()).await;
        let tokens = Tokens { input: 1_000_000, ..Tokens::default() };
        let used = Used { model: "claude-sonnet-4-5".to_owned(), tokens };
        spending.add("alice", &used);
        spending.save().await;
        let again = Spending::open(path.clone()).await;
        assert!(again.reached("alice", 300) && !again.reached("alice", 301) && !again.reached("bob", 1));
        again.add("alice", &used);
        assert_eq!(again.this_month()["alice"].requests, 2);

        std::fs::write(&path, "{").unwrap();
        let broken = Spending::open(path.clone()).await;
        broken.add("alice", &used);
        broken.save().await;
        broken.mend().await;
        assert!(!broken.is_known());
        assert_eq!(std::fs::read(&path).unwrap(), b"{");
        again.save().await;
        broken.mend().await;
        assert!(broken.is_known());
        assert_eq!(broken.this_month()["alice"].requests, 3);
    }
}
