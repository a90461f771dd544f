//! What is checked and changed in the heads of messages.

use std::net::{Ipv4Addr, SocketAddrV4};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Uri, Version};

use super::refusal::Refusal;

/// Meant for the next hop only, whatever `Connection` says (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What only a proxy may say about the sender; the gateway is the first one whose word counts.
const SAID_BY_PROXIES: [HeaderName; 6] = [
    header::FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// Refuses what the gateway does not do, and what a machine might understand differently from the gateway.
///
/// # Errors
/// [`Refusal::Malformed`], [`Refusal::Unsupported`]
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    let headers = request.headers();
    if request.method() == Method::CONNECT {
        return Err(Refusal::Unsupported);
    }
    let hosts = headers.get_all(header::HOST).iter().count();
    let needed = match request.version() {
        Version::HTTP_11 => true,
        Version::HTTP_2 => request.uri().authority().is_none(),
        _ => false,
    };
    if hosts > 1 || (hosts == 0 && needed) {
        return Err(Refusal::Malformed("exactly one Host header is needed"));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && !is_only_chunked(headers) {
        return Err(Refusal::Malformed("the only transfer coding that is taken is chunked"));
    }
    if has_dot_segments(request.uri().path()) {
        return Err(Refusal::Malformed("the path must not have `.` or `..` segments"));
    }
    if wanted_protocol(request.version(), headers).is_some() && has_body(headers) {
        return Err(Refusal::Malformed("a request for another protocol must not have a body"));
    }
    Ok(())
}

/// The protocol that the client wants to go on with, if it is one that the gateway passes on: HTTP/2 is its own affair
/// and is spoken with clients that begin with it.
pub(super) fn wanted_protocol(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let wanted = headers.get(header::UPGRADE)?;
    let asked = listed(headers, header::CONNECTION).any(|name| name == "upgrade");
    let own = listed(headers, header::UPGRADE).any(|name| name == "h2c" || name.starts_with("http/"));
    (asked && !own).then(|| wanted.clone())
}

/// Whether `protocol`, as a machine answered it, is one of those `wanted`.
pub(super) fn is_wanted(protocol: Option<&HeaderValue>, wanted: &HeaderValue) -> bool {
    let (Some(Ok(protocol)), Ok(wanted)) = (protocol.map(HeaderValue::to_str), wanted.to_str()) else {
        return false;
    };
    wanted.split(',').any(|one| one.trim().eq_ignore_ascii_case(protocol.trim()))
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn is_only_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next().is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"chunked"));
    first && codings.next().is_none()
}

/// Whether a machine could resolve `path` to one outside the prefix by which its route was found.
fn has_dot_segments(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    path.split(['/', '\\']).any(|segment| segment == "." || segment == "..")
}

