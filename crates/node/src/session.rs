//! The host's end of a machine's control channel: a session that is opened again when it breaks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::control::{GuestReply, GuestRequest};
use mvm_protocol::frame::{self, FrameError};
use mvm_protocol::mux::{self, Side};
use mvm_protocol::{Mux, Port, Stream};
use tokio::net::UnixStream;
use tokio::sync::watch;
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
    current: watch::Receiver<Option<Mux>>,
    _keeper: AbortOnDropHandle<()>,
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
    pub async fn open(mut channel: UnixStream, path: PathBuf, on_stream: OnStream) -> std::io::Result<Self> {
        mvm_protocol::session::begin(&mut channel).await?;
        let running = start(channel, &on_stream);
        let (sender, current) = watch::channel(Some(running.mux.clone()));
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep(running, sender, path, on_stream)));
        Ok(Self { current, _keeper: keeper })
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
        let asking = async {
            let mut stream = self.mux().await?.open(Port::Guest).await?;
            ask_on(&mut stream, request, name).await
        };
        tokio::time::timeout(within, asking).await.map_err(|_| SessionError::Timeout(name, within))?
    }

    /// The streams of the session there is now, or of the one that is being opened.
    ///
    /// # Errors
    /// `NotConnected` where the machine's channel is gone for good.
    pub async fn mux(&self) -> std::io::Result<Mux> {
        let mut current = self.current.clone();
        let mux = current.wait_for(|mux| mux.as_ref().is_some_and(|mux| !mux.is_ended())).await;
        match mux.as_deref() {
            Ok(Some(mux)) => Ok(mux.clone()),
            _ => Err(mux::SessionEnded.into()),
        }
    }
}

/// Sends one request on an open stream and reads the answer.
///
/// # Errors
/// [`SessionError`].
pub async fn ask_on(
    stream: &mut Stream,
    request: &GuestRequest,
    name: &'static str,
) -> Result<GuestReply, SessionError> {
    frame::write(stream, request).await?;
    match frame::read(stream).await? {
        Some(GuestReply::Error { message }) => Err(SessionError::Refused(name, message)),
        Some(reply) => Ok(reply),
        None => Err(SessionError::Io(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

fn start(channel: UnixStream, on_stream: &OnStream) -> Running {
    let (mux, mut incoming, driver) = mux::start(channel, Side::Host);
    let on_stream = Arc::clone(on_stream);
    let accepting = tokio::spawn(async move {
        while let Some(stream) = incoming.accept().await {
            on_stream(stream);
        }
    });
    let (driver, accepting) =
        (AbortOnDropHandle::new(tokio::spawn(driver)), AbortOnDropHandle::new(accepting));
    Running { mux, _driver: driver, _accepting: accepting }
}

/// Opens the session again whenever it has ended. Ends by being aborted, or when the socket is gone.
async fn keep(mut running: Running, current: watch::Sender<Option<Mux>>, path: PathBuf, on_stream: OnStream) {
    loop {
        running.mux.ended().await;
        current.send_replace(None);
        running = loop {
            tokio::time::sleep(PAUSE).await;
            let again = async {
                let mut channel = UnixStream::connect(&path).await?;
                mvm_protocol::session::begin(&mut channel).await?;
                std::io::Result::Ok(channel)
            };
            match tokio::time::timeout(REOPEN, again).await {
                Ok(Ok(channel)) => break start(channel, &on_stream),
                // The VMM has ended: its socket does not listen any more.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return,
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return,
                Ok(Err(_)) | Err(_) => {}
            }
        };
        current.send_replace(Some(running.mux.clone()));
    }
}
