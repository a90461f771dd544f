//! Starting an agent in the background, where a command needs one and none runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mvm_protocol::api::AgentInfo;
use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::connection::Connection;
use crate::failure::Failure;

/// How long an agent may take until it answers: it may try a machine first to see how the host runs them.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A log larger than this, in bytes, is put aside before an agent is started.
const LARGE_LOG: u64 = 16 << 20;
/// Of a log, what is shown when the start fails.
const SHOWN_LINES: usize = 12;
const SHOWN_BYTES: u64 = 16 << 10;

/// Starts an agent and waits until it answers. Where another command does so at the same time, one of them starts it.
///
/// # Errors
/// [`Failure::Start`] with the end of its log.
pub async fn start(connection: &Connection, client: &Client) -> Result<(), Failure> {
    if !geteuid().is_root() {
        let why =
            "no agent runs, and only root can start one: use sudo, or have it started with `mvm agent serve`";
        return Err(Failure::NotDone(why.to_owned()));
    }
    let run_dir = &connection.run_dir;
    let cannot = |error| {
        Failure::io(format!("no agent runs, and none can be started in {}", run_dir.display()), error)
    };
    fs::create_dir_all(run_dir).map_err(cannot)?;
    let turn = open_lock(run_dir).map_err(cannot)?;
    flock(&turn, FlockOperation::LockExclusive).map_err(|error| cannot(error.into()))?;
    if client.is_listened_to().await? {
        return Ok(());
    }
    let log = Log::open(run_dir).map_err(cannot)?;
    anstream::eprintln!("no agent runs: starting one in the background (log: {})", log.path.display());
    let mut child = spawn(connection, &log).map_err(cannot)?;
    wait(&mut child, client).await.map_err(|why| Failure::Start { why, log: log.end() })
}

/// Held while an agent is started: the second command then finds it running.
fn open_lock(run_dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(run_dir.join("agent.start"))
}

fn spawn(connection: &Connection, log: &Log) -> io::Result<Child> {
    let absolute = |path: &Path| std::path::absolute(path);
    Command::new(std::env::current_exe()?)
        .args(["agent", "serve", "--background", "--data-dir"])
        .arg(absolute(&connection.data_dir)?)
        .arg("--run-dir")
        .arg(absolute(&connection.run_dir)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.file.try_clone()?)
        .stderr(log.file.try_clone()?)
        .spawn()
}

/// Waits until the agent answers a request.
async fn wait(child: &mut Child, client: &Client) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // It listens before it answers: first it looks after the machines that are there.
        if let Ok(Ok(_)) = timeout_at(deadline, client.get::<AgentInfo>("/v1/agent")).await {
            return Ok(());
        }
        match child.try_wait() {
            Ok(Some(status)) => return Err(format!("it ended at once ({status})")),
            Err(error) => return Err(error.to_string()),
            Ok(None) if Instant::now() >= deadline => {
                return Err(format!("it does not answer after {} seconds", PATIENCE.as_secs()));
            }
            Ok(None) => sleep(LOOK_EVERY).await,
        }
    }
}

/// The agent's log.
struct Log {
    path: PathBuf,
    file: File,
    /// Where this start's part of it begins.
    begin: u64,
}

impl Log {
    fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join("agent.log");
        if fs::metadata(&path).is_ok_and(|log| log.len() > LARGE_LOG) {
            fs::rename(&path, run_dir.join("agent.log.1"))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let begin = file.metadata()?.len();
        Ok(Self { path, file, begin })
    }

    /// Its last lines, as far as they are about this start.
    fn end(&self) -> String {
        let path = self.path.display();
        match tail(&self.path, self.begin) {
            Ok(lines) if lines.is_empty() => format!("its log is empty: {path}"),
            Ok(lines) => format!("the end of its log {path}:\n{}", lines.join("\n")),
            Err(error) => format!("its log {path} cannot be read: {error}"),
        }
    }
}

fn tail(path: &Path, begin: u64) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(begin.max(length.saturating_sub(SHOWN_BYTES))))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES));
    Ok(shown.map(|line| format!("  {line}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_end_of_a_log_is_that_of_this_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("agent.log"), "an earlier start\n").unwrap();
        let mut log = Log::open(folder.path()).unwrap();
        assert!(log.end().starts_with("its log is empty"));
        for line in 0..20 {
            writeln!(log.file, "line {line}").unwrap();
        }
        let end = log.end();
        assert!(end.contains("\n  line 8\n") && end.ends_with("\n  line 19"), "{end}");
        assert!(!end.contains("line 7\n") && !end.contains("earlier"), "{end}");
    }
}
