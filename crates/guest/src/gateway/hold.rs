//! Asks the host for a machine, on port 53, and keeps it running while it is needed.

use std::future::poll_fn;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mvm_model::routes::Target;
use mvm_model::{InstanceId, InstanceSelector, PoolId};
use mvm_protocol::control::{HostReply, HostRequest};
use mvm_protocol::frame::{self, FrameError};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// Pause before the host is asked again, after a stream that broke.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Takes Holds, at most so many at once.
#[derive(Debug)]
pub(super) struct Holds {
    socket: PathBuf,
    free: Arc<Semaphore>,
    limit: Duration,
}

/// A machine that runs, at least until this is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    /// Which machine.
    pub(super) instance_id: InstanceId,
    /// Its address.
    pub(super) guest_ip: Ipv4Addr,
    pool_id: PoolId,
    // In this order: a place is free only when its stream is.
    lease: Lease,
    _place: OwnedSemaphorePermit,
}

/// The stream that keeps it running, and what has come of the next message on it.
#[derive(Debug)]
struct Lease {
    stream: UnixStream,
    heard: Vec<u8>,
    lost: bool,
}

/// What the host says of a machine that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// It is about to sleep or stop, and waits a while for what is in hand.
    Leaving,
    /// It does not run any more.
    Gone,
    /// The stream broke; of the machine nothing is known.
    Lost,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum HoldError {
    /// As many Holds as there may be.
    #[error("too many requests at once")]
    Busy,
    /// The host's word.
    #[error("the host refused: {0}")]
    Refused(String),
    /// An answer to another question, or in another language.
    #[error("the host's answer is not understood ({0}); are host and guest of different versions?")]
    Answer(String),
    /// Nobody answered in time.
    #[error("no machine was ready within {limit:?}{}", .last.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    TimedOut {
        /// How long was waited.
        limit: Duration,
        /// What went wrong with the last try, if it went wrong.
        last: Option<io::Error>,
    },
}

impl Holds {
    /// At most `places` Holds at once, each answered by the host within `limit`.
    pub(super) fn new(socket: PathBuf, places: usize, limit: Duration) -> Holds {
        Holds { socket, free: Arc::new(Semaphore::new(places)), limit }
    }

    /// Waits until a machine for `target` is ready, `within` at most. A stream that breaks before its answer is begun
    /// anew: a new agent on the host takes up its machines without their noticing.
    ///
    /// # Errors
    /// [`HoldError`]
    pub(super) async fn take(&self, target: &Target, within: Duration) -> Result<Hold, HoldError> {
        let place = Arc::clone(&self.free).try_acquire_owned().map_err(|_| HoldError::Busy)?;
        let (pool_id, selector) = (target.pool_id.clone(), target.instance_selector.clone());
        let (instance_id, guest_ip, lease) = self.ask(pool_id.clone(), selector, within).await?;
        Ok(Hold { instance_id, guest_ip, pool_id, lease, _place: place })
    }

    /// Takes a Hold that was lost once more.
    ///
    /// # Errors
    /// [`HoldError`]
    pub(super) async fn renew(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let selector = InstanceSelector::ByInstance(hold.instance_id);
        (_, _, hold.lease) = self.ask(hold.pool_id.clone(), selector, self.limit).await?;
        Ok(())
    }

    async fn ask(
        &self,
        pool_id: PoolId,
        instance_selector: InstanceSelector,
        within: Duration,
    ) -> Result<Granted, HoldError> {
        let request = HostRequest::Hold { pool_id, instance_selector, connections: None };
        let limit = self.limit.min(within);
        let mut last = None;
        let answered = timeout(limit, async {
            loop {
                match self.ask_once(&request).await {
                    Ok(answered) => break answered,
                    Err(FrameError::Io(error)) => last = Some(error),
                    Err(other) => break Err(HoldError::Answer(other.to_string())),
                }
                sleep(ASK_AGAIN).await;
            }
        });
        answered.await.unwrap_or_else(|_| Err(HoldError::TimedOut { limit, last }))
    }

    async fn ask_once(&self, request: &HostRequest) -> Result<Result<Granted, HoldError>, FrameError> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        frame::write(&mut stream, request).await?;
        Ok(match frame::read(&mut stream).await? {
            Some(HostReply::Held { instance_id, guest_ip }) => {
                Ok((instance_id, guest_ip, Lease { stream, heard: Vec::new(), lost: false }))
            }
            Some(HostReply::Error { message }) => Err(HoldError::Refused(message)),
            Some(_) => Err(HoldError::Answer("a reply to something else".to_owned())),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        })
    }
}

type Granted = (InstanceId, Ipv4Addr, Lease);

impl Hold {
    /// Says whether the machine is to be kept running. It is until this is said; without, the host still tells its end.
    ///
    /// # Errors
    /// The stream is broken, which [`Hold::notice`] says too.
    pub(super) async fn keep(&mut self, running: bool) -> Result<(), FrameError> {
        frame::write(&mut self.lease.stream, &HostRequest::Keep { running }).await
    }

    /// What the host says next. Nothing is missed where this is dropped before.
    pub(super) async fn notice(&mut self) -> Notice {
        poll_fn(|cx| self.lease.poll(cx)).await
    }

    /// Is ready when the machine has gone, for those who have something in hand until then.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.lease.lost {
            match ready!(self.lease.poll(cx)) {
                Notice::Leaving => {}
                Notice::Gone => return Poll::Ready(()),
                // A new agent finds the machine running as a rule.
                Notice::Lost => self.lease.lost = true,
            }
        }
        Poll::Pending
    }
}

impl Lease {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Notice> {
        loop {
            match frame::take(&mut self.heard) {
                Ok(Some(HostReply::Leaving)) => return Poll::Ready(Notice::Leaving),
                Ok(Some(HostReply::Gone)) => return Poll::Ready(Notice::Gone),
                // Of a later version.
                Ok(Some(_)) | Err(FrameError::Message(_)) => continue,
                Ok(None) => {}
                Err(_) => return Poll::Ready(Notice::Lost),
            }
            let mut chunk = [0; 64];
            let mut buffer = ReadBuf::new(&mut chunk);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.heard.extend_from_slice(buffer.filled()),
                Ok(()) | Err(_) => return Poll::Ready(Notice::Lost),
            }
        }
    }
}
