//! Senders that are not who they say, and requests that are not what they say.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use mvm_protocol::proxy;
use serde_json::json;

use super::super::Limits;
use super::harness::*;

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn header() -> Vec<u8> {
    proxy::encode(SocketAddrV4::new(OUTSIDE, 40000), SocketAddrV4::new(TRUSTED, PORT))
}

/// A gateway that takes messages from `203.0.113.0/24` only.
async fn guarded() -> Setup {
    let port = Service::echo().await;
    let mut rule = route("net", "/", port);
    rule["match_rule"]["source_cidr"] = json!("203.0.113.0/24");
    Setup::new(&[rule], limits(), held()).await
}

#[tokio::test]
async fn the_trusted_proxy_says_who_sends() {
    let setup = guarded().await;
    let mut client = Peer::connect(TRUSTED, setup.address, PORT).await.unwrap();
    // Byte by byte, as a network may bring it.
    for byte in header() {
        client.send([byte]).await;
    }
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!(answer.status(), 200);
        assert!(answer.body.contains(&format!("\nx-forwarded-for: {OUTSIDE}\n")), "{}", answer.body);
    }
    assert_eq!(setup.log.lines(1).await[0]["source"], OUTSIDE.to_string());
}

#[tokio::test]
async fn without_a_header_the_proxy_sends_itself() {
    let setup = guarded().await;
    let mut client = Peer::connect(TRUSTED, setup.address, PORT).await.unwrap();
    assert_eq!(client.get("/").await.status(), 404);
    setup.host.has(0, 0).await;
}

#[tokio::test]
async fn nobody_else_may_send_a_header() {
    let setup = guarded().await;
    let mut client = Peer::connect(STRANGER, setup.address, PORT).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    client.send([&header()[..], request].concat()).await;
    assert_eq!(client.rest().await, "");
    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n").await;
    let answer = client.message().await;
    assert_eq!(answer.status(), 404);
    assert!(!answer.error().is_empty());
    setup.host.has(0, 0).await;
}

#[tokio::test]
async fn a_proxy_that_sends_nonsense_is_cut_off() {
    let setup = guarded().await;
    let mut client = Peer::connect(TRUSTED, setup.address, PORT).await.unwrap();
    client.send([&proxy::SIGNATURE[..], &[0x21, 0x21, 0, 36]].concat()).await;
    assert_eq!(client.rest().await, "");
    setup.host.has(0, 0).await;
}

/// What a client gets back for `request` when it says nothing more.
async fn answers(setup: &Setup, request: &str) -> String {
    let mut client = setup.client().await;
    client.send(request).await;
    tokio::io::AsyncWriteExt::shutdown(client.0.get_mut()).await.unwrap();
    client.rest().await
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_refused() {
    let setup = Setup::to(Service::echo().await).await;
    let post = "POST / HTTP/1.1\r\nHost: h\r\n";
    for request in [
        format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        format!("{post}Content-Length: +5\r\n\r\nhello"),
        format!("{post}Content-Length: 5, 5\r\n\r\nhello"),
        format!("{post}Transfer-Encoding: gzip\r\n\r\nhello"),
        format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Folded: a\r\n b\r\nBad Name: x\r\n\r\n"),
        "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET /a/../b HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        "GET /a/%2e%2e/b HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        "GET / extra HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
    ] {
        let answer = answers(&setup, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{request}{answer}"
        );
    }
    setup.host.has(0, 0).await;
}

/// RFC 9112, 6.3: the chunks count, the length is taken away, and the connection is of no use afterwards.
#[tokio::test]
async fn a_length_beside_chunks_hides_no_second_request() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n";
    let (length, chunked) = ("Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n");
    for headers in [format!("{length}{chunked}"), format!("{chunked}{length}")] {
        let mut client = setup.client().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}\r\n1\r\na\r\n0\r\n\r\n{hidden}")).await;
        let mut machine = service.accept().await;
        let request = machine.message().await;
        assert_eq!(request.header("content-length"), None, "{request:?}");
        assert_eq!((request.start.as_str(), request.body.as_str()), ("POST / HTTP/1.1", "a"));
        machine.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.message().await.body, "ok");
        assert_eq!(client.rest().await, "");
        assert_eq!(machine.rest().await, "");
    }
    assert_eq!(setup.host.seen().requests.len(), 2);
}

#[tokio::test]
async fn an_answer_that_could_be_read_in_two_ways_is_sent_in_one() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.message().await;
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n";
    machine.send(format!("{both}1\r\na\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")).await;
    let answer = client.message().await;
    match answer.status() {
        200 => assert_eq!((answer.body.as_str(), answer.header("content-length")), ("a", None)),
        other => assert_eq!(other, 502),
    }
    client.send("GET /next HTTP/1.1\r\nHost: h\r\n\r\n").await;
    service.accept().await.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await;
    assert_eq!(client.message().await.body, "next");
}

#[tokio::test]
async fn chunks_that_are_none_end_the_request() {
    let setup = Setup::to(Service::echo().await).await;
    for chunk in ["-1\r\na", "zz\r\na", "ffffffffffffffffff\r\na", "1 1\r\naa"] {
        let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = answers(&setup, &format!("{head}{chunk}\r\n0\r\n\r\n")).await;
        assert!(!answer.contains(" 200 "), "{chunk}: {answer}");
    }
    let open = setup.host.seen().requests.len();
    setup.host.has(open, 0).await;
}

#[tokio::test]
async fn what_the_gateway_does_not_do_is_said() {
    let setup = Setup::to(Service::echo().await).await;
    let tunnel = "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n";
    assert!(answers(&setup, tunnel).await.starts_with("HTTP/1.1 501 "));
    let hidden =
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\nx";
    assert!(answers(&setup, hidden).await.starts_with("HTTP/1.1 400 "));
    setup.host.has(0, 0).await;
}

#[tokio::test]
async fn heads_have_limits() {
    let setup = Setup::to(Service::echo().await).await;
    let many = "X: y\r\n".repeat(200);
    let long = format!("X: {}\r\n", "y".repeat(100_000));
    for headers in [many, long] {
        let mut client = setup.client().await;
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        // The gateway may close before all of it is sent.
        let _ = tokio::io::AsyncWriteExt::write_all(client.0.get_mut(), request.as_bytes()).await;
        let answer = client.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    setup.host.has(0, 0).await;
}

#[tokio::test]
async fn clients_with_nothing_to_say_are_let_go_and_make_room() {
    let limits = Limits { head: Duration::from_millis(200), connections: 1, ..limits() };
    let setup = Setup::new(&[route("all", "/", Service::echo().await)], limits, held()).await;
    let (mut silent, mut slow, mut next) = (setup.client().await, setup.client().await, setup.client().await);
    slow.send("GET / HTTP/1.1\r\nHost:").await;
    assert_eq!(next.get("/").await.status(), 200);
    assert_eq!(silent.rest().await, "");
    let answer = slow.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(next.rest().await, "");
}
