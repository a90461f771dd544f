//! One request: its route, its Hold, its answer.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Version};
use mvm_model::Route;

use super::access_log::Entry;
use super::body::{Activity, Answer, Content, Download, Upload};
use super::headers;
use super::hold::Hold;
use super::listen::Shared;
use super::refusal::Refusal;
use super::upstream::{self, SendError};

/// Where a request came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// On which port.
    pub(super) port: u16,
    /// From whom.
    pub(super) source: Ipv4Addr,
}

/// Answers one request, one way or another.
pub(super) async fn answer(
    shared: &Shared,
    origin: Origin,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut entry = Entry::begin(&shared.log, request.method().as_str(), request.uri().path(), origin.source);
    let response = match forward(shared, origin, request, &mut entry).await {
        Ok(response) => response.map(Content::Machine),
        Err(refusal) => {
            entry.line.error = Some(refusal.in_full());
            let mut response = Response::new(Content::Own(Full::new(Bytes::from(refusal.body()))));
            *response.status_mut() = refusal.status();
            *response.headers_mut() = refusal.headers();
            response
        }
    };
    entry.line.status = Some(response.status().as_u16());
    Ok(response.map(|content| Answer::new(content, entry)))
}

async fn forward(
    shared: &Shared,
    origin: Origin,
    request: Request<Incoming>,
    entry: &mut Entry,
) -> Result<Response<Download>, Refusal> {
    let (head, body) = request.into_parts();
    headers::check(&head)?;
    let table = shared.table();
    let route = table.find(origin.port, head.uri.path(), origin.source).ok_or(Refusal::NoRoute)?;
    entry.line.route = Some(route.name.clone());
    let hold = take_hold(shared, route, entry).await?;
    let request = Request::from_parts(head, body);
    pass_on(shared, origin, route, hold, request).await
}

async fn take_hold(shared: &Shared, route: &Route, entry: &mut Entry) -> Result<Hold, Refusal> {
    let asked = Instant::now();
    let hold = shared.holds.take(&route.target).await;
    entry.held_after(asked.elapsed());
    let hold = hold.map_err(|source| Refusal::NoMachine { route: route.name.clone(), source })?;
    entry.line.instance = Some(hold.instance_id.to_string());
    Ok(hold)
}

async fn pass_on(
    shared: &Shared,
    origin: Origin,
    route: &Route,
    hold: Hold,
    request: Request<Incoming>,
) -> Result<Response<Download>, Refusal> {
    let name = || route.name.clone();
    let limits = &shared.limits;
    let machine = SocketAddrV4::new(hold.guest_ip, route.target.target_port);
    let stream = upstream::connect(machine, limits.connect)
        .await
        .map_err(|source| Refusal::Unreachable { route: name(), source })?;

    let activity = Activity::now();
    let mut silence = activity.silence(limits.silence);
    let (mut head, body) = request.into_parts();
    headers::toward_machine(&mut head, origin.source, machine);
    let request = Request::from_parts(head, Upload::new(body, activity));
    let (mut response, connection) =
        upstream::send(stream, request, &mut silence).await.map_err(|error| match error {
            SendError::Broken(source) => Refusal::Broken { route: name(), source },
            SendError::Silent => Refusal::Silent { route: name() },
        })?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::Nonsense { route: name() });
    }
    headers::toward_client(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(|body| Download::new(body, silence, connection, hold)))
}
