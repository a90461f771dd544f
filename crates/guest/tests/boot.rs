//! The guest in a real machine, seen from its control channel.
#![allow(clippy::unwrap_used, reason = "what a test cannot do is a failed test")]

/// Starts a machine, or says why not and ends the test.
macro_rules! start {
    () => {
        start!(SERVICES)
    };
    ($services:expr) => {
        match image::Image::make($services) {
            Ok(image) => Vm::start(image),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return;
            }
        }
    };
}

#[path = "boot/image.rs"]
mod image;
#[path = "boot/prewarm.rs"]
mod prewarm;
#[path = "boot/vm.rs"]
mod vm;

use std::collections::BTreeMap;

use mvm_protocol::SecretBytes;
use mvm_protocol::control::{GuestReply, GuestRequest, HostReply, HostRequest, Phase};
use mvm_protocol::record::{self, Record};
use mvm_protocol::{Port, frame, mux};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vm::{Session, Vm, ask};

const SERVICES: &str = include_str!("boot/services.json");

fn update(token: &str) -> GuestRequest {
    let config = BTreeMap::from([("config.json".to_owned(), CONFIG.to_owned())]);
    let keys = BTreeMap::from([("TOKEN".to_owned(), SecretBytes::new(token.as_bytes().to_vec()))]);
    let secrets = BTreeMap::from([("web".to_owned(), keys)]);
    GuestRequest::Update { config: Some(config), secrets: Some(secrets) }
}

const CONFIG: &str = r#"{"instance_id":"i-0000002a","pool_id":"workers","tenant_id":"alice","role":"worker",
"guest_ip":"10.240.7.3","vcpus":1,"mem_mib":256,"min_runtime_policy":
{"min_running_seconds":60,"min_warm_seconds":30,"drain_timeout_seconds":30,"graceful_shutdown_seconds":15},"integrations":[]}"#;

fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

fn is_error(reply: &GuestReply) -> bool {
    matches!(reply, GuestReply::Error { .. })
}

async fn wake(session: &Session, generation: u64) {
    let reply = session.ask(GuestRequest::Wake { generation, cancelled: None }).await;
    assert_eq!(reply, GuestReply::WakeAck { success: true, detail: String::new() });
}

#[tokio::test]
async fn a_machine_from_hello_to_power_off() {
    let mut vm = start!();
    let session = vm.session().await;
    let GuestReply::Hello { phase, generation, instance_id, .. } = session.hello().await else { panic!() };
    assert_eq!((phase, generation, instance_id), (Phase::Booted, 0, None));
    nothing_is_there_before_personalize(&session).await;

    let reply = session.personalize(5).await;
    assert_eq!(
        reply,
        GuestReply::Personalized { generation: 5, seed_credited: true, identity_applied: true }
    );
    the_identity_is_applied(&session).await;
    for generation in [0, 4, 5] {
        assert!(is_error(&session.personalize(generation).await), "generation {generation}");
    }

    assert_eq!(session.ask(update("first")).await, GuestReply::Updated);
    assert!(is_error(&session.ask(GuestRequest::Wake { generation: 4, cancelled: None }).await));
    wake(&session, 5).await;
    config_and_secrets_are_in_place(&session).await;
    services_run_and_are_started_again(&session).await;
    sleep_and_wake(&session).await;

    assert_eq!(session.ask(GuestRequest::Shutdown { grace_secs: 5 }).await, GuestReply::ShuttingDown);
    vm.ended().await;
    assert!(!vm.console().contains("panic"), "{}", vm.console());
}

async fn nothing_is_there_before_personalize(session: &Session) {
    assert!(is_error(&session.ask(update("early")).await));
    assert!(is_error(&session.ask(GuestRequest::Wake { generation: 0, cancelled: None }).await));
    assert_eq!(session.sh("grep -c /data /proc/mounts; cat /etc/machine-id; ls /run/secrets").await.0, "0");
    assert_eq!(session.sh("ip -4 addr show | grep -c inet").await.0, "1");
    assert_eq!(session.sh("ps -o comm | grep -c -e httpd -e '^sleep'").await.0, "0");
}

