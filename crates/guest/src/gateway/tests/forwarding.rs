//! Requests and answers on their way.

use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpSocket;
use tokio::time::sleep;

use super::harness::*;

#[tokio::test]
async fn each_request_of_a_connection_goes_its_own_way_with_its_own_hold() {
    let (one, two) = (Service::echo().await, Service::echo().await);
    let routes = [route("one", "/one", one), route("two", "/two", two)];
    let setup = Setup::new(&routes, limits(), held()).await;
    let mut client = setup.client().await;
    for path in ["/one/a?x=y", "/two", "/one"] {
        let answer = client.get(path).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.body.starts_with(&format!("GET {path} HTTP/1.1\n")), "{}", answer.body);
        assert!(answer.body.contains("\nhost: example.org\n"));
        assert!(answer.body.contains(&format!("\nx-forwarded-for: {STRANGER}\n")));
        assert_eq!(answer.header("server"), Some("echo"));
        assert_eq!(answer.header("connection"), None);
    }
    setup.host.has(3, 0).await;
    assert_eq!(setup.host.seen().pools(), ["one", "two", "one"]);
}

#[tokio::test]
async fn an_answer_streams_and_holds_its_machine_to_the_last_byte() {
    let (service, port) = Service::new().await;
    let routes = [route("events", "/events", port), route("other", "/other", Service::echo().await)];
    let setup = Setup::new(&routes, limits(), held()).await;
    let mut client = setup.client().await;
    client.send("GET /events HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut machine = service.accept().await;
    machine.message().await;
    machine.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.chunk().await.as_deref(), Some("first"));
    // A later request comes and goes; the first one still holds.
    assert_eq!(setup.client().await.get("/other").await.status(), 200);
    setup.host.ended(1).await;
    assert_eq!(setup.host.seen().ended, [1]);
    machine.send("4\r\nlast\r\n0\r\n\r\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("last"));
    assert_eq!(client.chunk().await, None);
    setup.host.has(2, 0).await;
}

#[tokio::test]
async fn a_request_streams_whatever_its_method() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    for method in ["POST", "GET"] {
        let mut client = setup.client().await;
        let head = format!("{method} / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(head + "5\r\nfirst\r\n").await;
        let mut machine = service.accept().await;
        assert_eq!(machine.head().await.header("transfer-encoding"), Some("chunked"));
        assert_eq!(machine.chunk().await.as_deref(), Some("first"));
        client.send("4\r\nlast\r\n0\r\n\r\n").await;
        assert_eq!(machine.chunk().await.as_deref(), Some("last"));
        assert_eq!(machine.chunk().await, None);
        machine.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(client.message().await.status(), 204);
    }
}

#[tokio::test]
async fn lengths_and_empty_bodies_stay_what_they_are() {
    let setup = Setup::to(Service::echo().await).await;
    let mut client = setup.client().await;
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello").await;
    let answer = client.message().await;
    assert!(answer.body.contains("\ncontent-length: 5\n") && answer.body.ends_with("\n\nhello"));
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await;
    assert!(client.message().await.body.contains("\ncontent-length: 0\n"));
    let answer = client.get("/").await;
    assert!(!answer.body.contains("content-length") && !answer.body.contains("transfer-encoding"));
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.header("server")), (200, Some("echo")));
    assert_ne!(head.header("content-length").unwrap(), "0");
    assert_eq!(client.get("/again").await.status(), 200);
    setup.host.has(5, 0).await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (service, port) = Service::new().await;
    let setup = Setup::to(port).await;
    let mut client = setup.client().await;
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTrailer: x-sum\r\n";
    client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n")).await;
    let mut machine = service.accept().await;
    assert_eq!(machine.head().await.header("te"), Some("trailers"));
    let mut rest = Vec::new();
    for _ in 0..5 {
        rest.push(machine.line().await);
    }
    assert_eq!(rest, ["1", "a", "0", "x-sum: 1", ""]);
    let head = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    machine.send(format!("{head}1\r\nb\r\n0\r\nx-sum: 2\r\n\r\n")).await;
    assert_eq!(client.head().await.header("trailer"), Some("x-sum"));
    let mut rest = Vec::new();
    for _ in 0..5 {
        rest.push(client.line().await);
    }
    assert_eq!(rest, ["1", "b", "0", "x-sum: 2", ""]);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_its_body_gets_it() {
    let setup = Setup::to(Service::echo().await).await;
    let mut client = setup.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 100);
    client.send("ok").await;
    let answer = client.message().await;
    assert!(answer.body.ends_with("\n\nok") && !answer.body.contains("expect"), "{}", answer.body);
}

#[tokio::test]
async fn old_clients_are_understood() {
    let setup = Setup::to(Service::echo().await).await;
    let mut client = setup.client().await;
    client.send("GET /old HTTP/1.0\r\n\r\n").await;
    let answer = client.message().await;
    assert_eq!(answer.status(), 200);
    assert!(answer.body.starts_with("GET /old HTTP/1.1\n") && answer.body.contains("\nhost: 127.0.0.1:"));
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn fifty_at_once_get_fifty_answers() {
    let setup = Setup::to(Service::echo().await).await;
    let asks = (0..50).map(|n| {
        let setup = &setup;
        async move {
            let mut client = setup.client().await;
            for round in 0..2 {
                let path = format!("/{n}/{round}");
                let answer = client.get(&path).await;
                assert!(answer.body.starts_with(&format!("GET {path} ")), "{answer:?}");
            }
        }
    });
    join_all(asks).await;
    setup.host.has(100, 0).await;
    let lines = setup.log.lines(100).await;
    assert!(lines.iter().all(|line| line["status"] == 200 && line.get("aborted").is_none()));
}

#[tokio::test]
async fn a_service_that_comes_up_only_now_is_waited_for() {
    // Bound and not listening: nobody else gets the port, and connections are refused.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((MACHINE, 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let setup = Setup::to(port).await;
    let mut client = setup.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    setup.host.has(1, 1).await;
    // Time for a few tries to be refused.
    sleep(Duration::from_millis(100)).await;
    let service = Service(socket.listen(1).unwrap());
    let mut machine = service.accept().await;
    machine.message().await;
    machine.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup").await;
    assert_eq!(client.message().await.body, "up");
}
