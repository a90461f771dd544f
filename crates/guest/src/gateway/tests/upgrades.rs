//! Connections that switch protocols: their bytes, their Hold, and how they end.

use std::time::Duration;

use mvm_protocol::control::HostReply;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::super::Limits;
use super::harness::*;

/// What a machine says first: a frame of WebSocket.
const GREETING: &[u8] = b"\x81\x03hey";

/// A client and a machine that have gone over to `protocol` on a route with these limits.
async fn switched(protocol: &str, limits: serde_json::Value) -> (Setup, Peer, Peer, Service) {
    let (service, port) = Service::new().await;
    let setup = Setup::new(&[limited(port, limits)], super::harness::limits(), held()).await;
    let (client, machine) = switch(&setup, &service, protocol).await;
    (setup, client, machine, service)
}

async fn switch(setup: &Setup, service: &Service, protocol: &str) -> (Peer, Peer) {
    let mut client = setup.client().await;
    let head = format!(
        "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n"
    );
    // What is sent ahead belongs to the other protocol.
    client.send(head + "Sec-WebSocket-Key: k\r\n\r\nearly").await;
    let mut machine = service.accept().await;
    let asked = machine.head().await;
    assert_eq!(asked.header("upgrade"), Some(protocol.to_lowercase().as_str()));
    assert_eq!((asked.header("connection"), asked.header("sec-websocket-key")), (Some("upgrade"), Some("k")));
    let answer =
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n");
    machine.send([(answer + "Sec-WebSocket-Accept: a\r\n\r\n").as_bytes(), GREETING].concat()).await;
    let answer = client.head().await;
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.header("connection"), Some("upgrade"));
    assert_eq!(answer.header("upgrade"), Some(protocol.to_lowercase().as_str()));
    assert_eq!(answer.header("sec-websocket-accept"), Some("a"));
    assert_eq!(exactly(&mut client, 5).await, GREETING);
    assert_eq!(exactly(&mut machine, 5).await, b"early");
    (client, machine)
}