async fn the_identity_is_applied(session: &Session) {
    assert_eq!(
        session.sh("hostname; cat /etc/machine-id").await.0,
        "alice-workers-2a\n0123456789abcdef0123456789abcdef"
    );
    let (addresses, _) = session.sh("ip addr show eth0; ip route").await;
    for expected in ["02:6d:00:07:00:03", "10.240.7.3/24", "default via 10.240.7.1"] {
        assert!(addresses.contains(expected), "{expected} is not in {addresses}");
    }
    assert!(!addresses.contains("inet6"), "{addresses}");
    assert_eq!(session.sh("cat /etc/resolv.conf").await.0, "nameserver 10.240.7.1");
    let now: u64 = session.sh("date +%s").await.0.parse().unwrap();
    assert!((vm::CLOCK_SECONDS..vm::CLOCK_SECONDS + 600).contains(&now), "{now}");
    assert_eq!(session.sh("stat -c '%u %a' /data/home/web").await.0, "2001 700");
    assert_eq!(session.sh("grep -c boot_id /proc/mounts").await.0, "1");
    assert_eq!(
        session.sh("/run/mvm/mvm-guest --version").await.0,
        format!("mvm-guest {}", env!("CARGO_PKG_VERSION"))
    );
}

async fn config_and_secrets_are_in_place(session: &Session) {
    assert_eq!(session.sh("cat /etc/mvm-config/config.json").await.0, CONFIG);
    assert_eq!(session.sh("stat -c '%F %u %a' /run/secrets/web/TOKEN").await.0, "regular file 2001 400");
    let read_as = |user| {
        session.exec(["/bin/cat", "/run/secrets/web/TOKEN"].map(str::to_owned).to_vec(), Some(user), &[])
    };
    assert_eq!(read_as("web").await.0, b"first");
    assert_ne!(read_as("other").await.2, 0);
    let (options, _) = session.sh("grep /run/mvm/drives /proc/mounts").await;
    assert!(["noexec", "nodev", "nosuid"].iter().all(|option| options.contains(option)), "{options}");
    let GuestRequest::Update { secrets, .. } = update("second") else { panic!() };
    assert_eq!(session.ask(GuestRequest::Update { config: None, secrets }).await, GuestReply::Updated);
    assert_eq!(session.sh("cat /run/secrets/web/TOKEN").await.0, "second");
    assert_eq!(session.sh("cat /etc/mvm-config/config.json").await.0, CONFIG);
}

async fn services_run_and_are_started_again(session: &Session) {
    let mut stream = session.open().await;
    let logs = GuestRequest::Logs {
        service: Some("prepare".to_owned()),
        follow: false,
        since_ms: None,
        tail: None,
        after: Default::default(),
    };
    assert_eq!(ask(&mut stream, &logs).await, GuestReply::Started);
    let place = record::read(&mut stream).await.unwrap().unwrap();
    assert!(matches!(place, Record::Stderr(_)), "{place:?}");
    let log = record::read(&mut stream).await.unwrap().unwrap();
    assert_eq!(log, Record::Stdout(b"prepared by 2001 with first\n".to_vec()));
    let (pid, _) = session.sh("pidof httpd").await;
    session.sh(&format!("kill -9 {pid}")).await;
    wake(session, 5).await;
    assert_ne!(session.sh("pidof httpd").await.0, pid);
}

