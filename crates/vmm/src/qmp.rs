//! QEMU's monitor protocol: JSON lines over a Unix socket, descriptors passed beside them.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long an ordinary command may take, and the greeting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer that is read; the longest real one has some 100 KiB.
const LONGEST_LINE: usize = 4 << 20;

/// Events that wait to be taken.
const EVENTS: usize = 64;

/// A command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The VMM refused the command.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// What QEMU said.
        description: String,
    },
    /// The connection has ended, most often because the VMM has.
    #[error("QEMU has closed its monitor")]
    Closed,
    /// No answer came.
    #[error("QEMU did not answer {command} within {seconds} s")]
    Silent {
        /// The command, or `greeting`.
        command: String,
        /// How long was waited.
        seconds: u64,
    },
    /// What came is no QMP.
    #[error("QEMU's monitor sends nonsense: {0}")]
    Nonsense(String),
    /// The socket failed.
    #[error("QEMU's monitor: {0}")]
    Io(#[from] io::Error),
}

/// Something the VMM tells by itself. Kept raw, so that an event newer than this program does no harm.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// A negotiated connection to the monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: Arc<UnixStream>,
    turn: tokio::sync::Mutex<u64>,
    waiting: Arc<Waiting>,
    reader: JoinHandle<()>,
}

type Answer = Result<Value, String>;

/// Who waits for which answer; `None` once no more will come.
#[derive(Debug)]
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects to the monitor's socket. The events end when the connection does.
    pub(crate) async fn connect(path: &Path) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        Self::negotiate(UnixStream::connect(path).await?).await
    }

    /// Waits for the greeting and leaves negotiation mode.
    pub(crate) async fn negotiate(stream: UnixStream) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let stream = Arc::new(stream);
        let mut lines = Lines { stream: Arc::clone(&stream), buffer: Vec::new() };
        let greeting = timeout(PATIENCE, lines.next()).await.map_err(|_| silent("greeting", PATIENCE))??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Nonsense(format!("{greeting} for a greeting")));
        }
        let (events, received) = mpsc::channel(EVENTS);
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let reader = tokio::spawn(read(lines, Arc::clone(&waiting), events));
        let monitor = Self { stream, turn: tokio::sync::Mutex::new(0), waiting, reader };
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok((monitor, received))
    }

    /// Runs a command and returns its answer.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None, PATIENCE).await
    }

    /// Runs a command, handing over a descriptor with it, and waits for its answer for so long.
    pub(crate) async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        let answer = async {
            let answer = self.send(command, arguments, descriptor).await?;
            answer.await.map_err(|_| QmpError::Closed)
        };
        timeout(patience, answer)
            .await
            .map_err(|_| silent(command, patience))??
            .map_err(|description| QmpError::Refused { command: command.into(), description })
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<oneshot::Receiver<Answer>, QmpError> {
        let mut last_id = self.turn.lock().await;
        *last_id += 1;
        let (answer, receiver) = oneshot::channel();
        self.waiting.lock().as_mut().ok_or(QmpError::Closed)?.insert(*last_id, answer);
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": *last_id }));
        tracing::trace!(line, "to QEMU");
        send_all(&self.stream, line.as_bytes(), descriptor).await.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
            _ => QmpError::Io(error),
        })?;
        Ok(receiver)
    }
}

fn silent(command: &str, patience: Duration) -> QmpError {
    QmpError::Silent { command: command.into(), seconds: patience.as_secs() }
}

/// Sends all bytes; the descriptor goes with the first of them.
async fn send_all(
    stream: &UnixStream,
    mut bytes: &[u8],
    mut descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || send_some(stream, bytes, descriptor)).await?;
        bytes = &bytes[sent..];
        descriptor = None;
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// The JSON lines that come in.
struct Lines {
    stream: Arc<UnixStream>,
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Result<Value, QmpError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| QmpError::Nonsense(error.to_string()));
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(QmpError::Nonsense("a line without an end".into()));
            }
            self.stream.readable().await?;
            let mut chunk = [0; 16 << 10];
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(QmpError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Hands every answer to who waits for it, until the connection ends.
async fn read(mut lines: Lines, waiting: Arc<Waiting>, events: mpsc::Sender<Event>) {
    loop {
        match lines.next().await {
            Ok(message) => dispatch(message, &waiting, &events),
            Err(error) => {
                tracing::debug!(%error, "the monitor's connection ends");
                break;
            }
        }
    }
    // Dropping the senders tells everyone who still waits.
    waiting.lock().take();
}

fn dispatch(mut message: Value, waiting: &Waiting, events: &mpsc::Sender<Event>) {
    tracing::trace!(%message, "from QEMU");
    if let Some(name) = message.get("event").and_then(Value::as_str) {
        // Nobody has to listen, and a VMM that tells more than is taken loses the rest.
        let _ = events.try_send(Event { name: name.to_owned(), data: message["data"].take() });
        return;
    }
    let answer = match message.get("error") {
        Some(error) => Err(error["desc"].as_str().unwrap_or("no reason given").to_owned()),
        None => Ok(message["return"].take()),
    };
    let id = message.get("id").and_then(Value::as_u64);
    if let Some(sender) = id.and_then(|id| waiting.lock().as_mut()?.remove(&id)) {
        // Who asked may have given up meanwhile.
        let _ = sender.send(answer);
    }
}
