//! The gateway as a service: routes that change, signals, the access log.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;
use tokio::time::sleep;

use super::super::{Gateway, GatewayError, run};
use super::harness::*;

fn table(routes: &[serde_json::Value]) -> String {
    json!({ "routes": routes }).to_string()
}

#[tokio::test]
async fn new_routes_open_and_close_ports_and_leave_requests_alone() {
    let (service, port) = Service::new().await;
    let mut setup = Setup::to(port).await;
    let mut old = setup.client().await;
    old.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
    old.head().await;

    let mut moved = route("moved", "/", Service::echo().await);
    moved["match_rule"]["port"] = json!(PORT + 1);
    setup.write_routes(&table(&[moved]));
    setup.gateway.reload().await.unwrap();
    assert!(Peer::connect(STRANGER, setup.address, PORT).await.is_err());
    let mut new = Peer::connect(STRANGER, setup.address, PORT + 1).await.unwrap();
    assert_eq!(new.get("/").await.status(), 200);
    assert_eq!(setup.host.seen().pools(), ["all", "moved"]);

    machine.send("half").await;
    let mut rest = [0; 8];
    soon(tokio::io::AsyncReadExt::read_exact(&mut old.0, &mut rest)).await.unwrap();
    assert_eq!(&rest, b"halfhalf");
    assert_eq!(old.get("/").await.status(), 404);

    setup.write_routes(&table(&[route("back", "/", Service::echo().await)]));
    setup.gateway.reload().await.unwrap();
    assert_eq!(old.get("/").await.status(), 200);
    assert_eq!(setup.client().await.get("/").await.status(), 200);
}

#[tokio::test]
async fn routes_that_cannot_be_used_change_nothing() {
    let port = Service::echo().await;
    let mut setup = Setup::to(port).await;
    let taken = tokio::net::TcpListener::bind((setup.address, PORT + 1)).await.unwrap();
    let mut other = route("other", "/", port);
    other["match_rule"]["port"] = json!(PORT + 1);
    let (ambiguous, in_use) = (table(&[route("a", "/", 1), route("b", "/", 1)]), table(&[other]));
    for (text, expected) in
        [("{", "routing table"), ("{}", "routing table"), (&ambiguous, "`a` and `b`"), (&in_use, "port 8081")]
    {
        setup.write_routes(text);
        let error = setup.gateway.reload().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(setup.client().await.get("/").await.status(), 200);
    }
    drop(taken);
    setup.gateway.reload().await.unwrap();
    assert!(Peer::connect(STRANGER, setup.address, PORT).await.is_err());
}

#[tokio::test]
async fn a_route_without_a_port_is_served_on_all_of_them() {
    let mut everywhere = route("everywhere", "/all", Service::echo().await);
    everywhere["match_rule"].as_object_mut().unwrap().remove("port");
    let mut there = route("there", "/there", 1);
    there["match_rule"]["port"] = json!(PORT + 1);
    let setup = Setup::new(&[everywhere, there, route("here", "/here", 1)], limits(), held()).await;
    for port in [PORT, PORT + 1] {
        let mut client = Peer::connect(STRANGER, setup.address, port).await.unwrap();
        assert_eq!(client.get("/all/x").await.status(), 200);
        assert_eq!(client.get("/").await.status(), 404);
    }
}

#[tokio::test]
async fn the_access_log_says_what_became_of_each_request() {
    let setup = Setup::to(Service::echo().await).await;
    let mut client = setup.client().await;
    let answer = client.get("/a/b?token=secret").await;
    assert_eq!(client.get("/%2e").await.status(), 400);
    let lines = setup.log.lines(2).await;
    let line = &lines[0];
    for (key, value) in [
        ("route", json!("all")),
        ("instance", json!("i-0000002a")),
        ("method", json!("GET")),
        ("path", json!("/a/b")),
        ("source", json!(STRANGER.to_string())),
        ("status", json!(200)),
        ("bytes", json!(answer.body.len())),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert!(line["hold_ms"].is_u64() && line["total_ms"].is_u64() && line["unix_ms"].is_u64());
    assert!(line.get("error").is_none() && line.get("aborted").is_none(), "{line}");
    assert!(lines[1]["hold_ms"].is_null() && lines[1]["error"].is_string());
}

#[tokio::test]
async fn routes_are_needed_in_a_readable_form_only() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, limits());
    let start = || Gateway::start(config.clone(), super::super::AccessLog::to(std::io::sink()).0);
    assert!(start().await.is_ok());
    std::fs::write(&config.routes, "[]").unwrap();
    assert!(matches!(start().await, Err(GatewayError::Table { .. })));
}

async fn until(is_so: impl Fn() -> bool) {
    soon(async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The only test that sends signals: they are for the whole process, and only `run` listens to them.
#[tokio::test]
async fn signals_read_the_routes_again_and_end_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, limits());
    std::fs::write(&config.routes, table(&[route("all", "/", 1)])).unwrap();
    let (address, ready) = (config.listen, config.ready.clone());
    let routes = config.routes.clone();
    let service = std::thread::spawn(move || run(config));
    until(|| Path::exists(&ready)).await;
    let mut client = Peer::connect(STRANGER, address, PORT).await.unwrap();
    assert_eq!(client.get("/..").await.status(), 400);

    let mut moved = route("moved", "/", 1);
    moved["match_rule"]["port"] = json!(PORT + 1);
    std::fs::write(&routes, table(&[moved])).unwrap();
    kill_process(getpid(), Signal::HUP).unwrap();
    soon(async {
        while Peer::connect(STRANGER, address, PORT + 1).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(client.get("/").await.status(), 404);

    kill_process(getpid(), Signal::TERM).unwrap();
    assert_eq!(client.rest().await, "");
    until(|| service.is_finished()).await;
    service.join().unwrap().unwrap();
    assert!(!ready.exists());
}
