//! Logs: what services wrote, and go on to write, as records.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use mvm_protocol::Stream;
use mvm_protocol::control::{LogPlace, LogPosition};
use mvm_protocol::record::{self, Record};
use tokio::io::WriteHalf;

use super::session::say_goodbye;
use crate::error::Result;
use crate::lock;
use crate::machine::Machine;

/// What is read of a log at once.
const PIECE: usize = 64 * 1024;

/// What the host wants to see.
pub(super) struct Wanted {
    pub(super) service: Option<String>,
    pub(super) follow: bool,
    pub(super) since_ms: Option<u64>,
    pub(super) tail: Option<u64>,
    pub(super) after: BTreeMap<String, LogPosition>,
}

/// Logs that are being sent.
pub(super) struct Logs {
    machine: Arc<Machine>,
    wanted: Wanted,
    /// Up to where they were, by service.
    sent: BTreeMap<String, u64>,
    /// Whose text was sent last, and up to where.
    last: Option<(String, u64)>,
}

/// Looks for the logs.
pub(super) fn start(machine: &Arc<Machine>, wanted: Wanted) -> Result<Logs> {
    machine.supervisor.logs(wanted.service.as_deref())?;
    Ok(Logs { machine: Arc::clone(machine), wanted, sent: BTreeMap::new(), last: None })
}

impl Logs {
    /// Sends them up to their end, or, where they are followed, until the stream ends.
    pub(super) async fn serve(mut self, stream: Stream) {
        let (mut input, mut output) = tokio::io::split(stream);
        let sent = tokio::select! {
            sent = self.send(&mut output) => sent.is_ok(),
            // Nothing is to come: this is the end of the stream, or of all sense in it.
            _ = record::read(&mut input) => false,
        };
        if sent {
            say_goodbye(&mut input.unsplit(output)).await;
        }
    }

    async fn send(&mut self, output: &mut WriteHalf<Stream>) -> std::io::Result<()> {
        let mut grown = self.machine.supervisor.grown();
        loop {
            grown.mark_unchanged();
            self.send_new(output).await?;
            if !self.wanted.follow {
                return record::write(output, &Record::Eof).await;
            }
            if grown.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Sends what is there now and was not sent.
    async fn send_new(&mut self, output: &mut WriteHalf<Stream>) -> std::io::Result<()> {
        let logs = self.machine.supervisor.logs(self.wanted.service.as_deref());
        for (service, log) in logs.map_err(std::io::Error::other)? {
            let until = lock(&log).end();
            loop {
                let (position, text) = {
                    let log = lock(&log);
                    let from = match self.sent.entry(service.clone()) {
                        Entry::Occupied(sent) => *sent.get(),
                        Entry::Vacant(first) => *first.insert(match self.wanted.after.get(&service) {
                            Some(position) => log.after(*position),
                            None => log.start(self.wanted.since_ms, self.wanted.tail),
                        }),
                    };
                    let most = usize::try_from(until.saturating_sub(from)).unwrap_or(PIECE).min(PIECE);
                    let (at, text) = log.piece(from, most);
                    (log.position(at), text)
                };
                if text.is_empty() {
                    break;
                }
                let end = position.at + text.len() as u64;
                let goes_on =
                    self.last.as_ref().is_some_and(|(last, at)| *last == service && *at == position.at);
                if !goes_on {
                    let place = LogPlace { service: service.clone(), position };
                    let place = serde_json::to_vec(&place).map_err(std::io::Error::other)?;
                    record::write(output, &Record::Stderr(place)).await?;
                }
                record::write(output, &Record::Stdout(text)).await?;
                self.sent.insert(service.clone(), end);
                self.last = Some((service.clone(), end));
            }
        }
        Ok(())
    }
}
