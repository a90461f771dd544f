//! `mvm pool scale`

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use mvm_protocol::api::{ScaleAct, ScaleEvent, ScaleOutcome, ScaleRequest, Scaled};

use crate::address::PoolAddress;
use crate::client::Client;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::view::{by_state, counted};

/// How often the bar's clock moves.
const TICK: Duration = Duration::from_millis(100);

/// Bring a pool to as many instances as are wanted, so many running and so many asleep
///
/// What is missing is created, what should run is started or woken, the rest is put to sleep, many at once and as far
/// as the host's memory holds them. A count that is not given stays as it is wanted. Where there are more instances
/// than wanted nothing is done, unless --destroy is given.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("counts").required(true).multiple(true)))]
pub struct Scale {
    /// The pool, as alice/workers
    pool: PoolAddress,
    /// So many run
    #[arg(long, value_name = "N", group = "counts", value_parser = count())]
    running: Option<u32>,
    /// So many sleep
    #[arg(long, value_name = "N", group = "counts", value_parser = count())]
    sleeping: Option<u32>,
    /// Destroy what is too many, its data included: first what is stopped or failed, then what sleeps, then what runs
    #[arg(long)]
    destroy: bool,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

/// No subnet has more addresses.
fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=65_535)
}

impl Scale {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done, for single machines too.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let client = connection.agent().await?;
        let scaled = self.follow(&client).await?;
        self.output.show(&scaled, text)?;
        match trouble(&scaled) {
            None => Ok(0),
            Some(trouble) => Err(Failure::NotDone(trouble)),
        }
    }

    /// Sends what is wanted and shows how it goes. The agent begins nothing more when this ends early.
    async fn follow(&self, client: &Client) -> Result<Scaled, Failure> {
        let Self { running, sleeping, destroy, .. } = *self;
        let request = ScaleRequest { running, sleeping, destroy };
        let mut lines = client.post_for_lines(&format!("{}/scale", self.pool.path()), &request).await?;
        let bar = Bar::new();
        loop {
            match lines.next().await? {
                Some(ScaleEvent::Planned { created, destroys, acts }) => {
                    bar.planned(created, &destroys, acts);
                }
                Some(ScaleEvent::Begun { instance, doing }) => bar.begun(&instance, &doing),
                Some(ScaleEvent::Ended(outcome)) => bar.ended(&outcome),
                Some(ScaleEvent::Done(scaled)) => return Ok(scaled),
                Some(ScaleEvent::Failed { error }) => return Err(Failure::Refused(error)),
                None => return Err(client.broken("it stopped in the middle of the scaling")),
            }
        }
    }
}

/// How far it is, on standard error: a bar on a terminal, else a line for each thing that happens.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let plain = ProgressStyle::default_bar();
            let style =
                plain.clone().template("{pos}/{len} [{bar:30}] {elapsed:.dim} {msg}").unwrap_or(plain);
            ProgressBar::new(0).with_style(style.progress_chars("=> "))
        }))
    }

    fn planned(&self, created: usize, destroys: &[String], acts: usize) {
        if let Some(bar) = &self.0 {
            bar.set_length(acts as u64);
            bar.enable_steady_tick(TICK);
        }
        if created > 0 {
            self.say(&format!("{} created", counted(created, "instance")));
        }
        if !destroys.is_empty() {
            self.say(&format!("destroying {}", destroys.join(", ")));
        }
    }

    fn begun(&self, instance: &str, doing: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(format!("{instance}: {doing}")),
            None => self.say(&format!("{instance}: {doing}")),
        }
    }

    fn ended(&self, outcome: &ScaleOutcome) {
        match &self.0 {
            Some(bar) => bar.inc(1),
            None => self.say(&line(outcome)),
        }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| anstream::eprintln!("{text}")),
            None => anstream::eprintln!("{text}"),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn line(outcome: &ScaleOutcome) -> String {
    let ScaleOutcome { instance, state, how, ms, error, .. } = outcome;
    match (error, how) {
        (Some(error), _) => format!("{instance}: {state}: {error}"),
        (None, Some(how)) => format!("{instance}: {state} ({how}, {ms:.0} ms)"),
        (None, None) => format!("{instance}: {state} ({ms:.0} ms)"),
    }
}

