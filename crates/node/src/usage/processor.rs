//! CPU times of processes and of the host, and their rise over a moment.

use std::fs;
use std::time::{Duration, Instant};

use super::host::read;
use super::{UsageError, blocking};

/// How long a measurement takes. CPU times are counted in hundredths of a second: less would say little.
const MOMENT: Duration = Duration::from_millis(500);

/// A process: its pid and, so that another that has it by now is not taken for it, when it started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) start_ticks: Option<u64>,
}

/// What a process took of the processors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct CpuUse {
    /// Since it started, in seconds.
    pub(super) seconds: f64,
    /// Over the moment, in percent of one core.
    pub(super) percent: f64,
}

/// What processes, in the same order, and the host's processors took over a moment. A process that has ended took
/// nothing; the host's share is in percent of all processors.
pub(super) async fn sample(processes: Vec<Process>) -> Result<(Vec<Option<CpuUse>>, f64), UsageError> {
    let begun = Instant::now();
    let first = processes.clone();
    let before = blocking(move || Reading::take(&first)).await?;
    tokio::time::sleep(MOMENT).await;
    let after = blocking(move || Reading::take(&processes)).await?;
    let elapsed = begun.elapsed().as_secs_f64();
    let uses = before.processes.iter().zip(&after.processes).map(|(before, after)| {
        let (before, after) = ((*before)?, (*after)?);
        Some(CpuUse { seconds: after, percent: (after - before).max(0.0) / elapsed * 100.0 })
    });
    Ok((uses.collect(), after.host.busy_since(before.host)))
}

struct Reading {
    processes: Vec<Option<f64>>,
    host: HostTimes,
}

impl Reading {
    fn take(processes: &[Process]) -> Result<Self, UsageError> {
        let path = "/proc/stat";
        let host = HostTimes::parse(&read(path)?);
        Ok(Self {
            host: host.ok_or_else(|| UsageError::new(path, "it says nothing of the processors"))?,
            processes: processes.iter().map(|process| process.cpu_seconds()).collect(),
        })
    }
}

impl Process {
    fn cpu_seconds(self) -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (ticks, started) = parse_times(&stat)?;
        let same = self.start_ticks.is_none_or(|start| start == started);
        same.then(|| ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// CPU time (utime and stime) and start of proc(5)'s stat line, in ticks; the name before them may hold anything.
fn parse_times(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((number(11)? + number(12)?, number(19)?))
}

/// Ticks of all the host's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostTimes {
    idle: u64,
    all: u64,
}

impl HostTimes {
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // The two after these eight are parts of the first two.
        let ticks: Vec<u64> = line.split_ascii_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
        let idle = ticks.get(3)? + ticks.get(4)?;
        Some(Self { idle, all: ticks.iter().sum() })
    }

    fn busy_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        let busy = all.saturating_sub(self.idle.saturating_sub(before.idle));
        if all == 0 { 0.0 } else { busy as f64 / all as f64 * 100.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_hides_no_times() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 12345 1 2 3";
        assert_eq!(parse_times(stat), Some((300, 12_345)));
        assert_eq!(parse_times("7 (a) S 1"), None);
    }

    #[test]
    fn waiting_is_idle_and_guests_are_not_counted_twice() {
        let before = HostTimes::parse("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1\n").unwrap();
        let after = HostTimes::parse("cpu  20 0 5 60 15 0 0 0 20 0\n").unwrap();
        assert_eq!(after, HostTimes { idle: 75, all: 100 });
        assert_eq!(after.busy_since(before), 25.0);
        assert_eq!(after.busy_since(after), 0.0);
    }

    #[tokio::test]
    async fn this_process_is_measured_and_one_that_ended_is_not() {
        let me = Process { pid: std::process::id(), start_ticks: None };
        let other = Process { start_ticks: Some(1), ..me };
        let (uses, host) = sample(vec![me, other]).await.unwrap();
        assert!(uses[0].is_some_and(|cpu| cpu.percent < 100_000.0));
        assert_eq!(uses[1], None, "another process that had the pid");
        assert!((0.0..=100.0).contains(&host));
    }
}
