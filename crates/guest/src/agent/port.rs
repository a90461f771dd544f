//! The virtio port to the host: two threads, and sessions cut out of its bytes.
//!
//! A read from the port returns nothing while no host is connected, and a poll says "hung up" then but not for ever,
//! which asynchronous I/O cannot express; hence blocking threads.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mvm_protocol::session::{Intake, IntakeReader};
use rustix::event::{Timespec, epoll};
use tokio::sync::mpsc;

use super::channel::{Outbox, SessionChannel};
use crate::console::say;
use crate::error::{Doing as _, Failure, Result};
use crate::lock;

const NAME: &str = "mvm.control";
const PORTS: &str = "/sys/class/virtio-ports";
/// The port's name comes in a message of its own, after the driver is loaded.
const ATTEMPTS: u32 = 10_000;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(1);
/// A session whose host has not come back for so long is over.
const HOST_AWAY: Duration = Duration::from_secs(2);
/// What one read takes: as much as the driver has in one buffer.
const READ_SIZE: usize = 32 * 1024;

/// Finds and opens the port.
pub(super) fn open() -> Result<File> {
    for _ in 0..ATTEMPTS {
        if let Some(device) = find() {
            let path = format!("/dev/{device}");
            return File::options().read(true).write(true).open(&path).doing(format_args!("opening {path}"));
        }
        std::thread::sleep(BETWEEN_ATTEMPTS);
    }
    Err(Failure::new("finding the control channel", format_args!("the machine has no virtio port {NAME}")))
}

fn find() -> Option<String> {
    fs::read_dir(PORTS).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim_end() == NAME).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// Starts the threads. What comes out are the sessions, each of which replaces the one before, and what is still to be
/// written.
pub(super) fn start(port: File) -> Result<(mpsc::UnboundedReceiver<SessionChannel>, Arc<Outbox>)> {
    let port = Arc::new(port);
    let outbox = Arc::new(Outbox::default());
    let (sessions, begun) = mpsc::unbounded_channel();
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(body).doing(format_args!("starting {name}"))
    };
    let (from, to) = (Arc::clone(&outbox), Arc::clone(&port));
    spawn("port-writer", Box::new(move || from.write_out(&*to)))?;
    let to_write = Arc::clone(&outbox);
    let mut reader =
        PortReader { outbox, sessions, intake: IntakeReader::default(), current: None, gone_since: None };
    spawn("port-reader", Box::new(move || reader.run(&port)))?;
    Ok((begun, to_write))
}

/// The same over a Unix socket, for one host after another.
pub(super) fn listen(path: &Path) -> Result<(mpsc::UnboundedReceiver<SessionChannel>, Arc<Outbox>)> {
    let doing = || format!("listening on {}", path.display());
    let listener = UnixListener::bind(path).doing(doing())?;
    let outbox = Arc::new(Outbox::default());
    let (sessions, begun) = mpsc::unbounded_channel();
    let current = Arc::new(Mutex::new(None));
    let (from, to) = (Arc::clone(&outbox), CurrentHost(Arc::clone(&current)));
    std::thread::spawn(move || from.write_out(to));
    let to_write = Arc::clone(&outbox);
    let mut reader =
        PortReader { outbox, sessions, intake: IntakeReader::default(), current: None, gone_since: None };
    std::thread::spawn(move || {
        for mut host in listener.incoming().flatten() {
            *lock(&current) = host.try_clone().ok();
            let mut buffer = vec![0; READ_SIZE];
            while let Ok(count) = host.read(&mut buffer)
                && count > 0
            {
                reader.take(&buffer[..count]);
            }
            reader.intake = IntakeReader::default();
            reader.end();
        }
    });
    Ok((begun, to_write))
}

/// Writes to the host that connected last.
struct CurrentHost(Arc<Mutex<Option<UnixStream>>>);

impl Write for CurrentHost {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let host = lock(&self.0).as_ref().map(UnixStream::try_clone).transpose()?;
        host.ok_or(ErrorKind::NotConnected)?.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct PortReader {
    outbox: Arc<Outbox>,
    sessions: mpsc::UnboundedSender<SessionChannel>,
    intake: IntakeReader,
    /// Where bytes of the session go.
    current: Option<mpsc::UnboundedSender<Vec<u8>>>,
    /// Since when the port says that no host is connected.
    gone_since: Option<Instant>,
}

impl PortReader {
    fn run(&mut self, port: &File) {
        let mut buffer = vec![0; READ_SIZE];
        let mut hang_up = HangUp::watch(port);
        loop {
            match (&*port).read(&mut buffer) {
                Ok(0) => self.without_host(&mut hang_up),
                Ok(count) => {
                    self.gone_since = None;
                    self.take(&buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    say(format_args!("reading the control channel: {error}"));
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// The port says that no host is connected. That alone ends nothing: after a wake the news that the earlier host went
    /// away comes behind the first bytes of the next one, whose session would be ended by it. A session ends when another
    /// begins, or when no host has come for a while.
    fn without_host(&mut self, hang_up: &mut HangUp) {
        let gone_since = *self.gone_since.get_or_insert_with(Instant::now);
        let left = HOST_AWAY.saturating_sub(gone_since.elapsed());
        if left.is_zero() {
            self.intake = IntakeReader::default();
            self.end();
        }
        hang_up.wait_for_host((!left.is_zero()).then_some(left));
    }

    fn take(&mut self, bytes: &[u8]) {
        for intake in self.intake.feed(bytes) {
            match intake {
                Intake::Begin(nonce) => {
                    let (channel, inbound) = SessionChannel::begin(&self.outbox, nonce);
                    self.current = Some(inbound);
                    // Without a receiver the agent has ended, and the machine with it.
                    let _ = self.sessions.send(channel);
                }
                Intake::Data(bytes) => {
                    if self.current.as_ref().is_some_and(|session| session.send(bytes).is_err()) {
                        self.end();
                    }
                }
                Intake::Broken => self.end(),
            }
        }
    }

    fn end(&mut self) {
        self.current = None;
        self.outbox.end();
    }
}

/// Waits for a change of the port, not for a state: a port without a host is always "ready".
struct HangUp(Option<rustix::fd::OwnedFd>);

impl HangUp {
    fn watch(port: &File) -> Self {
        let watched = epoll::create(epoll::CreateFlags::CLOEXEC).and_then(|epoll| {
            let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, port, epoll::EventData::new_u64(0), events)?;
            Ok(epoll)
        });
        if let Err(error) = &watched {
            say(format_args!("watching the control channel: {error}"));
        }
        Self(watched.ok())
    }

    /// Returns when something changed since the last call, or the time is over; the port may still be without a host.
    fn wait_for_host(&mut self, at_most: Option<Duration>) {
        let timeout = at_most.and_then(|time| Timespec::try_from(time).ok());
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let waited = match &self.0 {
            Some(epoll) => epoll::wait(epoll, &mut events[..], timeout.as_ref()).is_ok(),
            None => false,
        };
        if !waited {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
