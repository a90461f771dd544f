//! The limits of routes.

use std::time::Duration;

use mvm_protocol::control::HostReply;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use super::harness::*;

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_before_its_machine_is_woken_or_when_it_is_seen() {
    let (service, port) = Service::new().await;
    let setup = Setup::new(&[limited(port, json!({ "max_body_mib": 1 }))], limits(), held()).await;
    let mut client = setup.client().await;
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", (1 << 20) + 1)).await;
    let answer = client.message().await;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.error(), "route `all`: a request's body may have 1 MiB at most");
    setup.host.has(0, 0).await;
    // Who sends it all the same, and reads only then, sees why; and the connection is as good as before.
    client.send("x".repeat((1 << 20) + 1)).await;
    client.send("GET /.. HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.message().await.status(), 400);

    let mut client = setup.client().await;
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.head().await;
    let reading = tokio::spawn(async move { machine.rest().await });
    let chunk = format!("80000\r\n{}\r\n", "x".repeat(0x80000));
    client.send(chunk.repeat(2)).await;
    client.send("1\r\nx\r\n").await;
    assert_eq!(client.message().await.status(), 413);
    assert!(!reading.await.unwrap().ends_with("0\r\n\r\n"), "the machine must not take it for whole");
    setup.host.has(1, 0).await;

    // Exactly as much is taken.
    let mut client = setup.client().await;
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 1 << 20)).await;
    let mut machine = service.accept().await;
    client.send("x".repeat(1 << 20)).await;
    assert_eq!(machine.message().await.body.len(), 1 << 20);
}

#[tokio::test]
async fn a_request_has_its_time_and_its_silence() {
    let (service, port) = Service::new().await;
    for key in ["timeout_seconds", "idle_seconds"] {
        let setup = Setup::new(&[limited(port, json!({ key: 1 }))], limits(), held()).await;
        let mut client = setup.client().await;
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut machine = service.accept().await;
        machine.head().await;
        assert_eq!(client.message().await.status(), 504, "{key}");
        assert_eq!(machine.rest().await, "");

        // An answer that has begun: the time runs on, the silence begins anew with each byte.
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut machine = service.accept().await;
        machine.head().await;
        machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        assert_eq!(client.head().await.status(), 200);
        let mut came = 0;
        for _ in 0..3 {
            sleep(Duration::from_millis(600)).await;
            let sent = tokio::io::AsyncWriteExt::write_all(machine.0.get_mut(), b"1\r\nx\r\n").await;
            came += usize::from(sent.is_ok() && client.line().await == "1" && client.line().await == "x");
        }
        assert_eq!(came == 3, key == "idle_seconds", "{key}: {came} came");
        assert!(!client.rest().await.contains("0\r\n\r\n"));
    }
}

#[tokio::test]
async fn a_request_has_its_time_also_while_its_answer_comes_in_haste() {
    let (service, port) = Service::new().await;
    let setup = Setup::new(&[limited(port, json!({ "timeout_seconds": 1 }))], limits(), held()).await;
    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.head().await;
    machine.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await;
    let hasty = tokio::spawn(async move {
        let bytes = vec![b'x'; 1 << 16];
        while tokio::io::AsyncWriteExt::write_all(machine.0.get_mut(), &bytes).await.is_ok() {}
    });
    assert_eq!(client.head().await.status(), 200);
    let mut bytes = vec![0; 1 << 16];
    soon(async { while client.0.get_mut().read(&mut bytes).await.is_ok_and(|length| length > 0) {} }).await;
    setup.host.has(1, 0).await;
    soon(hasty).await.unwrap();
}

#[tokio::test]
async fn a_request_in_hand_is_held_anew_by_a_new_agent_in_the_same_run_only() {
    let (service, port) = Service::new().await;
    let refusal = HostReply::Error { message: "it has slept since".to_owned() };
    let host: Answering = Box::new(move |_, n| Some(if n == 3 { refusal.clone() } else { granted() }));
    let setup = Setup::new(&[route("all", "/", port)], limits(), host).await;
    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.head().await;
    setup.host.say(None);
    setup.host.has(2, 1).await;
    let asked = serde_json::to_value(&setup.host.seen().requests[1]).unwrap();
    assert_eq!(asked["Hold"]["instance_selector"], json!({ "by_instance": "i-0000002a" }));
    assert_eq!(asked["Hold"]["only_if_generation"], 7);
    // The same when its answer has begun.
    machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.chunk().await.as_deref(), Some("x"));
    setup.host.say(None);
    setup.host.has(3, 1).await;
    machine.send("1\r\ny\r\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("y"));
    setup.host.say(None);
    assert_eq!(client.rest().await, "");
    setup.host.has(4, 0).await;
}

#[tokio::test]
async fn a_wake_counts_into_the_time() {
    let setup =
        Setup::new(&[limited(1, json!({ "timeout_seconds": 1 }))], limits(), Box::new(|_, _| None)).await;
    let answer = setup.client().await.get("/").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")));
}

#[tokio::test]
async fn a_machine_that_goes_ends_its_requests_at_once() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.head().await;
    setup.host.say(Some(HostReply::Leaving));
    machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.chunk().await.as_deref(), Some("x"));
    setup.host.say(Some(HostReply::Gone));
    assert_eq!(client.rest().await, "");
    let lines = setup.log.lines(1).await;
    assert!(lines[0]["error"].as_str().unwrap().contains("does not run"), "{}", lines[0]);

    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.head().await;
    setup.host.say(Some(HostReply::Gone));
    assert_eq!(client.message().await.status(), 502);
}