async fn exactly(peer: &mut Peer, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    soon(peer.0.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// All that comes until the connection ends.
async fn rest(peer: &mut Peer) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = soon(peer.0.read_to_end(&mut rest)).await;
    rest
}

/// The frame that closes with this code.
#[track_caller]
fn assert_closes(bytes: &[u8], code: u16) {
    assert_eq!((bytes[0], usize::from(bytes[1])), (0x88, bytes.len() - 2), "{bytes:?}");
    assert_eq!(bytes[2..4], code.to_be_bytes());
}

#[tokio::test]
async fn bytes_pass_both_ways_until_both_sides_have_said_all() {
    let (setup, mut client, mut machine, _service) = switched("echo/1", json!({})).await;
    for round in 0..3 {
        client.send(format!("ask {round}")).await;
        assert_eq!(exactly(&mut machine, 5).await, format!("ask {round}").as_bytes());
        machine.send("told").await;
        assert_eq!(exactly(&mut client, 4).await, b"told");
    }
    setup.host.has(1, 1).await;
    client.0.get_mut().shutdown().await.unwrap();
    assert_eq!(rest(&mut machine).await, b"");
    machine.send("last").await;
    drop(machine);
    assert_eq!(rest(&mut client).await, b"last");
    setup.host.has(1, 0).await;
    let line = &setup.log.lines(1).await[0];
    assert_eq!((&line["status"], &line["bytes"], &line["path"]), (&json!(101), &json!(21), &json!("/chat")));
    assert!(line.get("aborted").is_none() && line.get("error").is_none(), "{line}");
}

#[tokio::test]
async fn an_idle_connection_lets_its_machine_go_and_takes_it_again_when_it_speaks() {
    let (setup, mut client, mut machine, _service) =
        switched("websocket", json!({ "idle_seconds": 1 })).await;
    setup.host.was_told(&[false]).await;
    client.send("\u{1}\0").await;
    assert_eq!(exactly(&mut machine, 2).await, b"\x01\0");
    setup.host.was_told(&[false, true]).await;
    setup.host.was_told(&[false, true, false]).await;
    machine.send("\u{1}\0").await;
    assert_eq!(exactly(&mut client, 2).await, b"\x01\0");
    setup.host.was_told(&[false, true, false, true]).await;
    setup.host.has(1, 1).await;
}

#[tokio::test]
async fn a_machine_that_leaves_closes_its_client_between_two_frames() {
    let (setup, mut client, mut machine, _service) = switched("websocket", json!({})).await;
    machine.send(b"\x82\x04ab").await;
    exactly(&mut client, 4).await;
    setup.host.say(Some(HostReply::Leaving));
    // Longer than nothing has to move.
    sleep(Duration::from_millis(1500)).await;
    machine.send("cd").await;
    assert_eq!(exactly(&mut client, 2).await, b"cd");
    assert_closes(&rest(&mut client).await, 1012);
    assert_eq!(rest(&mut machine).await, b"");
    setup.host.has(1, 0).await;
    let line = &setup.log.lines(1).await[0];
    assert!(line["error"].as_str().unwrap().contains("does not run") && line.get("aborted").is_none());
}

#[tokio::test]
async fn a_machine_that_has_gone_says_its_last_words() {
    let (setup, mut client, mut machine, service) = switched("websocket", json!({})).await;
    machine.send(b"\x82\x02no").await;
    setup.host.say(Some(HostReply::Gone));
    let all = rest(&mut client).await;
    assert_eq!(&all[..4], b"\x82\x02no");
    assert_closes(&all[4..], 1012);

    // In the middle of a frame nothing can be said, and in another protocol never.
    for (protocol, words) in [("websocket", b"\x81\x05ha"), ("other", b"\x81\x02ha")] {
        let (mut client, mut machine) = switch(&setup, &service, protocol).await;
        machine.send(words).await;
        setup.host.say(Some(HostReply::Gone));
        assert_eq!(rest(&mut client).await, words);
    }
}

#[tokio::test]
async fn a_service_that_ends_without_a_word_is_excused() {
    let (setup, mut client, machine, service) = switched("websocket", json!({})).await;
    drop(machine);
    assert_closes(&rest(&mut client).await, 1012);
    // One that has said it is not.
    let (mut client, mut machine) = switch(&setup, &service, "websocket").await;
    machine.send(b"\x88\x02\x03\xe8").await;
    drop(machine);
    assert_closes(&rest(&mut client).await, 1000);
}

#[tokio::test]
async fn a_new_agent_is_asked_for_the_same_machine() {
    let (setup, mut client, mut machine, _service) = switched("websocket", json!({})).await;
    setup.host.say(None);
    setup.host.has(2, 1).await;
    let asked = serde_json::to_value(&setup.host.seen().requests[1]).unwrap();
    assert_eq!(asked["Hold"]["instance_selector"], json!({ "by_instance": "i-0000002a" }));
    assert_eq!(asked["Hold"]["only_if_generation"], 7, "nobody is woken for it");
    client.send("still").await;
    assert_eq!(exactly(&mut machine, 5).await, b"still");
}

#[tokio::test]
async fn the_gateways_end_closes_its_clients() {
    let (setup, mut client, mut machine, _service) = switched("websocket", json!({})).await;
    let stopped = tokio::spawn(setup.gateway.shutdown());
    assert_closes(&rest(&mut client).await, 1001);
    drop(client);
    soon(stopped).await.unwrap();
    assert_eq!(rest(&mut machine).await, b"");
}

#[tokio::test]
async fn a_machine_may_decline_and_switches_only_to_what_was_asked_for() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let mut client = setup.client().await;
    let ask = "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.send(ask).await;
    let mut machine = service.accept().await;
    machine.head().await;
    machine.send("HTTP/1.1 426 Upgrade Required\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = client.message().await;
    assert_eq!((answer.status(), answer.body.as_str(), answer.header("upgrade")), (426, "no", None));

    client.send(ask).await;
    let mut machine = service.accept().await;
    machine.head().await;
    machine.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n").await;
    assert_eq!(client.message().await.status(), 502);
    setup.host.has(2, 0).await;

    // HTTP/2 is spoken with those who begin with it: to ask for it is answered in HTTP/1.1.
    client.send(ask.replace("websocket", "h2c")).await;
    let mut machine = service.accept().await;
    assert_eq!(machine.head().await.header("upgrade"), None);
}

#[tokio::test]
async fn a_tunnel_keeps_its_place_among_connections_and_requests() {
    let (service, port) = Service::new().await;
    let limits = Limits { connections: 1, holds: 1, ..limits() };
    let setup = Setup::new(&[route("all", "/", port)], limits, held()).await;
    let (client, machine) = switch(&setup, &service, "echo/1").await;
    let mut next = setup.client().await;
    next.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(timeout(Duration::from_millis(300), service.0.accept()).await.is_err());
    drop((client, machine));
    service.accept().await.head().await;
}
