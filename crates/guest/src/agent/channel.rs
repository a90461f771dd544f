//! The bytes of one session, between the port's threads and the multiplexer.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result, Write};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mvm_protocol::session::Nonce;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use crate::console::say;

/// How many bytes may wait for the writing thread.
const MAX_QUEUED: usize = 256 * 1024;

/// What is to be written to the port. Only the session that began last can put anything in.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    session: u64,
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    waiting: Option<Waker>,
    /// The writing thread has a chunk in hand.
    is_writing: bool,
}

impl Queue {
    fn replace(&mut self) {
        self.session += 1;
        self.chunks.clear();
        self.bytes = 0;
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what earlier sessions left and puts the echo first.
    fn begin(&self, nonce: Nonce) -> u64 {
        let mut queue = self.lock();
        queue.replace();
        queue.chunks.push_back(nonce.preamble().to_vec());
        self.filled.notify_one();
        queue.session
    }

    /// Nobody can write until a session begins.
    pub(super) fn end(&self) {
        self.lock().replace();
    }

    fn poll_write(&self, session: u64, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let mut queue = self.lock();
        if queue.session != session {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let room = MAX_QUEUED.saturating_sub(queue.bytes);
        if room == 0 {
            queue.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = &bytes[..bytes.len().min(room)];
        queue.bytes += taken.len();
        queue.chunks.push_back(taken.to_vec());
        self.filled.notify_one();
        Poll::Ready(Ok(taken.len()))
    }

    /// Writes for ever.
    pub(super) fn write_out(&self, port: impl Write) {
        let mut port = port;
        loop {
            let (session, chunk) = self.next();
            let mut rest = chunk.as_slice();
            while !rest.is_empty() && self.lock().session == session {
                match port.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        // The session cannot go on with a hole in it; the host will begin another.
                        say(format_args!("writing the control channel: {error}"));
                        self.end_session(session);
                    }
                }
            }
        }
    }

    /// Waits until everything is written, or for as long as this.
    pub(super) async fn drained(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        loop {
            // First of all the multiplexer gets a turn to hand over what it has.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let queue = self.lock();
            if (queue.chunks.is_empty() && !queue.is_writing) || Instant::now() > deadline {
                return;
            }
        }
    }

    fn end_session(&self, session: u64) {
        let mut queue = self.lock();
        if queue.session == session {
            queue.replace();
        }
    }

    fn next(&self) -> (u64, Vec<u8>) {
        let mut queue = self.lock();
        queue.is_writing = false;
        loop {
            if let Some(chunk) = queue.chunks.pop_front() {
                queue.bytes = queue.bytes.saturating_sub(chunk.len());
                queue.is_writing = true;
                if let Some(waker) = queue.waiting.take() {
                    waker.wake();
                }
                return (queue.session, chunk);
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One session's bytes, both ways. Of no use once another session began.
pub(super) struct SessionChannel {
    outbox: Arc<Outbox>,
    session: u64,
    inbound: mpsc::UnboundedReceiver<Vec<u8>>,
    /// What was received and not read yet, and how much of it was.
    partial: (Vec<u8>, usize),
}

impl SessionChannel {
    /// Begins a session: its echo is the first thing that is written. What arrives is given to the sender.
    pub(super) fn begin(outbox: &Arc<Outbox>, nonce: Nonce) -> (Self, mpsc::UnboundedSender<Vec<u8>>) {
        // Not bounded here but by the windows of the streams: a session that does not read must not keep
        // the preamble of the next one from being seen.
        let (sender, inbound) = mpsc::unbounded_channel();
        let session = outbox.begin(nonce);
        (Self { outbox: Arc::clone(outbox), session, inbound, partial: (Vec::new(), 0) }, sender)
    }
}

impl AsyncRead for SessionChannel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if self.partial.1 == self.partial.0.len() {
            match self.inbound.poll_recv(cx) {
                Poll::Ready(Some(bytes)) => self.partial = (bytes, 0),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        let (bytes, read) = &mut self.partial;
        let count = buffer.remaining().min(bytes.len() - *read);
        buffer.put_slice(&bytes[*read..*read + count]);
        *read += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SessionChannel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.outbox.poll_write(self.session, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Gives every chunk that is written to the test, which reads at its own pace.
    struct Wire(std::sync::mpsc::SyncSender<Vec<u8>>);

    impl Write for Wire {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    fn outbox() -> (Arc<Outbox>, std::sync::mpsc::Receiver<Vec<u8>>) {
        let outbox = Arc::new(Outbox::default());
        let (sender, wire) = std::sync::mpsc::sync_channel(0);
        let writer = Arc::clone(&outbox);
        std::thread::spawn(move || writer.write_out(Wire(sender)));
        (outbox, wire)
    }

    #[tokio::test]
    async fn no_byte_of_an_old_session_follows_the_echo() {
        let (outbox, wire) = outbox();
        let (mut old, _sender) = SessionChannel::begin(&outbox, Nonce([1; 16]));
        assert_eq!(wire.recv().unwrap(), Nonce([1; 16]).preamble());
        for _ in 0..4 {
            old.write_all(b"old").await.unwrap();
        }
        let (mut new, _sender) = SessionChannel::begin(&outbox, Nonce([2; 16]));
        new.write_all(b"new").await.unwrap();
        let mut written = wire.recv().unwrap();
        if written == b"old" {
            // The one that the writer already had in hand.
            written = wire.recv().unwrap();
        }
        assert_eq!(written, Nonce([2; 16]).preamble());
        assert_eq!(wire.recv().unwrap(), b"new");
        assert_eq!(old.write_all(b"old").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_full_queue_waits_until_the_port_takes_bytes() {
        let (outbox, wire) = outbox();
        let (mut channel, _sender) = SessionChannel::begin(&outbox, Nonce([1; 16]));
        let sent = vec![7; 3 * MAX_QUEUED];
        let expected = PREAMBLE + sent.len();
        let writer = tokio::spawn(async move { channel.write_all(&sent).await });
        let read = tokio::task::spawn_blocking(move || {
            let mut total = 0;
            while total < expected {
                total += wire.recv().unwrap().len();
            }
            total
        });
        writer.await.unwrap().unwrap();
        assert_eq!(read.await.unwrap(), expected);
    }

    const PREAMBLE: usize = mvm_protocol::session::PREAMBLE;

    #[tokio::test]
    async fn what_arrives_is_read_in_any_portions_and_ends_with_its_sender() {
        let (outbox, _wire) = outbox();
        let (mut channel, sender) = SessionChannel::begin(&outbox, Nonce([1; 16]));
        sender.send(b"abc".to_vec()).unwrap();
        sender.send(b"defg".to_vec()).unwrap();
        drop(sender);
        let mut two = [0; 2];
        channel.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        let mut rest = String::new();
        channel.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cdefg");
    }
}
