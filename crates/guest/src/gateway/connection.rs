//! One connection of a client: who it is, which HTTP it speaks, and what it goes on as.

use std::io::{self, Cursor};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::SetOnce;
use tokio::time::{sleep, timeout};

use super::body::Activity;
use super::exchange::{self, GoesOn, Origin};
use super::listen::Shared;
use super::peer::{self, Identified};

/// The longest head of a request, in bytes, and the most headers in it. More is answered 431.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// How much a client may send ahead with HTTP/2, on a request and in all: what a gateway keeps for it at most.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Requests at once on a connection with HTTP/2.
const MAX_REQUESTS: u32 = 100;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("no request came in time")]
    Late,
    #[error(transparent)]
    Peer(#[from] peer::PeerError),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Socket(#[from] io::Error),
}

impl ConnectionError {
    /// Clients that leave or have nothing to say are a matter of course.
    pub(super) fn is_worth_a_note(&self) -> bool {
        match self {
            ConnectionError::Late | ConnectionError::Peer(peer::PeerError::Io(_)) => false,
            ConnectionError::Peer(_) | ConnectionError::Socket(_) => true,
            ConnectionError::Http(error) => error.is_parse(),
        }
    }
}

/// Serves it to its end.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddrV4,
    port: u16,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    limit_unanswered(&stream, shared.limits.silence)?;
    let identify = timeout(shared.limits.head, async {
        let mut identified = peer::identify(&mut stream, peer, shared.trusted_proxy).await?;
        let http2 = peer::begins_with_http2(&mut stream, &mut identified.first_bytes).await?;
        Ok::<_, peer::PeerError>((identified, http2))
    });
    let Some(identified) = shared.closing.run_until_cancelled(identify).await else { return Ok(()) };
    let (Identified { source, first_bytes }, http2) = identified.map_err(|_| ConnectionError::Late)??;

    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(first_bytes).chain(reader), writer));
    let origin = Origin { port, source: *source.ip() };
    if http2 { serve_http2(shared, io, origin).await } else { serve_http1(shared, io, origin).await }
}

async fn serve_http1(
    shared: &Shared,
    io: TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    origin: Origin,
) -> Result<(), ConnectionError> {
    let goes_on = GoesOn::default();
    let service = service_fn(|request| exchange::answer(shared, origin, &goes_on, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Some(tunnel) = goes_on.take() {
        tunnel.run(shared).await;
    }
    Ok(ended?)
}

async fn serve_http2(
    shared: &Arc<Shared>,
    io: TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    origin: Origin,
) -> Result<(), ConnectionError> {
    let requests = Requests { shared: Arc::clone(shared), open: Arc::default(), activity: Activity::now() };
    let serving = Arc::clone(shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&serving);
        async move { exchange::answer(&shared, origin, &GoesOn::default(), request).await }
    });
    let connection = http2::Builder::new(requests.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_concurrent_streams(MAX_REQUESTS)
        .max_header_list_size(MAX_HEAD as u32)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let no_more = async {
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = requests.none_for(shared.limits.head) => {}
        }
    };
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = no_more => connection.as_mut().graceful_shutdown(),
    }
    // It ends when the client has answered, for which it has as long once more.
    requests.activity.touch();
    tokio::select! {
        ended = connection => Ok(ended?),
        () = requests.none_for(shared.limits.head) => Ok(()),
    }
}

/// The requests of a connection with HTTP/2, each a task.
#[derive(Debug, Clone)]
struct Requests {
    shared: Arc<Shared>,
    open: Arc<AtomicUsize>,
    activity: Activity,
}

impl Requests {
    /// Is ready when there was none for so long.
    async fn none_for(&self, limit: Duration) {
        loop {
            self.activity.silence(limit).await;
            if self.open.load(Ordering::Relaxed) == 0 {
                return;
            }
            self.activity.touch();
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Requests {
    fn execute(&self, request: F) {
        let (open, activity) = (Arc::clone(&self.open), self.activity.clone());
        let (end, ending) = (RequestEnd::default(), self.shared.ending.clone());
        let request = END.scope(end.clone(), request);
        open.fetch_add(1, Ordering::Relaxed);
        self.shared.connections.spawn(async move {
            tokio::select! {
                biased;
                () = request => {}
                () = ending.cancelled() => {}
                () = end.reached() => {}
            }
            open.fetch_sub(1, Ordering::Relaxed);
            activity.touch();
        });
    }
}

tokio::task_local! {
    static END: RequestEnd;
}

/// When a request with HTTP/2 ends that has its answer, but whose client does not take it. There the client says how much it
/// takes, and the kernel sees one that is alive.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestEnd(Arc<SetOnce<Duration>>);

impl RequestEnd {
    /// That of the request whose task this is; none with HTTP/1.
    pub(super) fn current() -> Option<RequestEnd> {
        END.try_with(RequestEnd::clone).ok()
    }

    /// From now on. The first word counts.
    pub(super) fn ends_within(&self, time: Duration) {
        let _ = self.0.set(time);
    }

    async fn reached(&self) {
        sleep(*self.0.wait().await).await;
    }
}

/// A client that no longer takes what it is sent keeps no machine awake.
fn limit_unanswered(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, milliseconds)?)
}
