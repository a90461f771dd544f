//! Ports of this host that lead into a machine.

use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mvm_harness::{Connection, Lab};

use crate::logs::lines_of;
use crate::shell::{MANIFEST, POOL};

/// Answers how many bytes came when no more come.
const COUNTER: &str = "#!/bin/sh\necho \"got $(wc -c)\"\n";

struct Forwarding {
    command: Child,
    said: Receiver<String>,
}

impl Forwarding {
    /// Lets ports lead into the machine; with it come the ports here.
    fn new(lab: &Lab, ports: &[&str]) -> (Self, Vec<u16>) {
        let mut command = lab.mvm_beside(&[&["instance", "forward", POOL], ports].concat());
        let said = lines_of(command.stderr.take().unwrap());
        let forwarding = Self { command, said };
        let here = ports.iter().map(|_| {
            let line = forwarding.next();
            let (address, _) = line.split_once(" leads to port ").unwrap_or_else(|| panic!("{line}"));
            address.rsplit_once(':').unwrap().1.parse().unwrap()
        });
        let here = here.collect();
        (forwarding, here)
    }

    #[track_caller]
    fn next(&self) -> String {
        self.said.recv_timeout(Duration::from_secs(120)).expect("something is said")
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

#[test]
fn connections_reach_a_machines_loopback_over_a_sleep_and_each_direction_ends_for_itself() {
    let lab = Lab::new();
    lab.deploy(MANIFEST);
    lab.exec(POOL, &["sh", "-c", "echo hello > /data/index.html; busybox httpd -p 127.0.0.1:80 -h /data"]);
    lab.exec(POOL, &["sh", "-c", &format!("printf '%s' '{COUNTER}' > /data/count; chmod +x /data/count")]);
    let serve = "setsid busybox nc -ll -p 9000 -e /data/count >/dev/null 2>&1 &
        for _ in $(seq 100); do busybox netstat -ltn | grep -q :9000 && exit; sleep 0.1; done; exit 1";
    lab.exec(POOL, &["sh", "-c", serve]);
    let (mut forwarding, ports) = Forwarding::new(&lab, &["127.0.0.1::80", ":9000", ":9001"]);
    let hello = || {
        let mut connection = Connection::open(lab.host(), ports[0]);
        connection.send(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        connection.response().text()
    };
    assert_eq!(hello(), "hello\n");

    let half_closed = |length: usize| {
        let mut stream = lab.host().inside(|| TcpStream::connect(("127.0.0.1", ports[1]))).unwrap();
        stream.write_all(&vec![7; length]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{error}"));
        answer
    };
    assert_eq!(half_closed(1_000_000), "got 1000000\n");

    for act in ["sleep", "warm"] {
        lab.wait_for("no connection is left", || lab.info(POOL)["holds"] == 0);
        lab.mvm(&["instance", act, POOL]);
        assert_eq!(hello(), "hello\n");
        let said = forwarding.next();
        assert!(said.contains("was asleep and was woken in "), "{said}");
        assert_eq!(half_closed(3), "got 3\n");
    }

    // A port where nobody listens ends that connection, and no other.
    let mut nobody = Connection::open(lab.host(), ports[2]);
    assert_eq!(nobody.rest(), b"");
    let said = forwarding.next();
    assert!(said.contains("a connection to port 9001 failed: ") && said.contains("refused"), "{said}");

    // An open connection keeps it awake while it lasts.
    let open = Connection::open(lab.host(), ports[0]);
    lab.wait_for("it is held", || lab.info(POOL)["holds"] == 1);
    let pid = forwarding.command.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(forwarding.command.wait().unwrap().signal(), Some(2));
    lab.wait_for("nothing is left", || lab.info(POOL)["holds"] == 0);
    assert!(Connection::try_open(lab.host(), ports[0]).is_err());
    drop(open);
}

#[test]
fn what_cannot_be_forwarded_is_refused_at_once() {
    let lab = Lab::new();
    lab.deploy(MANIFEST);
    let (forwarding, ports) = Forwarding::new(&lab, &["127.0.0.1::80"]);
    let taken = format!("{}:80", ports[0]);
    let said = lab.mvm_fails(&["instance", "forward", POOL, &taken]);
    assert!(said.contains("Address already in use") && said.contains("ss -ltnp"), "{said}");
    drop(forwarding);
    assert!(lab.mvm_fails(&["instance", "forward", POOL, "80:x"]).contains("write 8080:80"));
    lab.mvm(&["instance", "stop", POOL]);
    let said = lab.mvm_fails(&["instance", "forward", POOL, &taken]);
    assert!(said.contains("is stopped: `mvm instance start "), "{said}");
}