/// Makes the head that is sent to the machine at `machine`. `streamed`: a body comes whose length nobody has said.
pub(super) fn toward_machine(
    head: &mut request::Parts,
    source: Ipv4Addr,
    machine: SocketAddrV4,
    streamed: bool,
) {
    let chunked = streamed || head.headers.contains_key(header::TRANSFER_ENCODING);
    let protocol = wanted_protocol(head.version, &head.headers);
    let trailers = wants_trailers(&head.headers);
    let host = head
        .uri
        .authority()
        .and_then(|authority| authority.as_str().rsplit('@').next())
        .and_then(|host| HeaderValue::from_str(host).ok())
        .or_else(|| head.headers.get(header::HOST).cloned())
        .or_else(|| HeaderValue::from_str(&machine.to_string()).ok());
    remove_hop_by_hop(&mut head.headers);
    for name in SAID_BY_PROXIES {
        head.headers.remove(name);
    }
    // Answered by the gateway itself, as soon as the machine can take the body.
    head.headers.remove(header::EXPECT);
    if chunked {
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if trailers {
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    let connection = if protocol.is_some() { "upgrade" } else { "close" };
    head.headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
    head.headers.extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
    // In the place of what came, which may say something else.
    head.headers.remove(header::HOST);
    head.headers.extend(host.map(|host| (header::HOST, host)));
    head.headers.extend(HeaderValue::from_str(&source.to_string()).ok().map(|ip| (FORWARDED_FOR, ip)));
    head.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    head.uri = head.uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
    head.version = Version::HTTP_11;
}

/// Makes the headers that are sent to the client.
pub(super) fn toward_client(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
}

/// Makes the headers of a 101, by which a client and a machine go over to `protocol`.
pub(super) fn toward_client_in(protocol: HeaderValue, headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// HTTP/2 may part what HTTP/1.1 has in one header (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let parts: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if parts.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&parts.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, whole);
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    listed(headers, header::TE).any(|name| name == "trailers")
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = listed(headers, header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.into_iter().chain(HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The members of a header that is a list, in lower case.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = String> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|member| member.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 240, 0, 4), 8080);
    const SOURCE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    fn head(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        request(uri, headers).into_parts().0
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = hyper::Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn sent(uri: &str, headers: &[(&str, &str)]) -> Vec<String> {
        let mut head = head(uri, headers);
        toward_machine(&mut head, SOURCE, MACHINE, false);
        let line =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<String> = head.headers.iter().map(line).collect();
        lines.sort();
        lines.insert(0, head.uri.to_string());
        lines
    }

    #[test]
    fn only_what_is_meant_for_the_machine_reaches_it() {
        let lines = sent(
            "/a?b=c",
            &[
                ("host", "example.org"),
                ("connection", "keep-alive, X-Secret-Hop"),
                ("keep-alive", "timeout=5"),
                ("x-secret-hop", "1"),
                ("te", "trailers, gzip"),
                ("x-forwarded-for", "10.240.0.1"),
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("forwarded", "for=127.0.0.1"),
                ("expect", "100-continue"),
                ("accept", "*/*"),
            ],
        );
        let expected = [
            "/a?b=c",
            "accept: */*",
            "connection: close",
            "host: example.org",
            "te: trailers",
            "x-forwarded-for: 203.0.113.9",
            "x-forwarded-proto: http",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn connection_cannot_take_away_what_the_gateway_vouches_for() {
        let lines = sent("/", &[("host", "h"), ("connection", "host, x-forwarded-for, connection")]);
        assert!(lines.contains(&"host: h".to_owned()));
        assert!(lines.contains(&"x-forwarded-for: 203.0.113.9".to_owned()));
    }

    #[test]
    fn a_full_address_becomes_a_path_and_its_host() {
        let lines = sent("http://user@example.org:81/x?y", &[("host", "other")]);
        assert_eq!(lines[0], "/x?y");
        let hosts: Vec<_> = lines.iter().filter(|line| line.starts_with("host: ")).collect();
        assert_eq!(hosts, ["host: example.org:81"]);
        assert!(sent("/", &[]).contains(&"host: 10.240.0.4:8080".to_owned()));
    }

    #[test]
    fn another_protocol_is_asked_for_where_the_client_does() {
        let upgrade = |connection, protocol| {
            let lines = sent("/", &[("host", "h"), ("connection", connection), ("upgrade", protocol)]);
            let upgrade = lines.iter().find(|line| line.starts_with("upgrade")).cloned();
            let connection = lines.iter().find(|line| line.starts_with("connection")).cloned();
            (connection.unwrap(), upgrade)
        };
        let asked = ("connection: upgrade".to_owned(), Some("upgrade: websocket".to_owned()));
        assert_eq!(upgrade("keep-alive, Upgrade", "websocket"), asked);
        for (connection, protocol) in
            [("keep-alive", "websocket"), ("upgrade, http2-settings", "h2c"), ("upgrade", "HTTP/2.0, x")]
        {
            assert_eq!(upgrade(connection, protocol), ("connection: close".to_owned(), None));
        }
        let (wanted, value) = (HeaderValue::from_static("a, WebSocket"), HeaderValue::from_static);
        assert!(is_wanted(Some(&value("websocket")), &wanted));
        assert!(!is_wanted(Some(&value("h2c")), &wanted) && !is_wanted(None, &wanted));
    }

    #[test]
    fn http_2_becomes_http_1() {
        let mut asked = request("http://example.org/x", &[("cookie", "a=1"), ("cookie", "b=2")]);
        *asked.version_mut() = Version::HTTP_2;
        assert!(check(&asked).is_ok());
        let mut head = asked.into_parts().0;
        toward_machine(&mut head, SOURCE, MACHINE, true);
        assert_eq!((head.version, head.uri.to_string().as_str()), (Version::HTTP_11, "/x"));
        let header = |name| head.headers.get(name).unwrap().to_str().unwrap();
        assert_eq!((header("host"), header("cookie")), ("example.org", "a=1; b=2"));
        assert_eq!(header("transfer-encoding"), "chunked");
    }

    #[test]
    fn paths_that_leave_their_prefix_are_refused() {
        for path in ["/a/../b", "/a/%2e%2E/b", "/a%2f..%2Fb", "/..", "/a/./b", "/a\\..\\b", "/a/%2e"] {
            assert!(has_dot_segments(path), "{path}");
        }
        for path in ["/", "/a/b", "/a/...", "/.well-known/x", "/a..b/.c", "*"] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }

    #[test]
    fn what_the_gateway_does_not_do_is_refused() {
        let unsupported = |r| matches!(r, Err(Refusal::Unsupported));
        let malformed = |r| matches!(r, Err(Refusal::Malformed(_)));
        let mut tunnel = request("/", &[("host", "h")]);
        *tunnel.method_mut() = Method::CONNECT;
        assert!(unsupported(check(&tunnel)));
        let upgrade = [("host", "h"), ("connection", "Upgrade"), ("upgrade", "websocket")];
        assert!(check(&request("/", &upgrade)).is_ok());
        for body in [("content-length", "2"), ("transfer-encoding", "chunked")] {
            assert!(malformed(check(&request("/", &[&upgrade[..], &[body]].concat()))));
        }
        assert!(malformed(check(&request("/", &[]))));
        assert!(malformed(check(&request("/", &[("host", "a"), ("host", "b")]))));
        assert!(malformed(check(&request("/", &[("host", "a"), ("transfer-encoding", "gzip, chunked")]))));
        assert!(check(&request("/", &[("host", "a"), ("transfer-encoding", "Chunked")])).is_ok());
    }
}
