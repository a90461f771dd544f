//! Asks the host for a machine, on port 53, and keeps it running while it is needed.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mvm_model::InstanceId;
use mvm_model::routes::Target;
use mvm_protocol::control::{HostReply, HostRequest};
use mvm_protocol::frame::{self, FrameError};
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
    // In this order: a place is free only when its stream is.
    _lease: UnixStream,
    _place: OwnedSemaphorePermit,
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

    /// Waits until a machine for `target` is ready. A stream that breaks before its answer is begun anew: a new
    /// agent on the host takes up its machines without their noticing.
    ///
    /// # Errors
    /// [`HoldError`]
    pub(super) async fn take(&self, target: &Target) -> Result<Hold, HoldError> {
        let place = Arc::clone(&self.free).try_acquire_owned().map_err(|_| HoldError::Busy)?;
        let request = HostRequest::Hold {
            pool_id: target.pool_id.clone(),
            instance_selector: target.instance_selector.clone(),
            connections: None,
        };
        let mut last = None;
        let answered = timeout(self.limit, async {
            loop {
                match self.ask(&request).await {
                    Ok(answered) => break answered,
                    Err(FrameError::Io(error)) => last = Some(error),
                    Err(other) => break Err(HoldError::Answer(other.to_string())),
                }
                sleep(ASK_AGAIN).await;
            }
        });
        match answered.await {
            Ok(answer) => answer.map(|(instance_id, guest_ip, lease)| Hold {
                instance_id,
                guest_ip,
                _lease: lease,
                _place: place,
            }),
            Err(_) => Err(HoldError::TimedOut { limit: self.limit, last }),
        }
    }

    async fn ask(&self, request: &HostRequest) -> Result<Result<Granted, HoldError>, FrameError> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        frame::write(&mut stream, request).await?;
        Ok(match frame::read(&mut stream).await? {
            Some(HostReply::Held { instance_id, guest_ip }) => Ok((instance_id, guest_ip, stream)),
            Some(HostReply::Error { message }) => Err(HoldError::Refused(message)),
            Some(HostReply::WakeResult { .. } | HostReply::InstanceStatus { .. }) => {
                Err(HoldError::Answer("a reply to something else".to_owned()))
            }
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        })
    }
}

type Granted = (InstanceId, Ipv4Addr, UnixStream);