async fn sleep_and_wake(session: &Session) {
    let (pid, _) = session.sh("pidof httpd").await;
    let prepared = session.ask(GuestRequest::SleepPrep { drain_timeout_secs: 5 }).await;
    assert!(matches!(prepared, GuestReply::SleepPrepAck { success: true, .. }), "{prepared:?}");
    let back = session.ask(GuestRequest::Wake { generation: 5, cancelled: Some(true) }).await;
    assert!(matches!(back, GuestReply::WakeAck { success: true, .. }));
    let neighbour = "grep -c 10.240.7.9 /proc/net/arp";
    assert_eq!(session.sh(&format!("arp -s 10.240.7.9 02:6d:00:07:00:09; {neighbour}")).await.0, "1");
    assert!(matches!(session.personalize(6).await, GuestReply::Personalized { generation: 6, .. }));
    // An address has the same Ethernet address for good.
    assert_eq!(session.sh(neighbour).await.0, "1");
    wake(session, 6).await;
    assert_eq!(session.sh("pidof httpd").await.0, pid);
    let adjusted = session.ask(GuestRequest::AdjustClock { clock: clock_in(vm::CLOCK_SECONDS) }).await;
    assert!(
        matches!(adjusted, GuestReply::ClockAdjusted { offset_micros } if offset_micros >= 0),
        "{adjusted:?}"
    );
    // So far behind it is set at once.
    let now = async || session.sh("date +%s").await.0.parse::<u64>().unwrap();
    let ahead = now().await + 20;
    session.ask(GuestRequest::AdjustClock { clock: clock_in(ahead) }).await;
    assert!(now().await >= ahead);
}

fn clock_in(seconds: u64) -> mvm_protocol::control::Clock {
    mvm_protocol::control::Clock { unix_nanos: seconds * 1_000_000_000 }
}

#[tokio::test]
async fn programs_run_with_streams_and_codes() {
    let vm = start!();
    let session = vm.session().await;
    let (stdout, stderr, exit) = session.exec(sh("cat; echo bad >&2; exit 3"), None, b"hello").await;
    assert_eq!((stdout.as_slice(), stderr.as_slice(), exit), (&b"hello"[..], &b"bad\n"[..], 3));
    assert_eq!(session.sh("kill -9 $$").await.1, 137);
    assert_eq!(session.exec(sh("id -u"), Some("web"), &[]).await.0, b"2001\n");
    let input = vec![b'x'; 3_000_000];
    assert_eq!(session.exec(sh("cat"), None, &input).await.0, input);
    let big = "dd if=/dev/zero bs=1M count=24 2>/dev/null";
    let (large, ping) = tokio::join!(session.exec(sh(big), None, &[]), session.ask(GuestRequest::Ping));
    assert_eq!((large.0.len(), large.2, ping), (24 << 20, 0, GuestReply::Pong));
    let nobody = GuestRequest::Exec {
        command: sh("true"),
        environment: BTreeMap::new(),
        user: Some("eve".to_owned()),
        terminal: None,
    };
    assert!(is_error(&session.ask(nobody).await));

    let mut dropped = session.open().await;
    let endless = GuestRequest::Exec {
        command: sh("exec sleep 4242"),
        environment: BTreeMap::new(),
        user: None,
        terminal: None,
    };
    assert_eq!(ask(&mut dropped, &endless).await, GuestReply::Started);
    assert_eq!(session.sh("ps -o args | grep -c '^sleep 4242'").await.0, "1");
    // More input than the program, which reads none, and the pipe take.
    record::write(&mut dropped, &Record::Stdin(vec![0; 200_000])).await.unwrap();
    drop(dropped);
    while session.sh("ps -o args | grep -c '^sleep 4242'").await.0 != "0" {}
}

#[tokio::test]
async fn bad_frames_and_bad_sessions_harm_nobody_else() {
    let vm = start!();
    let session = vm.session().await;
    let mut stream = session.open().await;
    frame::write(&mut stream, &"Dance").await.unwrap();
    assert!(is_error(&frame::read(&mut stream).await.unwrap().unwrap()));
    assert_eq!(ask(&mut stream, &GuestRequest::Ping).await, GuestReply::Pong);
    for bad in [&[0xff; 8][..], b"\0\0\0\x02{]"] {
        let mut stream = session.open().await;
        stream.write_all(bad).await.unwrap();
        let mut rest = Vec::new();
        assert!(matches!(stream.read_to_end(&mut rest).await, Ok(0) | Err(_)), "{rest:?}");
    }
    let mut held = Vec::new();
    while held.len() < mvm_protocol::MAX_STREAMS - 1 {
        let mut stream = session.open().await;
        assert_eq!(ask(&mut stream, &GuestRequest::Ping).await, GuestReply::Pong);
        held.push(stream);
    }
    assert!(is_error(&frame::read(&mut session.open().await).await.unwrap().unwrap()), "one too many");
    drop(held);
    let mut left = session.open().await;
    let endless = GuestRequest::Exec {
        command: sh("exec sleep 4242"),
        environment: BTreeMap::new(),
        user: None,
        terminal: None,
    };
    drop(stream);
    assert_eq!(ask(&mut left, &endless).await, GuestReply::Started);
    drop((session, left));

    // A session that ends in the middle of a frame, then one over the same connection as garbage.
    let mut channel = vm.connect().await;
    mvm_protocol::session::begin(&mut channel).await.unwrap();
    channel.write_all(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0x20, 0, 1, 2, 3]).await.unwrap();
    channel.flush().await.unwrap();
    let session = Session::over(channel).await;
    assert!(matches!(session.hello().await, GuestReply::Hello { .. }));
    drop(session);
    let mut channel = vm.connect().await;
    channel.write_all(b"garbage below the streams").await.unwrap();
    let session = Session::over(channel).await;
    assert!(matches!(session.hello().await, GuestReply::Hello { .. }));
    while session.sh("ps -o args | grep -c '^sleep 4242'").await.0 != "0" {}
}

