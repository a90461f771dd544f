//! A line of JSON for each request.

use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::{Request, Version};
use serde::Serialize;

/// Lines that may wait for a slow reader; further ones are lost rather than holding up requests.
const WAITING_LINES: usize = 4096;
/// Of a path, so many characters are logged.
const LOGGED_PATH: usize = 512;

/// Where lines are sent. Clones send to the same place.
#[derive(Debug, Clone)]
pub struct AccessLog(SyncSender<Line>);

/// Writes the lines, on a thread of its own so that a slow reader delays nobody.
#[derive(Debug)]
pub struct LogWriter(Option<JoinHandle<()>>);

impl AccessLog {
    /// A log that is written to `output`, one JSON object a line.
    pub fn to(output: impl Write + Send + 'static) -> (AccessLog, LogWriter) {
        let (sender, lines) = sync_channel(WAITING_LINES);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let writer = thread.spawn(move || write_lines(&lines, output)).ok();
        (AccessLog(sender), LogWriter(writer))
    }
}

impl LogWriter {
    /// Waits until every line is written; call it when every [`AccessLog`] is gone.
    pub fn finish(self) {
        if let Some(thread) = self.0 {
            // It ended either way.
            let _ = thread.join();
        }
    }
}

fn write_lines(lines: &Receiver<Line>, output: impl Write) {
    let mut output = BufWriter::new(output);
    while let Ok(first) = lines.recv() {
        for line in std::iter::once(first).chain(lines.try_iter()) {
            let written = serde_json::to_writer(&mut output, &line).map_err(std::io::Error::from);
            if written.and_then(|()| output.write_all(b"\n")).is_err() {
                return;
            }
        }
        if output.flush().is_err() {
            return;
        }
    }
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    /// When it began, in milliseconds since 1970.
    unix_ms: u64,
    pub(super) route: Option<String>,
    pub(super) instance: Option<String>,
    protocol: &'static str,
    method: String,
    path: String,
    source: Ipv4Addr,
    /// Absent where the client left before there was one.
    pub(super) status: Option<u16>,
    /// Of the answer's body.
    pub(super) bytes: u64,
    /// From asking the host to its answer.
    hold_ms: Option<u64>,
    total_ms: u64,
    /// The answer was not sent to its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) aborted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// A request under way. Its line is written when it is dropped: at the end of the answer, or when the client left.
#[derive(Debug)]
pub(super) struct Entry {
    log: AccessLog,
    begun: Instant,
    pub(super) line: Line,
}

impl Entry {
    /// A request that has just come in. The query is not logged: people put tokens there.
    pub(super) fn begin<T>(log: &AccessLog, request: &Request<T>, source: Ipv4Addr) -> Entry {
        let protocol = match request.version() {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let line = Line {
            unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, milliseconds),
            route: None,
            instance: None,
            protocol,
            method: request.method().to_string(),
            path: request.uri().path().chars().take(LOGGED_PATH).collect(),
            source,
            status: None,
            bytes: 0,
            hold_ms: None,
            total_ms: 0,
            aborted: true,
            error: None,
        };
        Entry { log: log.clone(), begun: Instant::now(), line }
    }

    /// The host has answered, after so long.
    pub(super) fn held_after(&mut self, wait: Duration) {
        self.line.hold_ms = Some(milliseconds(wait));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.line.total_ms = milliseconds(self.begun.elapsed());
        // A reader that does not keep up, or none at all: requests matter more than their lines.
        let _ = self.log.0.try_send(self.line.clone());
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
