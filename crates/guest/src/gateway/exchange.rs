//! One request: its route, its Hold, its answer.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::HeaderValue;
use hyper::upgrade::{self, OnUpgrade};
use hyper::{Request, Response, StatusCode, Version};
use mvm_model::{Route, RoutingTable};
use tokio::time::Instant;

use super::access_log::Entry;
use super::body::{Activity, Answer, Content, DISCARDING, Download, Upload, discard};
use super::connection::RequestEnd;
use super::headers;
use super::hold::Hold;
use super::listen::Shared;
use super::refusal::Refusal;
use super::tunnel::Tunnel;
use super::upstream::{self, SendError};

/// Where a request came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// On which port.
    pub(super) port: u16,
    /// From whom.
    pub(super) source: Ipv4Addr,
}

/// What a connection goes on as when its last answer was that it switches protocols.
#[derive(Debug, Default)]
pub(super) struct GoesOn(Mutex<Option<Tunnel>>);

impl GoesOn {
    pub(super) fn take(&self) -> Option<Tunnel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, tunnel: Tunnel) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

/// What a request on a route may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    silence: Duration,
    deadline: Option<Instant>,
    body: u64,
}

impl Bounds {
    fn of(route: &Route, shared: &Shared) -> Bounds {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let limits = &route.limits;
        Bounds {
            silence: limits.idle_seconds.map_or(shared.limits.silence, seconds),
            deadline: limits.timeout_seconds.map(|timeout| Instant::now() + seconds(timeout)),
            body: limits.max_body_mib.map_or(u64::MAX, |mib| u64::from(mib) << 20),
        }
    }

    /// What is left of its time.
    fn left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Answers one request, one way or another. Where the answer is that the protocol is switched, the connection goes on as
/// `goes_on` says.
pub(super) async fn answer(
    shared: &Shared,
    origin: Origin,
    goes_on: &GoesOn,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut entry = Entry::begin(&shared.log, &request, origin.source);
    let response = match forward(shared, origin, request, &mut entry).await {
        Ok(Forwarded::Answer(response)) => response.map(Content::Machine),
        Ok(Forwarded::Switched(response, switched)) => {
            entry.line.status = Some(response.status().as_u16());
            goes_on.set(switched.into_tunnel(entry));
            return Ok(response.map(|()| Answer::tunnel()));
        }
        Err(refusal) => {
            entry.line.error = Some(refusal.in_full());
            if let Some(unread) = RequestEnd::current() {
                unread.ends_within(DISCARDING);
            }
            let mut response = Response::new(Content::Own(Full::new(Bytes::from(refusal.body()))));
            *response.status_mut() = refusal.status();
            *response.headers_mut() = refusal.headers();
            response
        }
    };
    entry.line.status = Some(response.status().as_u16());
    Ok(response.map(|content| Answer::new(content, entry)))
}

/// A machine's answer.
enum Forwarded {
    Answer(Response<Download>),
    Switched(Response<()>, Switched),
}

/// Both sides of a connection that is to be a tunnel.
struct Switched {
    client: OnUpgrade,
    machine: OnUpgrade,
    connection: tokio_util::task::AbortOnDropHandle<()>,
    hold: Hold,
    idle: Duration,
    websocket: bool,
}

impl Switched {
    fn into_tunnel(self, entry: Entry) -> Tunnel {
        let Switched { client, machine, connection, hold, idle, websocket } = self;
        Tunnel { client, machine, connection, hold, idle, websocket, entry }
    }
}

async fn forward(
    shared: &Shared,
    origin: Origin,
    request: Request<Incoming>,
    entry: &mut Entry,
) -> Result<Forwarded, Refusal> {
    let table = shared.table();
    match admit(shared, origin, &table, &request, entry).await {
        Ok(admitted) => pass_on(shared, origin, admitted, request).await,
        Err(refusal) => {
            // Who waits for leave to send its body is not to get it.
            let waits = request.headers().contains_key(hyper::header::EXPECT);
            if !waits && !request.body().is_end_stream() {
                discard(request.into_body());
            }
            Err(refusal)
        }
    }
}

/// What a request needs to be passed on.
struct Admitted<'a> {
    route: &'a Route,
    bounds: Bounds,
    hold: Hold,
}

