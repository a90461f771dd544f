//! A connection that has switched protocols: bytes both ways until a side ends it, the machine leaves, or the gateway does.

use std::io;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::access_log::Entry;
use super::body::Activity;
use super::hold::{Hold, Notice};
use super::listen::Shared;
use super::websocket::{self, Frames};

/// What is read at once, in each direction.
const CHUNK: usize = 8 * 1024;
/// When it is to end and nothing has moved for so long, nothing is in hand.
const QUIET: Duration = Duration::from_secs(1);
/// When the machine has gone, what it sent is here within so long.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long either side may take to part.
const PARTING: Duration = Duration::from_secs(2);

/// Two connections that become one.
#[derive(Debug)]
pub(super) struct Tunnel {
    /// The client's side, when its 101 has been sent.
    pub(super) client: OnUpgrade,
    /// The machine's side.
    pub(super) machine: OnUpgrade,
    /// What drives it until it has switched.
    pub(super) connection: AbortOnDropHandle<()>,
    /// The machine.
    pub(super) hold: Hold,
    /// Without a byte for so long the machine may sleep.
    pub(super) idle: Duration,
    /// What is spoken is WebSocket.
    pub(super) websocket: bool,
    /// Its line in the log.
    pub(super) entry: Entry,
}

type Side = (ReadHalf<TokioIo<Upgraded>>, WriteHalf<TokioIo<Upgraded>>);

/// When something last went through, and whoever waits for it.
#[derive(Debug)]
struct Traffic {
    activity: Activity,
    moved: Notify,
}

impl Traffic {
    fn moves(&self) {
        self.activity.touch();
        self.moved.notify_waiters();
    }
}

/// What the client was sent.
#[derive(Debug)]
struct Sent {
    /// Where its frames end, if it was sent frames.
    frames: Option<Frames>,
    /// What was begun was written to its end.
    whole: bool,
    bytes: u64,
}

impl Sent {
    /// Whether a frame may be sent in the machine's place.
    fn may_speak(&self) -> bool {
        self.whole && self.frames.as_ref().is_some_and(Frames::may_begin)
    }

    fn at_boundary(&self) -> bool {
        self.whole && self.frames.as_ref().is_none_or(Frames::at_boundary)
    }
}

/// Who ends it, and whether there is time for a frame to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Machine,
    MachineHasGone,
    Gateway,
}

impl Leave {
    fn close_frame(self) -> Vec<u8> {
        match self {
            Leave::Machine | Leave::MachineHasGone => {
                websocket::close(websocket::SERVICE_RESTART, "it sleeps or was stopped: connect again")
            }
            Leave::Gateway => websocket::close(websocket::GOING_AWAY, "the gateway ends"),
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Leave::Machine | Leave::MachineHasGone => "closed: the machine does not run any longer",
            Leave::Gateway => "closed: the gateway ends",
        }
    }
}

/// How traffic ended by itself.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Both sides have said all, or one has and the other has nothing to say.
    Said,
    /// Stopped at the end of a frame.
    Stopped,
}

impl Tunnel {
    /// Runs it to its end.
    pub(super) async fn run(self, shared: &Shared) {
        let Tunnel { client, machine, connection, mut hold, idle, websocket, mut entry } = self;
        let (client, machine) = match timeout(PARTING, async { tokio::try_join!(client, machine) }).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return entry.line.error = Some(format!("could not switch: {error}")),
            Err(_) => return entry.line.error = Some("could not switch in time".to_owned()),
        };
        drop(connection);
        let mut client = split(TokioIo::new(client));
        let mut machine = split(TokioIo::new(machine));
        let traffic = Traffic { activity: Activity::now(), moved: Notify::new() };
        let mut sent = Sent { frames: websocket.then(Frames::default), whole: true, bytes: 0 };
        let stop = CancellationToken::new();

        let leave = {
            let mut passing = Box::pin(pass(&mut client, &mut machine, &traffic, &mut sent, &stop, idle));
            let ended = tokio::select! {
                ended = &mut passing => Err(ended),
                leave = oversee(shared, &mut hold, &traffic, idle) => Ok(leave),
            };
            match ended {
                Ok(Leave::Machine | Leave::Gateway) => {
                    stop.cancel();
                    // A frame that does not come to its end is cut off.
                    let _ = timeout(PARTING, passing).await;
                    ended
                }
                // Its last words may be here already.
                Ok(Leave::MachineHasGone) => timeout(LAST_WORDS, passing).await.map_or(ended, Err),
                Err(_) => ended,
            }
        };
        // The machine sees the end while it still runs, and then may sleep; the client may take its time.
        drop(machine);
        drop(hold);
        entry.line.bytes = sent.bytes;
        match leave {
            Ok(leave) => {
                entry.line.error = Some(leave.in_words().to_owned());
                entry.line.aborted = !part(&mut client, &sent, leave).await;
            }
            Err(Ok(_)) => entry.line.aborted = false,
            Err(Err(error)) => {
                entry.line.error = Some(error.to_string());
                part(&mut client, &sent, Leave::MachineHasGone).await;
            }
        }
    }
}

