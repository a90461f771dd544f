//! The host's end of a machine's control channel: a session that is opened again when it breaks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::control::{GuestReply, GuestRequest};
use mvm_protocol::frame::{self, FrameError};
use mvm_protocol::mux::{self, Side};
use mvm_protocol::{Mux, Port, Stream};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

/// The guest could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The channel broke.
    #[error("the guest's control channel broke: {0}")]
    Io(#[from] std::io::Error),
    /// A frame that is none.
    #[error("the guest answered with a bad frame: {0}")]
    Frame(#[from] FrameError),
    /// No answer in time.
    #[error("the guest did not answer {0} within {1:?}")]
    Timeout(&'static str, Duration),
    /// The guest says why not.
    #[error("the guest refused {0}: {1}")]
    Refused(&'static str, String),
    /// An answer to something else.
    #[error("the guest's answer to {0} makes no sense")]
    Unexpected(&'static str),
}

/// What becomes of the streams that a guest opens.
pub type OnStream = Arc<dyn Fn(Stream) + Send + Sync>;

/// A machine's control session. Dropping it closes the channel.
#[derive(Debug)]
pub struct Session {
    link: Link,
    _keeper: AbortOnDropHandle<()>,
}

/// Asks over a machine's session without keeping it open. Everyone who sees the machine has one, so it is one pointer.
#[derive(Debug, Clone)]
pub struct Link(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    current: watch::Receiver<Option<Mux>>,
    /// Told when the guest did not answer: bytes that went astray may have left it out of step.
    silent: Notify,
}

/// Streams over one connection; dropping it closes the connection, whoever still has streams of it.
struct Running {
    mux: Mux,
    _driver: AbortOnDropHandle<()>,
    _accepting: AbortOnDropHandle<()>,
}

/// How long a session may take to begin again before it is tried anew.
const REOPEN: Duration = Duration::from_secs(10);
/// Pause between attempts to open a session again: bounds what a guest that breaks it on purpose costs.
const PAUSE: Duration = Duration::from_millis(100);

impl Session {
    /// Begins a session over a connected control socket, and keeps it: when it breaks, it is opened again at `path`.
    ///
    /// # Errors
    /// Those of the channel.
    pub async fn open(channel: UnixStream, path: PathBuf, on_stream: OnStream) -> std::io::Result<Self> {
        let running = begin(channel, &on_stream).await?;
        let (sender, current) = watch::channel(Some(running.mux.clone()));
        let link = Link(Arc::new(Ends { current, silent: Notify::new() }));
        let keeper = keep(running, sender, link.clone(), path, on_stream);
        Ok(Self { link, _keeper: AbortOnDropHandle::new(tokio::spawn(keeper)) })
    }

    /// For those who ask while something else is done with the machine.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// A stream for several requests, one after another: what a guest does for a stream it then does once.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn converse(&self) -> Result<Conversation, SessionError> {
        let stream = self.link.mux().await?.open(Port::Guest).await?;
        Ok(Conversation { stream, link: self.link() })
    }

    /// Asks the guest, on a stream of its own.
    ///
    /// # Errors
    /// [`SessionError`]; `Error` from the guest is [`SessionError::Refused`].
    pub async fn ask(
        &self,
        request: &GuestRequest,
        name: &'static str,
        within: Duration,
    ) -> Result<GuestReply, SessionError> {
        self.link.begin(request, name, within).await.map(|(reply, _)| reply)
    }
}

/// One stream for several requests.
#[derive(Debug)]
pub struct Conversation {
    stream: Stream,
    link: Link,
}

impl Conversation {
    /// Asks the guest and waits for its answer.
    ///
    /// # Errors
    /// [`SessionError`]; `Error` from the guest is [`SessionError::Refused`].
    pub async fn ask(
        &mut self,
        request: &GuestRequest,
        name: &'static str,
        within: Duration,
    ) -> Result<GuestReply, SessionError> {
        self.say(request).await?;
        self.hear(name, within).await
    }

    /// Asks without waiting, so that the guest goes from one request to the next by itself. The answers are to be
    /// [heard](Self::hear) in the same order.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn say(&mut self, request: &GuestRequest) -> Result<(), SessionError> {
        Ok(frame::write(&mut self.stream, request).await?)
    }

    /// Waits for the answer to the oldest request that has none yet, which was `name`.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub async fn hear(&mut self, name: &'static str, within: Duration) -> Result<GuestReply, SessionError> {
        match tokio::time::timeout(within, answer(&mut self.stream, name)).await {
            Ok(answered) => answered,
            Err(_) => {
                self.link.0.silent.notify_waiters();
                Err(SessionError::Timeout(name, within))
            }
        }
    }
}

impl Link {
    /// Asks the guest, on a stream of its own that may go on after the answer. A guest that does not answer in time has its
    /// session opened again.
    ///
    /// # Errors
    /// [`SessionError`]; `Error` from the guest is [`SessionError::Refused`].
    pub async fn begin(
        &self,
        request: &GuestRequest,
        name: &'static str,
        within: Duration,
    ) -> Result<(GuestReply, Stream), SessionError> {
        let begun = self.try_begin(request, name, within).await;
        if let Err(SessionError::Timeout(..)) = begun {
            self.0.silent.notify_waiters();
        }
        begun
    }

    /// The same where nothing follows from a guest that does not answer in time: for those who have little patience, or ask while
    /// an act goes on that talks over the same session.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub async fn try_begin(
        &self,
        request: &GuestRequest,
        name: &'static str,
        within: Duration,
    ) -> Result<(GuestReply, Stream), SessionError> {
        let asking = async {
            let mut stream = self.mux().await?.open(Port::Guest).await?;
            Ok((ask_on(&mut stream, request, name).await?, stream))
        };
        let answered = tokio::time::timeout(within, asking).await;
        answered.unwrap_or(Err(SessionError::Timeout(name, within)))
    }

    /// The streams of the session there is now, or of the one that is being opened.
    async fn mux(&self) -> std::io::Result<Mux> {
        let mut current = self.0.current.clone();
        let mux = current.wait_for(|mux| mux.as_ref().is_some_and(|mux| !mux.is_ended())).await;
        match mux.as_deref() {
            Ok(Some(mux)) => Ok(mux.clone()),
            _ => Err(mux::SessionEnded.into()),
        }
    }
}

