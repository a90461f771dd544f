//! When machines are held, and what clients are told when they are not.

use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::control::HostReply;
use tokio::sync::Notify;

use super::super::Limits;
use super::harness::*;

const SHORT: Duration = Duration::from_millis(200);

async fn hosted(limits: Limits, host: Answering) -> (Setup, Service) {
    let (service, port) = Service::new().await;
    (Setup::new(&[route("slack", "/", port)], limits, host).await, service)
}

const ASK: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

#[tokio::test]
async fn a_refusal_of_the_host_is_a_503_that_keeps_its_reason() {
    let refusal = HostReply::Error { message: "stopped by root on node7".to_owned() };
    let (setup, _service) = hosted(limits(), Box::new(move |_, _| Some(refusal.clone()))).await;
    let mut client = setup.client().await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")));
        let error = answer.error();
        assert!(error.contains("`slack`") && !error.contains("node7"), "{error}");
    }
    setup.host.has(2, 0).await;
    let lines = setup.log.lines(2).await;
    assert!(lines[0]["error"].as_str().unwrap().contains("stopped by root on node7"));
    assert_eq!((&lines[0]["status"], &lines[0]["route"]), (&503.into(), &"slack".into()));
}

#[tokio::test]
async fn a_host_that_takes_too_long_is_a_503() {
    let limits = Limits { hold: SHORT, ..limits() };
    let (setup, _service) = hosted(limits, Box::new(|_, _| None)).await;
    let answer = setup.client().await.get("/").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")));
    setup.host.has(1, 0).await;
}

#[tokio::test]
async fn an_answer_to_another_question_is_a_503() {
    let other = HostReply::WakeResult { success: true, detail: String::new() };
    let (setup, _service) = hosted(limits(), Box::new(move |_, _| Some(other.clone()))).await;
    assert_eq!(setup.client().await.get("/").await.status(), 503);
    setup.host.has(1, 0).await;
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_answer_is_begun_again() {
    let broken = HostReply::Error { message: "break".to_owned() };
    let host: Answering = Box::new(move |_, n| Some(if n < 2 { broken.clone() } else { granted() }));
    let (setup, service) = hosted(limits(), host).await;
    let mut client = setup.client().await;
    client.send(ASK).await;
    service.accept().await.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.message().await.status(), 200);
    setup.host.has(3, 0).await;
}

#[tokio::test]
async fn more_requests_than_streams_are_told_so_at_once() {
    let limits = Limits { holds: 2, ..limits() };
    let (setup, service) = hosted(limits, held()).await;
    let (mut one, mut two, mut three) = (setup.client().await, setup.client().await, setup.client().await);
    one.send(ASK).await;
    two.send(ASK).await;
    setup.host.has(2, 2).await;
    let answer = three.get("/").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
    assert!(answer.error().contains("`slack`"));
    for _ in 0..2 {
        service.accept().await.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    }
    assert_eq!((one.message().await.status(), two.message().await.status()), (200, 200));
    setup.host.has(2, 0).await;
    three.send(ASK).await;
    service.accept().await.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(three.message().await.status(), 200);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_hold_back() {
    // While the host has not answered,
    let (setup, _service) = hosted(limits(), Box::new(|_, _| None)).await;
    let mut client = setup.client().await;
    client.send(ASK).await;
    setup.host.has(1, 1).await;
    drop(client);
    setup.host.has(1, 0).await;
    assert_eq!(setup.log.lines(1).await[0]["status"], serde_json::Value::Null);

    // while it sends its request,
    let (setup, service) = hosted(limits(), held()).await;
    let mut client = setup.client().await;
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf").await;
    let mut machine = service.accept().await;
    machine.head().await;
    setup.host.has(1, 1).await;
    drop(client);
    setup.host.has(1, 0).await;
    assert_eq!(machine.rest().await, "half");

    // and while it is answered.
    let mut client = setup.client().await;
    client.send(ASK).await;
    let mut machine = service.accept().await;
    machine.message().await;
    machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
    client.head().await;
    setup.host.has(2, 1).await;
    drop(client);
    setup.host.has(2, 0).await;
    assert_eq!(machine.rest().await, "");
    let line = &setup.log.lines(2).await[1];
    assert_eq!((&line["aborted"], &line["bytes"]), (&true.into(), &1.into()));
}

#[tokio::test]
async fn a_service_that_is_not_there_or_speaks_no_http_is_a_502() {
    let limits = Limits { connect: SHORT, ..limits() };
    let (setup, service) = hosted(limits, held()).await;
    let mut client = setup.client().await;
    client.send(ASK).await;
    service.accept().await.send("220 mail.example.org\r\n").await;
    let answer = client.message().await;
    assert_eq!(answer.status(), 502);
    assert!(answer.error().contains("`slack`"));
    client.send(ASK).await;
    service.accept().await.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").await;
    assert_eq!(client.message().await.status(), 502);
    client.send(ASK).await;
    drop(service.accept().await);
    assert_eq!(client.message().await.status(), 502);
    drop(service);
    let answer = client.get("/").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (502, None));
    setup.host.has(4, 0).await;
}

#[tokio::test]
async fn silence_ends_a_request() {
    let limits = Limits { silence: SHORT, ..limits() };
    let (setup, service) = hosted(limits, held()).await;
    let mut client = setup.client().await;
    client.send(ASK).await;
    let _machine = service.accept().await;
    assert_eq!(client.message().await.status(), 504);
    client.send(ASK).await;
    let mut machine = service.accept().await;
    machine.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.rest().await, "half");
    setup.host.has(2, 0).await;
    let line = &setup.log.lines(2).await[1];
    assert_eq!(line["aborted"], true);
    assert!(line["error"].as_str().unwrap().contains("in time"));
}

#[tokio::test]
async fn at_the_end_requests_in_flight_are_finished_and_no_more_are_taken() {
    let (setup, service) = hosted(limits(), held()).await;
    let (mut busy, idle) = (setup.client().await, setup.client().await);
    busy.send(ASK).await;
    let mut machine = service.accept().await;
    let Setup { gateway, address, .. } = setup;
    let ended = Arc::new(Notify::new());
    let end = Arc::clone(&ended);
    tokio::spawn(async move {
        gateway.shutdown().await;
        end.notify_one();
    });
    let mut idle = idle;
    assert_eq!(idle.rest().await, "");
    assert!(Peer::connect(STRANGER, address, PORT).await.is_err());
    machine.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
    assert_eq!(busy.message().await.body, "done");
    soon(ended.notified()).await;
}

#[tokio::test]
async fn at_the_end_requests_that_do_not_finish_are_ended() {
    let limits = Limits { drain: SHORT, ..limits() };
    let (setup, _service) = hosted(limits, Box::new(|_, _| None)).await;
    let mut client = setup.client().await;
    client.send(ASK).await;
    setup.host.has(1, 1).await;
    soon(setup.gateway.shutdown()).await;
    setup.host.has(1, 0).await;
    assert_eq!(client.rest().await, "");
}
