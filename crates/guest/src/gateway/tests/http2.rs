//! HTTP/2 with clients that begin with it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mvm_protocol::control::HostReply;
use mvm_protocol::proxy;
use serde_json::json;
use tokio::net::TcpSocket;
use tokio_util::task::AbortOnDropHandle;

use super::super::Limits;
use super::harness::*;

type Client<B> = http2::SendRequest<B>;

/// Connects from `from`; `first` goes out before HTTP/2.
async fn connect<B>(
    setup: &Setup,
    from: std::net::Ipv4Addr,
    first: &[u8],
) -> (Client<B>, tokio::task::JoinHandle<()>)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect((setup.address, PORT).into()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, first).await.unwrap();
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (client, tokio::spawn(async move { drop(connection.await) }))
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://example.org{path}")).header("cookie", "a=1").body(Full::default()).unwrap()
}

async fn text(response: Response<hyper::body::Incoming>) -> String {
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn requests_at_once_on_one_connection_become_http_1_toward_the_machine() {
    let setup = Setup::to(Service::echo().await).await;
    let (client, _connection) = connect::<Full<Bytes>>(&setup, STRANGER, b"").await;
    let asks = (0..20).map(|n| {
        let mut client = client.clone();
        async move {
            let response = soon(client.send_request(get(&format!("/{n}?x")))).await.unwrap();
            assert_eq!(
                (response.status(), response.headers()["server"].to_str().unwrap()),
                (StatusCode::OK, "echo")
            );
            let body = text(response).await;
            assert!(body.starts_with(&format!("GET /{n}?x HTTP/1.1\n")), "{body}");
            for header in ["host: example.org", "cookie: a=1", "connection: close"] {
                assert!(body.contains(&format!("\n{header}\n")), "{body}");
            }
            assert!(!body.contains("transfer-encoding"), "{body}");
        }
    });
    join_all(asks).await;
    setup.host.has(20, 0).await;
    let lines = setup.log.lines(20).await;
    assert!(lines.iter().all(|line| line["protocol"] == "HTTP/2" && line["status"] == 200));
}

#[tokio::test]
async fn bodies_stream_and_a_proxy_says_who_sends() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let source = std::net::SocketAddrV4::new([203, 0, 113, 9].into(), 40000);
    let header = proxy::encode(source, std::net::SocketAddrV4::new(TRUSTED, PORT));
    let (sender, chunks) = futures::channel::mpsc::unbounded::<Result<Frame<Bytes>, std::io::Error>>();
    let (mut client, _connection) = connect(&setup, TRUSTED, &header).await;
    let request = Request::post("http://example.org/").body(StreamBody::new(chunks)).unwrap();
    let answering = tokio::spawn(async move { client.send_request(request).await.unwrap() });
    let chunk = |text: &'static str| sender.unbounded_send(Ok(Frame::data(Bytes::from(text)))).unwrap();
    chunk("first");
    let mut machine = service.accept().await;
    let head = machine.head().await;
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    assert_eq!(head.header("x-forwarded-for"), Some("203.0.113.9"));
    assert_eq!(machine.chunk().await.as_deref(), Some("first"));
    chunk("last");
    assert_eq!(machine.chunk().await.as_deref(), Some("last"));
    sender.close_channel();
    assert_eq!(machine.chunk().await, None);
    machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n").await;
    let mut body = soon(answering).await.unwrap().into_body();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "event");
    setup.host.has(1, 1).await;
    machine.send("0\r\n\r\n").await;
    assert!(soon(body.collect()).await.unwrap().to_bytes().is_empty());
    setup.host.has(1, 0).await;
}

#[tokio::test]
async fn who_resets_a_request_gives_its_hold_back() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let (mut client, _connection) = connect::<Full<Bytes>>(&setup, STRANGER, b"").await;
    let asking = tokio::spawn(async move { client.send_request(get("/")).await });
    service.accept().await.head().await;
    setup.host.has(1, 1).await;
    asking.abort();
    setup.host.has(1, 0).await;
}

/// A client that takes no byte of its answers, which have begun.
async fn reading_nothing(
    setup: &Setup,
    service: &Service,
) -> (Response<Incoming>, Peer, AbortOnDropHandle<()>) {
    let stream = tokio::net::TcpStream::connect((setup.address, PORT)).await.unwrap();
    let mut client = http2::Builder::new(TokioExecutor::new());
    let connecting = client.initial_stream_window_size(0).handshake(TokioIo::new(stream));
    let (mut client, connection) = connecting.await.unwrap();
    let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let asking = tokio::spawn(async move { client.send_request(get("/")).await.unwrap() });
    let mut machine = service.accept().await;
    machine.head().await;
    machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    (soon(asking).await.unwrap(), machine, connection)
}

#[tokio::test]
async fn who_does_not_read_keeps_no_machine() {
    let (service, port) = Service::new().await;
    for ends_by in ["silence", "timeout", "its machine's end"] {
        let limits = match ends_by {
            "silence" => Limits { silence: Duration::from_millis(200), ..limits() },
            _ => limits(),
        };
        let route = match ends_by {
            "timeout" => limited(port, json!({ "timeout_seconds": 1 })),
            _ => route("all", "/", port),
        };
        let setup = Setup::new(&[route], limits, held()).await;
        let (response, mut machine, _client) = reading_nothing(&setup, &service).await;
        if ends_by == "its machine's end" {
            setup.host.has(1, 1).await;
            setup.host.say(Some(HostReply::Gone));
        }
        setup.host.has(1, 0).await;
        assert_eq!(machine.rest().await, "");
        // And not a place among the connections either.
        assert!(soon(response.into_body().collect()).await.is_err(), "{ends_by}");
        let line = &setup.log.lines(1).await[0];
        assert!(line["aborted"] == true && line["error"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn who_answers_nothing_is_let_go() {
    let limits = Limits { head: Duration::from_millis(200), ..limits() };
    let setup = Setup::new(&[route("all", "/", 1)], limits, held()).await;
    let mut client = setup.client().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut all = Vec::new();
    let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut client.0, &mut all)).await;
    // GOAWAY: it was told before.
    assert!(all.windows(9).any(|head| head == b"\0\0\x08\x07\0\0\0\0\0"), "{all:?}");
}

#[tokio::test]
async fn an_idle_connection_is_let_go_and_a_busy_one_is_finished_at_the_end() {
    let (service, port) = Service::new().await;
    let limits = Limits { head: Duration::from_millis(200), ..limits() };
    let setup = Setup::new(&[route("all", "/", port)], limits, held()).await;
    let (_idle, ended) = connect::<Full<Bytes>>(&setup, STRANGER, b"").await;
    soon(ended).await.unwrap();

    let (mut client, _connection) = connect::<Full<Bytes>>(&setup, STRANGER, b"").await;
    let mut again = client.clone();
    let asking = tokio::spawn(async move { client.send_request(get("/")).await });
    let mut machine = service.accept().await;
    machine.message().await;
    let stopped = tokio::spawn(setup.gateway.shutdown());
    // Time for it to begin.
    tokio::time::sleep(Duration::from_millis(100)).await;
    machine.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
    assert_eq!(text(soon(asking).await.unwrap().unwrap()).await, "done");
    soon(stopped).await.unwrap();
    assert!(again.send_request(get("/")).await.is_err());
}