/// Sends one request on an open stream and reads the answer.
async fn ask_on(
    stream: &mut Stream,
    request: &GuestRequest,
    name: &'static str,
) -> Result<GuestReply, SessionError> {
    frame::write(stream, request).await?;
    answer(stream, name).await
}

async fn answer(stream: &mut Stream, name: &'static str) -> Result<GuestReply, SessionError> {
    match frame::read(stream).await? {
        Some(GuestReply::Error { message }) => Err(SessionError::Refused(name, message)),
        Some(reply) => Ok(reply),
        None => Err(SessionError::Io(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Begins a session over a connected control socket.
async fn begin(channel: UnixStream, on_stream: &OnStream) -> std::io::Result<Running> {
    let mut channel = BufReader::new(channel);
    mvm_protocol::session::begin(&mut channel).await?;
    let (mux, mut incoming, driver) = mux::start(channel, Side::Host);
    let on_stream = Arc::clone(on_stream);
    let accepting = tokio::spawn(async move {
        while let Some(stream) = incoming.accept().await {
            on_stream(stream);
        }
    });
    let (driver, accepting) =
        (AbortOnDropHandle::new(tokio::spawn(driver)), AbortOnDropHandle::new(accepting));
    Ok(Running { mux, _driver: driver, _accepting: accepting })
}

/// Opens the session again whenever it has ended, or its guest has fallen silent. Ends by being aborted, or when the
/// socket is gone.
async fn keep(
    mut running: Running,
    current: watch::Sender<Option<Mux>>,
    link: Link,
    path: PathBuf,
    on_stream: OnStream,
) {
    loop {
        tokio::select! {
            () = running.mux.ended() => {}
            () = link.0.silent.notified() => {}
        }
        current.send_replace(None);
        // The socket takes one connection at a time.
        drop(running);
        running = loop {
            tokio::time::sleep(PAUSE).await;
            let again = async { begin(UnixStream::connect(&path).await?, &on_stream).await };
            match tokio::time::timeout(REOPEN, again).await {
                Ok(Ok(running)) => break running,
                // The VMM has ended: its socket does not listen any more.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return,
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return,
                Ok(Err(_)) | Err(_) => {}
            }
        };
        current.send_replace(Some(running.mux.clone()));
    }
}
