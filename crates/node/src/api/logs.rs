//! Logs: what a machine's services wrote, and its console. Reading them never wakes a machine, and waits for no act on one whose
//! guest can be asked: of one whose services take long to start they are wanted most.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::response::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use mvm_model::InstanceState;
use mvm_protocol::Stream;
use mvm_protocol::api::{ErrorCode, LogsRequest};
use mvm_protocol::control::{GuestReply, GuestRequest, LogPlace, LogPosition};
use mvm_protocol::record::{self, Record};
use tokio::io::{AsyncReadExt as _, AsyncWrite, WriteHalf};

use super::instances::{Address, find};
use super::streams::{BEGIN, upgraded, upgrading};
use super::{Failure, Shared, fault};
use crate::agent::Agent;
use crate::machine::Machine;
use crate::store::now_millis;

/// How often it is looked whether a console has grown.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);
/// Pause before a guest whose session broke is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is asked in a row.
const ATTEMPTS: u32 = 10;
/// More services than any machine has: a guest cannot make the agent remember more.
const MOST_SERVICES: usize = 1024;
/// More than any service's name has, in bytes.
const LONGEST_NAME: usize = 256;
/// The most that the last lines of a console are looked for in.
const CONSOLE: usize = 4 << 20;

pub async fn show(
    State(agent): Shared,
    Path((t, p, i)): Address,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let machine = find(&agent, &t, &p, &i).await?;
    let (wanted, upgrade) = upgrading::<LogsRequest>(request).await?;
    let source = choose(&machine, &wanted).await?;
    tokio::spawn(async move {
        let Ok(client) = upgrade.await else { return };
        let (mut from_client, to_client) = tokio::io::split(TokioIo::new(client));
        let mut reader = Reader { client: to_client, after: BTreeMap::new(), last: None, in_line: false };
        let shown = async {
            let code = match source {
                Source::Guest(stream) => services(&machine, &wanted, Some(stream), &mut reader).await?,
                Source::Later => services(&machine, &wanted, None, &mut reader).await?,
                Source::Console => console(&agent, &machine, &wanted, &mut reader).await?,
            };
            record::write(&mut reader.client, &Record::Exit(code)).await
        };
        let mut nothing = [0];
        tokio::select! {
            // Fails only where nobody reads it any more.
            _ = shown => {}
            // A client says nothing: it is gone.
            _ = from_client.read(&mut nothing) => {}
        }
    });
    Ok(upgraded())
}

/// Where a log comes from.
enum Source {
    /// The guest, which keeps what its services write in its memory.
    Guest(Stream),
    /// The guest, when it runs.
    Later,
    /// The host.
    Console,
}

async fn choose(machine: &Machine, wanted: &LogsRequest) -> Result<Source, Failure> {
    if wanted.console {
        return Ok(Source::Console);
    }
    if let Some(stream) = ask(machine, &first(wanted)).await? {
        return Ok(Source::Guest(stream));
    }
    let state = machine.state();
    let address = machine.view().row.address();
    match state {
        _ if wanted.follow => Ok(Source::Later),
        InstanceState::Sleeping | InstanceState::Warm => {
            let message = format!(
                "{address} is {state}: what its services wrote is in its memory, and it is not woken to be read. \
                 `mvm instance wake {address}` wakes it, `--follow` waits until something does, `--console` shows \
                 its console"
            );
            Err(fault(ErrorCode::Refused, message))
        }
        _ if wanted.service.is_some() => {
            let message = format!(
                "{address} is {state}, and what its services wrote is gone with its memory; `--console` shows its console"
            );
            Err(fault(ErrorCode::Refused, message))
        }
        _ => Ok(Source::Console),
    }
}

/// Asks its guest for logs as soon as that can be asked; nothing comes of it where it cannot once all acts have ended.
async fn ask(machine: &Machine, request: &GuestRequest) -> Result<Option<Stream>, Failure> {
    loop {
        let Some(link) = machine.link().await? else { return Ok(None) };
        // Whoever only watches does not keep it awake, and does not have a session opened anew that an act may need.
        match link.try_begin(request, "Logs", BEGIN).await {
            Ok((GuestReply::Started, stream)) => return Ok(Some(stream)),
            Ok(_) => return Err(fault(ErrorCode::Failed, "the guest's answer to Logs makes no sense")),
            // It closes its session, or has not come to its services yet.
            Err(_) if machine.view().act.is_some() => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(fault(ErrorCode::Failed, error)),
        }
    }
}