async fn admit<'a>(
    shared: &Shared,
    origin: Origin,
    table: &'a RoutingTable,
    request: &Request<Incoming>,
    entry: &mut Entry,
) -> Result<Admitted<'a>, Refusal> {
    headers::check(request)?;
    let route = table.find(origin.port, request.uri().path(), origin.source).ok_or(Refusal::NoRoute)?;
    entry.line.route = Some(route.name.clone());
    let bounds = Bounds::of(route, shared);
    if request.body().size_hint().lower() > bounds.body {
        // Before it wakes anybody.
        return Err(too_large(route));
    }
    let hold = take_hold(shared, route, &bounds, entry).await?;
    Ok(Admitted { route, bounds, hold })
}

fn too_large(route: &Route) -> Refusal {
    Refusal::TooLarge { route: route.name.clone(), mib: route.limits.max_body_mib.unwrap_or_default() }
}

async fn take_hold(
    shared: &Shared,
    route: &Route,
    bounds: &Bounds,
    entry: &mut Entry,
) -> Result<Hold, Refusal> {
    let asked = Instant::now();
    let hold = shared.holds.take(&route.target, bounds.left()).await;
    entry.held_after(asked.elapsed());
    let hold = hold.map_err(|source| Refusal::NoMachine { route: route.name.clone(), source })?;
    entry.line.instance = Some(hold.instance_id.to_string());
    Ok(hold)
}

async fn pass_on(
    shared: &Shared,
    origin: Origin,
    Admitted { route, bounds, mut hold }: Admitted<'_>,
    mut request: Request<Incoming>,
) -> Result<Forwarded, Refusal> {
    let name = || route.name.clone();
    let machine = SocketAddrV4::new(hold.guest_ip, route.target.target_port);
    let stream = upstream::connect(machine, shared.limits.connect)
        .await
        .map_err(|source| Refusal::Unreachable { route: name(), source })?;

    let activity = Activity::now();
    let mut silence = activity.silence_or(bounds.silence, shared.limits.silence, bounds.deadline);
    let client = upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    let wanted = headers::wanted_protocol(head.version, &head.headers);
    let streamed = head.version == Version::HTTP_2 && body.size_hint().exact().is_none();
    headers::toward_machine(&mut head, origin.source, machine, streamed);
    let request = Request::from_parts(head, Upload::new(body, bounds.body, activity.clone()));
    let sent = upstream::send(stream, request, &mut silence, &mut hold).await;
    let (mut response, connection) = sent.map_err(|error| match error {
        SendError::Broken(_) if activity.was_too_much() => too_large(route),
        SendError::Broken(source) => Refusal::Broken { route: name(), source },
        SendError::Silent => Refusal::Silent { route: name() },
        SendError::Gone => Refusal::Gone { route: name() },
    })?;
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = accepted(&response, wanted).ok_or_else(|| Refusal::Nonsense { route: name() })?;
        let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
        let machine = upgrade::on(&mut response);
        headers::toward_client_in(protocol, response.headers_mut());
        let connection = connection.into_driver();
        let switched = Switched { client, machine, connection, hold, idle: bounds.silence, websocket };
        return Ok(Forwarded::Switched(response.map(drop), switched));
    }
    headers::toward_client(response.headers_mut());
    let (fate, driver) = connection.keep(silence, hold, RequestEnd::current());
    Ok(Forwarded::Answer(response.map(|body| Download::new(body, activity, fate, driver))))
}

/// The protocol that a machine has switched to, if it was asked for.
fn accepted(response: &Response<Incoming>, wanted: Option<HeaderValue>) -> Option<HeaderValue> {
    let protocol = response.headers().get(hyper::header::UPGRADE);
    if headers::is_wanted(protocol, &wanted?) { protocol.cloned() } else { None }
}