#[tokio::test]
async fn a_service_that_is_never_ready_is_named_with_its_last_words() {
    let vm = start!(
        r#"{"users": [], "services": [{"name": "broken", "command": ["/bin/sh", "-c", "echo no such file; exit 7"],
        "ready": {"tcp": {"port": 9}, "timeout_seconds": 1}}]}"#
    );
    let session = vm.session().await;
    assert!(matches!(session.personalize(1).await, GuestReply::Personalized { .. }));
    let reply = session.ask(GuestRequest::Wake { generation: 1, cancelled: None }).await;
    let GuestReply::WakeAck { success: false, detail } = reply else { panic!("{reply:?}") };
    for expected in ["`broken`", "no such file", "code 7"] {
        assert!(detail.contains(expected), "{detail}");
    }
}

#[tokio::test]
async fn a_gateway_machine_asks_the_host_through_its_socket() {
    let vm = start!(r#"{"users": [], "services": []}"#);
    let mut session = vm.session().await;
    assert!(matches!(session.personalize(1).await, GuestReply::Personalized { .. }));
    let config = BTreeMap::from([
        ("config.json".to_owned(), CONFIG.replace("\"worker\"", "\"gateway\"")),
        ("routes.json".to_owned(), ROUTES.to_owned()),
    ]);
    assert_eq!(
        session.ask(GuestRequest::Update { config: Some(config), secrets: None }).await,
        GuestReply::Updated
    );
    wake(&session, 1).await;
    assert_eq!(session.sh("stat -c '%u %a' /run/mvm/host.sock").await.0, "0 600");
    let mut incoming = session.incoming.take().unwrap();
    let sender = async {
        let mut stream = session.open().await;
        let command = ["/bin/nc", "127.0.0.1", "8080"].map(str::to_owned).to_vec();
        let request =
            GuestRequest::Exec { command, environment: BTreeMap::new(), user: None, terminal: None };
        assert_eq!(ask(&mut stream, &request).await, GuestReply::Started);
        // No Eof: a sender that went away would not be answered.
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec();
        record::write(&mut stream, &Record::Stdin(head)).await.unwrap();
        record::read(&mut stream).await.unwrap()
    };
    let host = async {
        let mut stream = incoming.accept().await.unwrap();
        assert_eq!(mux::read_port(&mut stream).await.unwrap(), Some(Port::Host));
        let hold: HostRequest = frame::read(&mut stream).await.unwrap().unwrap();
        assert!(matches!(hold, HostRequest::Hold { .. }), "{hold:?}");
        let refused = HostReply::Error { message: "a person stopped it".to_owned() };
        frame::write(&mut stream, &refused).await.unwrap();
    };
    let (answer, ()) = tokio::join!(sender, host);
    let Some(Record::Stdout(answer)) = answer else { panic!("{answer:?}") };
    assert!(answer.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&answer));
}

const ROUTES: &str = r#"{"routes": [{"name": "all", "match_rule": {"port": 8080},
"target": {"pool_id": "workers", "instance_selector": "any", "target_port": 8080}}]}"#;
