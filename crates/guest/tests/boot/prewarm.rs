//! The prewarm of a base, from Hello to the Personalize of what is cloned from it.

use mvm_protocol::control::{GuestReply, GuestRequest, Phase};

use super::vm::{self, Session, Vm};
use super::{image, is_error};

/// An image's list of services with this prewarm and a user.
fn services(prewarm: &serde_json::Value) -> String {
    let users = serde_json::json!([{ "name": "web", "uid": 2001 }]);
    serde_json::json!({ "services": [], "users": users, "prewarm": prewarm }).to_string()
}

/// A prewarm that is a shell's script.
fn script(script: &str) -> serde_json::Value {
    serde_json::json!({ "command": ["/bin/sh", "-c", script], "timeout_seconds": 20 })
}

async fn prewarm(session: &Session) -> (bool, String) {
    match session.ask(GuestRequest::Prewarm).await {
        GuestReply::Prewarmed { success, detail } => (success, detail),
        other => panic!("{other:?}"),
    }
}

async fn personalize(session: &Session, generation: u64) {
    let reply = session.personalize(generation).await;
    assert!(matches!(reply, GuestReply::Personalized { .. }), "{reply:?}");
}

/// How many processes sleep for so many seconds.
async fn sleepers(session: &Session, seconds: u32) -> String {
    session.sh(&format!("ps -o args | grep -c '^sleep {seconds}'")).await.0
}

const DONE: (bool, String) = (true, String::new());

#[tokio::test]
async fn it_runs_once_before_the_machine_is_anyones_and_leaves_nothing_running() {
    // The second one leaves the process group, the session and its parent.
    let warm = "echo ran >> /tmp/ran; { ls -A /data; hostname; ip route; } > /tmp/seen; id -u >> /tmp/ran
        sleep 4242 & setsid sh -c 'sleep 4242 & sleep 4242' & sleep 1";
    let mut wanted = script(warm);
    wanted["user"] = "web".into();
    let vm = start!(&services(&wanted));
    let session = vm.session().await;
    assert_eq!(prewarm(&session).await, DONE);
    assert_eq!(sleepers(&session, 4242).await, "0");
    assert_eq!(session.sh("cat /tmp/ran /tmp/seen").await.0, "ran\n2001\n(none)");
    assert_eq!(prewarm(&session).await, DONE);
    assert_eq!(session.sh("cat /tmp/ran").await.0, "ran\n2001", "it ran twice");
    assert_eq!(session.sh("ls /run/mvm/cgroup | grep prewarm").await.0, "");
    let hello = session.hello().await;
    assert!(matches!(hello, GuestReply::Hello { phase: Phase::Booted, generation: 0, .. }), "{hello:?}");
    personalize(&session, 1).await;
    assert!(is_error(&session.ask(GuestRequest::Prewarm).await));
}

#[tokio::test]
async fn what_it_leaves_running_hears_of_every_reseed() {
    let mut wanted = script(
        r#"setsid sh -c 'trap "echo told \$(cat /proc/sys/kernel/random/boot_id) >> /tmp/told" USR1
        > /tmp/trapped; while :; do sleep 1; done' & while [ ! -e /tmp/trapped ]; do sleep 0.1; done"#,
    );
    wanted["reseed_signal"] = "SIGUSR1".into();
    let vm = start!(&services(&wanted));
    let session = vm.session().await;
    assert_eq!(prewarm(&session).await, DONE);
    assert_eq!(session.sh("ps -o args | grep -c '^sh -c trap'; ls /tmp").await.0, "1\ntrapped");
    for generation in 1..=2 {
        personalize(&session, generation).await;
        let told =
            format!("while [ $(cat /tmp/told 2>/dev/null | wc -l) -lt {generation} ]; do sleep 0.1; done");
        session.sh(&told).await;
    }
    let (told, _) = session.sh("cat /tmp/told").await;
    let (boot_id, _) = session.sh("cat /proc/sys/kernel/random/boot_id").await;
    assert_eq!(told, format!("told {boot_id}\ntold {boot_id}"));
    session.sh("kill -9 $(cat /run/mvm/cgroup/_prewarm/cgroup.procs)").await;
    personalize(&session, 3).await;
}