fn text(scaled: &Scaled) -> String {
    let Scaled { pool, instances, changed, created, outcomes, .. } = scaled;
    if !changed {
        return format!("nothing to do: {pool} has {}", by_state(instances));
    }
    let count = |act: ScaleAct, words: &str| {
        let done = outcomes.iter().filter(|outcome| outcome.act == act && outcome.error.is_none()).count();
        (done > 0).then(|| format!("{done} {words}"))
    };
    let parts: Vec<String> = [
        (*created > 0).then(|| format!("{created} created")),
        count(ScaleAct::Destroy, "destroyed"),
        count(ScaleAct::Sleep, "put to sleep"),
        count(ScaleAct::Prepare, "started and put to sleep"),
        count(ScaleAct::Run, "started or woken"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let done = if parts.is_empty() { "no machine had to change".to_owned() } else { parts.join(", ") };
    format!("{pool}: {done}; it has {}", by_state(instances))
}

/// What was not done, by address.
fn trouble(scaled: &Scaled) -> Option<String> {
    let Scaled { pool, outcomes, stopped, not_begun, .. } = scaled;
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| Some(format!("  {}: {}", outcome.instance, outcome.error.as_ref()?)))
        .collect();
    let mut lines = Vec::new();
    if !failed.is_empty() {
        lines.push(format!("{} of {pool} failed:", counted(failed.len(), "act")));
        lines.extend(failed);
    }
    if let Some(why) = stopped {
        let left = counted(not_begun.len(), "instance");
        lines.push(format!("{pool}: {left} left as they were: {why}"));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use mvm_model::{DesiredCounts, InstanceState};

    use super::*;

    fn scaled(outcomes: Vec<ScaleOutcome>) -> Scaled {
        Scaled {
            pool: "alice/workers".into(),
            desired: DesiredCounts { running: 1, warm: 0, sleeping: 1 },
            instances: [("running".to_owned(), 1), ("sleeping".to_owned(), 1)].into(),
            changed: !outcomes.is_empty(),
            created: 0,
            outcomes,
            stopped: None,
            not_begun: Vec::new(),
        }
    }

    fn outcome(act: ScaleAct, error: Option<&str>) -> ScaleOutcome {
        ScaleOutcome {
            instance: "alice/workers/i-0000002a".into(),
            act,
            state: InstanceState::Running,
            how: (act == ScaleAct::Run).then(|| "wake".into()),
            ms: 92.6,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_done_is_counted_and_what_holds_is_said() {
        let nothing = scaled(Vec::new());
        assert_eq!(text(&nothing), "nothing to do: alice/workers has 1 running, 1 sleeping");
        assert_eq!(trouble(&nothing), None);
        let wished = Scaled { changed: true, ..scaled(Vec::new()) };
        let said = "alice/workers: no machine had to change; it has 1 running, 1 sleeping";
        assert_eq!(text(&wished), said);
        let acts = vec![outcome(ScaleAct::Destroy, None), outcome(ScaleAct::Run, None)];
        let said = "alice/workers: 2 created, 1 destroyed, 1 started or woken; it has 1 running, 1 sleeping";
        assert_eq!(text(&Scaled { created: 2, ..scaled(acts) }), said);
    }

    #[test]
    fn what_was_not_done_is_said_by_address() {
        let mut one = scaled(vec![outcome(ScaleAct::Run, Some("no kernel")), outcome(ScaleAct::Run, None)]);
        let said = "1 act of alice/workers failed:\n  alice/workers/i-0000002a: no kernel";
        assert_eq!(trouble(&one).unwrap(), said);
        assert!(text(&one).contains("1 started or woken"));
        one.stopped = Some("the host is full: 1 of 3 run".into());
        one.not_begun = vec!["alice/workers/i-0000002b".into(), "alice/workers/i-0000002c".into()];
        let last = "\nalice/workers: 2 instances left as they were: the host is full: 1 of 3 run";
        assert_eq!(trouble(&one).unwrap(), format!("{said}{last}"));
    }

    #[test]
    fn a_line_says_how_it_went() {
        assert_eq!(line(&outcome(ScaleAct::Run, None)), "alice/workers/i-0000002a: running (wake, 93 ms)");
        assert_eq!(line(&outcome(ScaleAct::Sleep, None)), "alice/workers/i-0000002a: running (93 ms)");
        assert_eq!(line(&outcome(ScaleAct::Run, Some("no"))), "alice/workers/i-0000002a: running: no");
    }
}