/// Passes bytes both ways until both sides have said all, or one has and the other says nothing.
async fn pass(
    client: &mut Side,
    machine: &mut Side,
    traffic: &Traffic,
    sent: &mut Sent,
    stop: &CancellationToken,
    idle: Duration,
) -> io::Result<End> {
    let up = up(&mut client.0, &mut machine.1, traffic);
    let down = down(&mut machine.0, &mut client.1, traffic, sent, stop);
    tokio::pin!(up, down);
    tokio::select! {
        said = &mut up => {
            said?;
            tokio::select! {
                ended = &mut down => ended,
                () = traffic.activity.silence(idle) => Ok(End::Said),
            }
        }
        ended = &mut down => {
            if ended? == End::Said {
                // It ended either way.
                let _ = timeout(PARTING, up).await;
                return Ok(End::Said);
            }
            Ok(End::Stopped)
        }
    }
}

async fn up(
    client: &mut ReadHalf<TokioIo<Upgraded>>,
    machine: &mut WriteHalf<TokioIo<Upgraded>>,
    traffic: &Traffic,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = client.read(&mut chunk).await?;
        if length == 0 {
            return machine.shutdown().await;
        }
        // Before: what takes long to be taken is in hand all the while.
        traffic.moves();
        machine.write_all(&chunk[..length]).await?;
        machine.flush().await?;
        traffic.moves();
    }
}

async fn down(
    machine: &mut ReadHalf<TokioIo<Upgraded>>,
    client: &mut WriteHalf<TokioIo<Upgraded>>,
    traffic: &Traffic,
    sent: &mut Sent,
    stop: &CancellationToken,
) -> io::Result<End> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = tokio::select! {
            biased;
            () = stop.cancelled(), if sent.at_boundary() => return Ok(End::Stopped),
            length = machine.read(&mut chunk) => length?,
        };
        if length == 0 {
            // A service that was ended or has crashed says nothing more; its client is to come again.
            if sent.may_speak() {
                client.write_all(&Leave::Machine.close_frame()).await?;
            }
            client.shutdown().await?;
            return Ok(End::Said);
        }
        sent.whole = false;
        client.write_all(&chunk[..length]).await?;
        client.flush().await?;
        sent.whole = true;
        sent.bytes += length as u64;
        if let Some(frames) = &mut sent.frames {
            frames.pass(&chunk[..length]);
        }
        traffic.moves();
    }
}

/// Keeps the machine running while something moves, and resolves when the machine or the gateway has to leave.
async fn oversee(shared: &Shared, hold: &mut Hold, traffic: &Traffic, idle: Duration) -> Leave {
    let mut kept = true;
    let mut leaving = None;
    let mut rested = Instant::now();
    loop {
        if !kept && traffic.activity.last() > rested {
            kept = true;
            // A stream on which nothing can be said is lost, which is noticed next.
            let _ = hold.keep(true).await;
        }
        tokio::select! {
            notice = hold.notice() => match notice {
                Notice::Leaving => leaving = leaving.or(Some(Leave::Machine)),
                Notice::Gone => return Leave::MachineHasGone,
                // A new agent on the host, which knows of no Hold and, if nothing is wrong, of the machine.
                Notice::Lost => {
                    tokio::select! {
                        renewed = hold.renew() => if renewed.is_err() { return Leave::Machine },
                        () = shared.closing.cancelled() => return Leave::Gateway,
                    }
                    kept = true;
                }
            },
            () = shared.closing.cancelled(), if leaving.is_none() => leaving = Some(Leave::Gateway),
            () = traffic.activity.silence(QUIET), if leaving.is_some() => {
                return leaving.unwrap_or(Leave::Gateway);
            }
            () = traffic.activity.silence(idle), if kept => {
                (kept, rested) = (false, traffic.activity.last());
                let _ = hold.keep(false).await;
            }
            () = traffic.moved.notified(), if !kept => {}
        }
    }
}

/// Takes leave of the client; whether in order.
async fn part(client: &mut Side, sent: &Sent, leave: Leave) -> bool {
    let (from, to) = client;
    let may_speak = sent.may_speak();
    let said = async {
        if may_speak {
            to.write_all(&leave.close_frame()).await?;
        }
        to.shutdown().await?;
        // What was sent arrives only where what the client still sends is read.
        let mut chunk = [0; 512];
        while from.read(&mut chunk).await? > 0 {}
        io::Result::Ok(())
    };
    let parted = timeout(PARTING, said).await;
    may_speak && !matches!(parted, Ok(Err(_)))
}