fn first(wanted: &LogsRequest) -> GuestRequest {
    GuestRequest::Logs {
        service: wanted.service.clone(),
        follow: wanted.follow,
        since_ms: wanted.since_ms,
        tail: wanted.tail,
        after: BTreeMap::new(),
    }
}

/// What is asked for when something was shown before, by a command that began at `began` (in milliseconds since 1970). What
/// was not shown then, of a log that has nothing shown of it, is not shown now.
fn further(wanted: &LogsRequest, began: u64, after: BTreeMap<String, LogPosition>) -> GuestRequest {
    let since_ms = wanted.since_ms.or(wanted.tail.map(|_| began));
    GuestRequest::Logs { service: wanted.service.clone(), follow: wanted.follow, since_ms, tail: None, after }
}

/// Whoever reads a log, and what was shown already.
struct Reader<W = WriteHalf<TokioIo<Upgraded>>> {
    client: W,
    after: BTreeMap<String, LogPosition>,
    /// Whose text was shown last.
    last: Option<String>,
    in_line: bool,
}

/// Why no more comes of a guest.
enum Stopped {
    AllSent,
    Broken,
}

impl<W: AsyncWrite + Unpin> Reader<W> {
    async fn text(&mut self, text: Vec<u8>) -> io::Result<()> {
        self.in_line = text.last().map_or(self.in_line, |last| *last != b'\n');
        record::write(&mut self.client, &Record::Stdout(text)).await
    }

    async fn say(&mut self, line: &str) -> io::Result<()> {
        record::write(&mut self.client, &Record::Stderr(format!("{line}\n").into_bytes())).await
    }

    /// Shows whose text follows, as `tail` does, and notes where it is.
    async fn place(&mut self, place: LogPlace, with_title: bool) -> io::Result<()> {
        let LogPlace { service, position } = place;
        if service.len() > LONGEST_NAME {
            return Err(io::Error::other("a longer name than a service has"));
        }
        if let Some(expected) = self.after.get(&service).filter(|at| at.log == position.log)
            && let Some(lost @ 1..) = position.at.checked_sub(expected.at)
        {
            let line = format!("{lost} bytes of {service}'s log were overwritten before they could be shown");
            self.say(&line).await?;
        }
        if with_title && self.last.as_ref() != Some(&service) {
            let line_end = if self.in_line { "\n" } else { "" };
            let gap = if self.last.is_some() { "\n" } else { "" };
            self.text(format!("{line_end}{gap}==> {service} <==\n").into_bytes()).await?;
        }
        if self.after.len() >= MOST_SERVICES {
            return Err(io::Error::other("more services than a machine has"));
        }
        self.after.insert(service.clone(), position);
        self.last = Some(service);
        Ok(())
    }

    /// Shows what a guest sends.
    async fn pass(&mut self, mut stream: Stream, with_titles: bool) -> io::Result<Stopped> {
        loop {
            match record::read(&mut stream).await {
                Ok(Some(Record::Stderr(place))) => match serde_json::from_slice(&place) {
                    Ok(place) => self.place(place, with_titles).await?,
                    Err(_) => return Ok(Stopped::Broken),
                },
                Ok(Some(Record::Stdout(text))) => {
                    let position = self.last.as_ref().and_then(|last| self.after.get_mut(last));
                    let Some(position) = position else { return Ok(Stopped::Broken) };
                    position.at = position.at.saturating_add(text.len() as u64);
                    self.text(text).await?;
                }
                Ok(Some(Record::Eof)) => return Ok(Stopped::AllSent),
                _ => return Ok(Stopped::Broken),
            }
        }
    }
}

