//! Connects to a machine and passes a request on to it.

use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::body::{Cut, DISCARDING, Fate, Silence, Upload};
use super::connection::RequestEnd;
use super::hold::Hold;
use super::tunnel::LAST_WORDS;

type Http1 = http1::Connection<TokioIo<TcpStream>, Upload>;

/// Pause before the next try where the last one was answered with a refusal.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long the first try may take; each further one twice as long. A SYN that is lost while a link comes up would
/// be sent again by the kernel only after a second.
const FIRST_TRY: Duration = Duration::from_millis(150);

/// Connects to a service of a machine that may have woken only just now, within `limit`.
///
/// # Errors
/// That of the last try.
pub(super) async fn connect(address: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + limit;
    let mut patience = FIRST_TRY;
    let mut last = io::Error::from(ErrorKind::TimedOut);
    let tries = async {
        loop {
            match timeout(patience, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => break Ok(stream),
                Ok(Err(error)) if is_passing(&error) => {
                    last = error;
                    sleep(TRY_AGAIN).await;
                }
                Ok(Err(error)) => break Err(error),
                Err(_) => patience *= 2,
            }
        }
    };
    match timeout_at(deadline, tries).await {
        Ok(Ok(stream)) => {
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(last),
    }
}

/// Whether a machine that has just woken may still get over this.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::TimedOut
    )
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum SendError {
    /// The connection broke, or what came was not HTTP.
    Broken(hyper::Error),
    /// No byte in either direction for too long.
    Silent,
    /// The machine does not run any longer.
    Gone,
}

/// A connection to a machine, on which a request was sent.
#[derive(Debug)]
pub(super) struct Connection {
    driver: AbortOnDropHandle<()>,
    keep: oneshot::Sender<Kept>,
}

/// What is needed until the last byte of an answer has gone out.
#[derive(Debug)]
struct Kept {
    silence: Silence,
    hold: Hold,
    fate: Fate,
    unread: Option<RequestEnd>,
}

impl Connection {
    /// What drives it, where it goes on as something else.
    pub(super) fn into_driver(self) -> AbortOnDropHandle<()> {
        self.driver
    }

    /// Keeps the machine running until what drives the connection is dropped, unless `silence` or the machine's end comes
    /// first: that is its fate then. A request that is still there when its client has not taken that is ended by `unread`.
    pub(super) fn keep(
        self,
        silence: Silence,
        hold: Hold,
        unread: Option<RequestEnd>,
    ) -> (Fate, AbortOnDropHandle<()>) {
        let fate = Fate::default();
        // One that has ended badly needs nothing any more.
        let _ = self.keep.send(Kept { silence, hold, fate: Arc::clone(&fate), unread });
        (fate, self.driver)
    }
}

/// Sends `request` and waits for the head of its answer, unless `silence` or the end of the machine comes first.
///
/// # Errors
/// [`SendError`]
pub(super) async fn send(
    stream: TcpStream,
    request: Request<Upload>,
    silence: &mut Silence,
    hold: &mut Hold,
) -> Result<(Response<Incoming>, Connection), SendError> {
    let handshake = http1::Builder::new().handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(SendError::Broken)?;
    let (keep, kept) = oneshot::channel();
    let driver = AbortOnDropHandle::new(tokio::spawn(drive(connection, kept)));
    tokio::select! {
        biased;
        response = sender.send_request(request) => {
            response.map(|response| (response, Connection { driver, keep })).map_err(SendError::Broken)
        }
        () = hold.gone() => Err(SendError::Gone),
        () = silence => Err(SendError::Silent),
    }
}

/// Drives a connection to its end. From the head of an answer on it also watches over it: the answer's body does not, as
/// long as its client takes nothing.
async fn drive(connection: Http1, mut kept: oneshot::Receiver<Kept>) {
    // Before the connection, so that it goes after it: then the machine may.
    let mut keeping;
    // How it ended is told to whoever waits for the answer.
    let mut connection = pin!(Some(async { drop(connection.with_upgrades().await) }));
    keeping = tokio::select! {
        biased;
        kept = &mut kept => kept.ok(),
        () = end(connection.as_mut()) => kept.await.ok(),
    };
    let Some(Kept { silence, hold, fate, unread }) = &mut keeping else {
        return end(connection.as_mut()).await;
    };
    let cut = {
        let mut cut = pin!(async {
            tokio::select! {
                () = hold.gone() => Cut::Gone,
                () = silence => Cut::Silent,
            }
        });
        tokio::select! {
            biased;
            () = end(connection.as_mut()) => cut.await,
            cut = &mut cut => cut,
        }
    };
    if cut == Cut::Gone {
        // What it sent last may be here already.
        let _ = timeout(LAST_WORDS, end(connection.as_mut())).await;
    }
    let _ = fate.set(cut);
    if let Some(unread) = unread {
        unread.ends_within(DISCARDING);
    }
}

/// Waits for the end of a connection, if it has not ended yet.
async fn end(mut connection: Pin<&mut Option<impl Future<Output = ()>>>) {
    if let Some(driving) = connection.as_mut().as_pin_mut() {
        driving.await;
        connection.set(None);
    }
}
