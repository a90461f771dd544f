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
use mvm_protocol::control::{Generation, HostReply, HostRequest};
use mvm_protocol::frame::{self, FrameError};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// Pause before the host is asked again, after a stream that broke.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// It grows to this while there is no answer: everybody who waits asks.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Takes Holds, at most so many at once.
#[derive(Debug)]
pub(super) struct Holds {
    host: Arc<Host>,
    free: Arc<Semaphore>,
    limit: Duration,
}

/// Whom to ask.
#[derive(Debug)]
struct Host {
    socket: PathBuf,
}

/// A machine that runs, at least until this is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    /// Which machine.
    pub(super) instance_id: InstanceId,
    /// Its address.
    pub(super) guest_ip: Ipv4Addr,
    pool_id: PoolId,
    /// Of the run that it is held in.
    generation: Option<Generation>,
    host: Arc<Host>,
    // In this order: a place is free only when its stream is.
    lease: Lease,
    _place: OwnedSemaphorePermit,
}

/// The stream that keeps it running, and what has come of the next message on it.
#[derive(Debug)]
struct Lease {
    stream: UnixStream,
    heard: Vec<u8>,
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
        Holds { host: Arc::new(Host { socket }), free: Arc::new(Semaphore::new(places)), limit }
    }

    /// Waits until a machine for `target` is ready, `within` at most. A stream that breaks before its answer is begun
    /// anew: a new agent on the host takes up its machines without their noticing.
    ///
    /// # Errors
    /// [`HoldError`]
    pub(super) async fn take(&self, target: &Target, within: Duration) -> Result<Hold, HoldError> {
        let place = Arc::clone(&self.free).try_acquire_owned().map_err(|_| HoldError::Busy)?;
        let (pool_id, instance_selector) = (target.pool_id.clone(), target.instance_selector.clone());
        let request = HostRequest::Hold {
            pool_id: pool_id.clone(),
            instance_selector,
            connections: None,
            only_if_generation: None,
        };
        let limit = self.limit.min(within);
        let mut last = None;
        let answered = timeout(limit, self.host.ask(&request, &mut last)).await;
        let Granted { instance_id, guest_ip, generation, lease } =
            answered.unwrap_or_else(|_| Err(HoldError::TimedOut { limit, last }))?;
        let host = Arc::clone(&self.host);
        Ok(Hold { instance_id, guest_ip, pool_id, generation, host, lease, _place: place })
    }
}

/// What the host gives.
struct Granted {
    instance_id: InstanceId,
    guest_ip: Ipv4Addr,
    generation: Option<Generation>,
    lease: Lease,
}

impl Host {
    /// Asks until there is an answer; `last` is what went wrong with the last try.
    async fn ask(&self, request: &HostRequest, last: &mut Option<io::Error>) -> Result<Granted, HoldError> {
        let mut pause = ASK_AGAIN;
        loop {
            match self.ask_once(request).await {
                Ok(answered) => return answered,
                Err(FrameError::Io(error)) => *last = Some(error),
                Err(other) => return Err(HoldError::Answer(other.to_string())),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn ask_once(&self, request: &HostRequest) -> Result<Result<Granted, HoldError>, FrameError> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        frame::write(&mut stream, request).await?;
        Ok(match frame::read(&mut stream).await? {
            Some(HostReply::Held { instance_id, guest_ip, generation }) => {
                let lease = Lease { stream, heard: Vec::new() };
                Ok(Granted { instance_id, guest_ip, generation, lease })
            }
            Some(HostReply::Error { message }) => Err(HoldError::Refused(message)),
            Some(_) => Err(HoldError::Answer("a reply to something else".to_owned())),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        })
    }
}

impl Hold {
    /// Takes a Hold that was lost once more, as soon as somebody answers: without an agent nobody puts the machine to sleep.
    /// A machine that has slept or stopped meanwhile is not brought up again for what it does not know of any more.
    ///
    /// # Errors
    /// The host does not give it.
    pub(super) async fn renew(&mut self) -> Result<(), HoldError> {
        let request = HostRequest::Hold {
            pool_id: self.pool_id.clone(),
            instance_selector: InstanceSelector::ByInstance(self.instance_id),
            connections: None,
            only_if_generation: self.generation,
        };
        self.lease = self.host.ask(&request, &mut None).await?.lease;
        Ok(())
    }

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

    /// Resolves when the machine has gone, for those who have something in hand until then. Nothing is missed where this is
    /// dropped before.
    pub(super) async fn gone(&mut self) {
        loop {
            match self.notice().await {
                Notice::Leaving => {}
                Notice::Gone => return,
                Notice::Lost => {
                    if self.renew().await.is_err() {
                        return;
                    }
                }
            }
        }
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
