//! Connects to a machine and passes a request on to it.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::body::{Silence, Upload};
use super::hold::Hold;

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

/// An answer's head, its body still to come, and what drives the connection.
pub(super) type Answered = (Response<Incoming>, AbortOnDropHandle<()>);

/// Sends `request` and waits for the head of its answer, unless `silence` or the end of the machine comes first.
///
/// # Errors
/// [`SendError`]
pub(super) async fn send(
    stream: TcpStream,
    request: Request<Upload>,
    silence: &mut Silence,
    hold: &mut Hold,
) -> Result<Answered, SendError> {
    let handshake = http1::Builder::new().handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(SendError::Broken)?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // How it ended is told to whoever waits for the answer.
        let _ = connection.with_upgrades().await;
    }));
    tokio::select! {
        biased;
        response = sender.send_request(request) => {
            response.map(|response| (response, driver)).map_err(SendError::Broken)
        }
        () = poll_fn(|cx| hold.poll_gone(cx)) => Err(SendError::Gone),
        () = silence => Err(SendError::Silent),
    }
}
