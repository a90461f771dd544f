//! Parallel streams over one channel: yamux, driven by a task of its own.

use std::collections::VecDeque;
use std::task::Poll;

use futures::future::poll_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use crate::session::MAX_BODY;
use crate::{MAX_GATEWAY_STREAMS, Port};

/// What may be on its way in one stream and is not read yet, in bytes: the least that the multiplexer has.
const WINDOW: usize = 256 * 1024;

/// One stream. Dropping it without a shutdown resets it.
pub type Stream = Compat<yamux::Stream>;

/// The session ended, or never had room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the machine's control session has ended")]
pub struct SessionEnded;

impl From<SessionEnded> for std::io::Error {
    fn from(error: SessionEnded) -> Self {
        Self::new(std::io::ErrorKind::NotConnected, error)
    }
}

/// Which side of a session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opened the session.
    Host,
    /// Echoed the preamble.
    Guest,
}

/// Opens streams of a session. Clones open streams of the same one; the session ends when the last is gone.
#[derive(Debug, Clone)]
pub struct Mux {
    requests: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
}

/// The streams that the other side opens.
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::Receiver<yamux::Stream>,
}

/// Starts a session over a channel on which [`crate::session`] is done. The last part is its driver:
/// a future to be spawned, which ends when the session does.
pub fn start<T>(channel: T, side: Side) -> (Mux, Incoming, impl Future<Output = ()> + Send + 'static)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut config = yamux::Config::default();
    // Above our own limits, which refuse politely; past this one the session ends.
    config.set_max_num_streams(2 * MAX_GATEWAY_STREAMS);
    // What every stream has from the beginning and no more: windows would grow with every byte that waits in the port,
    // and a machine would have to keep in memory what its disk is too slow for.
    config.set_max_connection_receive_window(Some(2 * MAX_GATEWAY_STREAMS * WINDOW));
    config.set_split_send_size(MAX_BODY);
    let mode = match side {
        Side::Host => yamux::Mode::Client,
        Side::Guest => yamux::Mode::Server,
    };
    let connection = yamux::Connection::new(channel.compat(), config, mode);
    let (requests, wanted) = mpsc::channel(64);
    let (accepted, streams) = mpsc::channel(2 * MAX_GATEWAY_STREAMS);
    (Mux { requests }, Incoming { streams }, drive(connection, wanted, accepted))
}

async fn drive<T>(
    mut connection: yamux::Connection<T>,
    mut wanted: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    accepted: mpsc::Sender<yamux::Stream>,
) where
    T: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let mut waiting: VecDeque<oneshot::Sender<yamux::Stream>> = VecDeque::new();
    poll_fn(|cx| {
        loop {
            match wanted.poll_recv(cx) {
                Poll::Ready(Some(reply)) => {
                    waiting.push_back(reply);
                    continue;
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if !waiting.is_empty() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(reply) = waiting.pop_front() {
                            // Whoever asked may be gone; the stream then closes by itself.
                            let _ = reply.send(stream);
                        }
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    // Full or gone: the stream is dropped, which resets it.
                    let _ = accepted.try_send(stream);
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

impl Mux {
    /// Opens a stream and says what it is for.
    ///
    /// # Errors
    /// [`SessionEnded`] as an I/O error, or the channel's own.
    pub async fn open(&self, port: Port) -> std::io::Result<Stream> {
        let (reply, stream) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| SessionEnded)?;
        let mut stream = stream.await.map_err(|_| SessionEnded)?.compat();
        stream.write_all(&port.number().to_be_bytes()).await?;
        Ok(stream)
    }

    /// Resolves when the session has ended.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// Whether the session has ended.
    pub fn is_ended(&self) -> bool {
        self.requests.is_closed()
    }
}

impl Incoming {
    /// The next stream that the other side opened; `None` when the session has ended. Its port is read by [`read_port`].
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await.map(FuturesAsyncReadCompatExt::compat)
    }
}

/// Reads a stream's port; `None` for a number that is none.
///
/// # Errors
/// The stream's own.
pub async fn read_port(stream: &mut Stream) -> std::io::Result<Option<Port>> {
    let number = stream.read_u32().await?;
    Ok([Port::Guest, Port::Host].into_iter().find(|port| port.number() == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parallel_streams_carry_both_ways() {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (host, _host_incoming, host_driver) = start(a, Side::Host);
        let (_guest, mut incoming, guest_driver) = start(b, Side::Guest);
        tokio::spawn(host_driver);
        tokio::spawn(guest_driver);
        tokio::spawn(async move {
            while let Some(mut stream) = incoming.accept().await {
                tokio::spawn(async move {
                    assert_eq!(read_port(&mut stream).await.unwrap(), Some(Port::Guest));
                    let mut text = String::new();
                    stream.read_to_string(&mut text).await.unwrap();
                    stream.write_all(text.to_uppercase().as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
        });
        let asks = (0..50).map(|n| {
            let host = host.clone();
            async move {
                let mut stream = host.open(Port::Guest).await.unwrap();
                stream.write_all(format!("ask {n}").as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, format!("ASK {n}"));
            }
        });
        futures::future::join_all(asks).await;
    }

    #[tokio::test]
    async fn bytes_that_are_no_frames_end_the_session() {
        let (a, mut b) = tokio::io::duplex(1024);
        let (host, _incoming, driver) = start(a, Side::Host);
        let driver = tokio::spawn(driver);
        b.write_all(&[0xff; 64]).await.unwrap();
        driver.await.unwrap();
        host.ended().await;
        assert!(host.open(Port::Guest).await.is_err());
    }
}
