//! Ratios of mvm against the same engine driven by hand, in one run. `scripts/bench` builds and runs it; README.md says how to
//! read what it prints.

mod leftovers;
mod mvm;
mod raw;
mod report;
mod rows;
mod samples;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::Parser;

use report::Report;
use rows::{Bench, Row};

/// What every part of this program fails with: it is told to a person, and ends a row.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures mvm against the same engine driven by hand.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    /// Measure these rows only
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    only: Vec<Row>,
    /// Rounds of each row; those of slow rows, and on a busy host, are fewer
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    leftovers::remove_abandoned();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    runtime.spawn(remove_when_interrupted());
    let measured = std::panic::catch_unwind(AssertUnwindSafe(|| measure(&arguments, runtime.handle())));
    leftovers::remove_own();
    match measured {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) => failed(&*error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Whether every row could be measured and every bound of those is kept.
fn measure(arguments: &Arguments, runtime: &tokio::runtime::Handle) -> Result<bool> {
    let rows = if arguments.only.is_empty() { Row::all() } else { arguments.only.clone() };
    let mut report = Report::default();
    let bench = Bench::new(arguments.rounds, runtime, &mut report)?;
    let mut well = true;
    for row in rows {
        eprintln!("{}", row.name());
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| row.measure(&bench, &mut report)));
        let failure = match result {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            // The panic has been printed.
            Err(_) => "it panicked, see above".to_owned(),
        };
        report.note(format!("{} could not be measured: {failure}", row.name()));
        well = false;
    }
    report.print();
    let path = mvm_harness::checkout().join("target/bench/latest.json");
    report.write(&path)?;
    println!("\nalso in {}", path.canonicalize()?.display());
    let missed = report.missed();
    if !missed.is_empty() {
        eprintln!(
            "error: bounds that are not kept: {}; on a host that does something else, run it again",
            missed.join(", ")
        );
        well = false;
    }
    Ok(well)
}

async fn remove_when_interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (|| {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ))
    })();
    let Ok((mut int, mut term, mut hup)) = signals else {
        eprintln!("signals cannot be handled: what an interrupted run leaves is removed by the next");
        return;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
    eprintln!("interrupted; removing what was made");
    let removed = tokio::task::spawn_blocking(leftovers::remove_own).await;
    std::process::exit(if removed.is_ok() { 130 } else { 1 });
}