#[tokio::test]
async fn one_that_fails_says_why_and_leaves_nothing_running() {
    let mut wanted = script("sleep 4243 & echo no such model; echo 'in /opt' >&2; exit 7");
    wanted["reseed_signal"] = "SIGHUP".into();
    let vm = start!(&services(&wanted));
    let session = vm.session().await;
    let (success, detail) = prewarm(&session).await;
    assert!(!success);
    for expected in ["ended with code 7", "no such model\nin /opt"] {
        assert!(detail.contains(expected), "{detail}");
    }
    assert_eq!(sleepers(&session, 4243).await, "0");
    assert!(!prewarm(&session).await.0, "it can be tried again");

    let mut endless = script("echo on and on; sleep 4244");
    endless["timeout_seconds"] = 1.into();
    let vm = start!(&services(&endless));
    let session = vm.session().await;
    let asked = session.ask(GuestRequest::Prewarm);
    let (reply, early) = tokio::join!(asked, async {
        while sleepers(&session, 4244).await == "0" {}
        session.personalize(1).await
    });
    assert!(is_error(&early), "{early:?}");
    let GuestReply::Prewarmed { success: false, detail } = reply else { panic!("{reply:?}") };
    assert!(detail.contains("did not end within 1 s") && detail.contains("on and on"), "{detail}");
    assert_eq!(sleepers(&session, 4244).await, "0");
}

/// What a prewarm does, what it is refused for, and what takes that back.
const REFUSED: [(&str, &str, &str); 6] = [
    ("httpd -f -p 127.0.0.1:8081 & sleep 1", "(httpd) has a network socket open", ""),
    (
        "ip link set $(ls /sys/class/net | grep -v lo) up",
        " is up",
        "ip link set $(ls /sys/class/net | grep -v lo) down",
    ),
    ("echo 0123456789abcdef > /etc/machine-id", "/etc/machine-id is not empty", "> /etc/machine-id"),
    ("dd if=/dev/vdb of=/dev/null bs=4k count=1", "the data disk /dev/vdb was read or written", ""),
    ("sleep 4246 < /dev/vdb & sleep 1", "(sleep) has the data disk /dev/vdb open", ""),
    ("mkdir /tmp/d; mount -t ext4 /dev/vdb /tmp/d", "the data disk /dev/vdb is mounted", "umount /tmp/d"),
];

#[tokio::test]
async fn one_that_leaves_what_every_machine_would_share_fails() {
    // It does what the file says that is there when it runs.
    let mut wanted = script(". /tmp/does");
    wanted["reseed_signal"] = "SIGHUP".into();
    let vm = start!(&services(&wanted));
    let session = vm.session().await;
    for (does, refused, back) in REFUSED {
        session.sh(&format!("cat > /tmp/does << 'END'\n{does}\nEND")).await;
        let (success, detail) = prewarm(&session).await;
        assert!(!success && detail.contains(refused), "{does}: {success} {detail}");
        assert!(!detail.contains("; "), "{does} is all that it is refused for: {detail}");
        session.sh(&format!("while ps -o comm | grep '^httpd'; do sleep 0.1; done; {back}")).await;
    }
    // Local sockets lead nowhere else.
    session
        .sh("echo 'syslogd -n -O /tmp/log & while [ ! -S /dev/log ]; do sleep 0.1; done' > /tmp/does")
        .await;
    assert_eq!(prewarm(&session).await, DONE);
    assert_eq!(session.sh("ps -o comm | grep -c '^syslogd'").await.0, "1");
}

#[tokio::test]
async fn a_session_that_ends_takes_the_prewarm_with_it() {
    let vm = start!(&services(&script("echo x >> /tmp/ran; [ $(cat /tmp/ran | wc -l) = 2 ] || sleep 4245")));
    let session = vm.session().await;
    let mut stream = session.open().await;
    mvm_protocol::frame::write(&mut stream, &GuestRequest::Prewarm).await.unwrap();
    while sleepers(&session, 4245).await == "0" {}
    drop((stream, session));
    let session = vm.session().await;
    while sleepers(&session, 4245).await != "0" {}
    assert_eq!(prewarm(&session).await, DONE);
}

#[tokio::test]
async fn without_one_there_is_nothing_to_do_and_the_boot_id_is_new_once() {
    let vm = start!(r#"{"users": [], "services": []}"#);
    let session = vm.session().await;
    let boot_id = || async { session.sh("cat /proc/sys/kernel/random/boot_id").await.0 };
    let base = boot_id().await;
    assert_eq!(prewarm(&session).await, DONE);
    personalize(&session, 1).await;
    let own = boot_id().await;
    assert_ne!(own, base);
    assert_eq!(own.len(), base.len());
    assert_ne!(session.sh("echo x > /proc/sys/kernel/random/boot_id").await.1, 0);
    personalize(&session, 2).await;
    assert_eq!(boot_id().await, own);
    let now: u64 = session.sh("date +%s").await.0.parse().unwrap();
    assert!((vm::CLOCK_SECONDS..vm::CLOCK_SECONDS + 60).contains(&now), "{now}");
}