/// Shows what services wrote, and where that is followed goes on over sleeps and starts; the exit code.
async fn services(
    machine: &Machine,
    wanted: &LogsRequest,
    mut stream: Option<Stream>,
    reader: &mut Reader,
) -> io::Result<i32> {
    let with_titles = wanted.service.is_none();
    let address = machine.view().row.address();
    let (began, mut has_begun) = (now_millis(), stream.is_some());
    let mut attempts = 0;
    loop {
        if let Some(stream) = stream.take() {
            match reader.pass(stream, with_titles).await? {
                Stopped::AllSent => return Ok(0),
                Stopped::Broken if !wanted.follow => {
                    reader
                        .say(&format!("{address} stopped sending its logs in the middle: try again"))
                        .await?;
                    return Ok(1);
                }
                // It sleeps, most likely. A guest that says nothing sensible is not asked without a pause.
                Stopped::Broken => tokio::time::sleep(PAUSE).await,
            }
        }
        let gone = match machine.link().await {
            Ok(Some(_)) => false,
            Ok(None) => {
                let state = machine.state();
                reader.say(&format!("{address} is {state}: its logs go on when it runs")).await?;
                machine.reachable().await.is_err()
            }
            Err(_) => true,
        };
        if gone {
            reader.say(&format!("{address} is gone")).await?;
            return Ok(0);
        }
        let request = if has_begun { further(wanted, began, reader.after.clone()) } else { first(wanted) };
        match ask(machine, &request).await {
            Ok(Some(begun)) => {
                (attempts, has_begun) = (0, true);
                stream = Some(begun);
            }
            // It has just gone to sleep, say.
            Ok(None) => continue,
            Err(Failure(error)) if attempts == ATTEMPTS => {
                reader.say(&error.message).await?;
                return Ok(1);
            }
            Err(_) => attempts += 1,
        }
        if stream.is_none() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Shows a machine's console as the host keeps it; the exit code.
async fn console(
    agent: &Arc<Agent>,
    machine: &Machine,
    wanted: &LogsRequest,
    reader: &mut Reader,
) -> io::Result<i32> {
    if !wanted.console {
        let row = machine.view().row;
        let (address, state) = (row.address(), row.state);
        reader
            .say(&format!("{address} is {state}, and what its services wrote is gone. Its console:"))
            .await?;
    }
    let mut next = 0;
    let mut last_lines = wanted.tail.map(|lines| (lines, Vec::new()));
    loop {
        let (text, after) = agent.hands.read_console(machine.id, next).await.map_err(io::Error::other)?;
        next = after;
        if !text.is_empty() {
            match &mut last_lines {
                None => reader.text(text).await?,
                Some((_, kept)) => {
                    kept.extend(text);
                    if kept.len() > CONSOLE {
                        kept.drain(..kept.len() - CONSOLE / 2);
                    }
                }
            }
            continue;
        }
        if let Some((lines, kept)) = last_lines.take() {
            reader.text(tail(&kept, lines).to_vec()).await?;
        }
        if !wanted.follow {
            return Ok(0);
        }
        if machine.state() == InstanceState::Destroyed || agent.machines(|m| m.id == machine.id).is_empty() {
            reader.say(&format!("{} is gone", machine.view().row.address())).await?;
            return Ok(0);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// The last lines of a text.
fn tail(text: &[u8], lines: u64) -> &[u8] {
    let mut start = text.len();
    for _ in 0..lines {
        let before = &text[..start.saturating_sub(1)];
        start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if start == 0 {
            break;
        }
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_cannot_make_the_agent_keep_long_names() {
        let mut reader =
            Reader { client: tokio::io::sink(), after: BTreeMap::new(), last: None, in_line: false };
        let position = LogPosition { log: 1, at: 0 };
        let place = |length| LogPlace { service: "x".repeat(length), position };
        assert!(reader.place(place(LONGEST_NAME), true).await.is_ok());
        assert!(reader.place(place(LONGEST_NAME + 1), true).await.is_err());
        assert_eq!(reader.after.len(), 1);
    }

    #[test]
    fn what_was_left_out_at_first_is_left_out_later_too() {
        let since = |since_ms, tail| {
            let wanted = LogsRequest { since_ms, tail, ..LogsRequest::default() };
            match further(&wanted, 5, BTreeMap::new()) {
                GuestRequest::Logs { since_ms, tail, .. } => (since_ms, tail),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(since(None, Some(1)), (Some(5), None));
        assert_eq!(since(Some(3), Some(1)), (Some(3), None));
        // All of each was shown.
        assert_eq!(since(None, None), (None, None));
    }

    #[test]
    fn the_last_lines_are_whole_ones() {
        for (lines, expected) in
            [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (u64::MAX, "a\nb\nc\n")]
        {
            assert_eq!(tail(b"a\nb\nc\n", lines), expected.as_bytes());
        }
        assert_eq!(tail(b"a\nb", 1), b"b");
    }
}
