//! A machine whose root writes into the control channel itself: only that machine's session suffers.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mvm_harness::{Lab, Value, echo, echo_image};

const VANDAL: &str = "alice/workers";

/// Takes the port's descriptor from the process that has it, and waits in the background for /run/go. What then follows
/// can use `put`.
const PRELUDE: &str = r#"
import ctypes, os, struct, time
def take_port():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for number in numbers:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{number}")
            except OSError:
                continue
            if target.startswith("/dev/vport"):
                pidfd_getfd = 438
                return ctypes.CDLL(None).syscall(pidfd_getfd, os.pidfd_open(int(pid)), int(number), 0)
port = take_port()
assert port is not None and port >= 0, "the port was not found"
def put(data):
    while data:
        data = data[os.write(port, data):]
def header(kind, flags, stream, length):
    return struct.pack(">BBHII", 0, kind, flags, stream, length)
if os.path.exists("/run/go"):
    os.remove("/run/go")
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
while not os.path.exists("/run/go"):
    time.sleep(0.01)
"#;

/// Has the vandal do something. The command that lets it begin may itself be a victim.
fn vandalize(lab: &Lab, deed: &str) {
    lab.exec(VANDAL, &["python3", "-S", "-c", &format!("{PRELUDE}\n{deed}")]);
    lab.try_mvm(&["instance", "exec", VANDAL, "--", "touch", "/run/go"]);
}

/// A program in a machine that runs for as long as the session does.
struct Program(Child);

impl Program {
    fn start(lab: &Lab, machine: &str) -> Self {
        let mut child =
            lab.mvm_beside(&["instance", "exec", machine, "--", "sh", "-c", "echo up; exec sleep 3600"]);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends messages to Bob's worker while something else is done; every one must be answered.
fn while_bob_answers(lab: &Lab, act: impl FnOnce()) {
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let bob = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let answer = lab.get(8081, "/hello");
                assert_eq!(answer.status, 200, "{}", answer.text());
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        let seen = answers.load(Ordering::Relaxed);
        if acted.is_ok() {
            lab.wait_for("bob goes on answering", || {
                bob.is_finished() || answers.load(Ordering::Relaxed) > seen
            });
        }
        stop.store(true, Ordering::Relaxed);
        bob.join().unwrap();
        acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// What must not change while another machine misbehaves.
fn life(lab: &Lab, machine: &str) -> [Value; 3] {
    let info = lab.info(machine);
    ["state", "pid", "generation"].map(|key| info[key].clone())
}

fn exec_works(lab: &Lab) -> bool {
    let output = lab.try_mvm(&["instance", "exec", VANDAL, "--", "echo", "here"]);
    output.status.success() && output.stdout == b"here\n"
}

fn lab_with_bob() -> Lab {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    let image = echo_image();
    lab.deploy(&format!(
        r#"
[tenant]
id = "bob"
[[pools]]
id = "workers"
image = "{}"
vcpus = 1
mem_mib = 256
data_disk_mib = 64
desired_running = 1
[[publish]]
port = 8081
pool = "workers"
target_port = 8080
"#,
        image.display()
    ));
    lab
}

/// What ends a session, and how.
const DEEDS: [(&str, &str); 5] = [
    ("garbage", "put(os.urandom(64 * 1024))"),
    ("half a header", "put(header(0, 0, 0, 0)[:6])"),
    ("a frame that is never completed", "put(header(0, 0, 1000000, 16000) + b'x' * 10)"),
    ("a goodbye", "put(header(3, 0, 0, 0))"),
    (
        "more streams than a session may have",
        "put(b''.join(header(1, 1, 1000000 + 2 * n, 0) for n in range(3000)))",
    ),
];

#[test]
fn bad_bytes_below_the_streams_end_one_session_which_is_opened_again() {
    let lab = lab_with_bob();
    let others = ["alice/gateways", "bob/workers"];
    let before = others.map(|machine| life(&lab, machine));
    let vandal = life(&lab, VANDAL);
    let mut bystander = Program::start(&lab, "alice/gateways");
    while_bob_answers(&lab, || {
        for (name, deed) in DEEDS {
            let mut victim = Program::start(&lab, VANDAL);
            vandalize(&lab, deed);
            lab.wait_for(&format!("{name}: the session is opened again"), || {
                exec_works(&lab) && victim.has_ended()
            });
        }
    });
    assert!(!bystander.has_ended(), "another machine's session ended too");
    assert_eq!(others.map(|machine| life(&lab, machine)), before);
    assert_eq!(life(&lab, VANDAL), vandal, "nor was the machine itself started again");
    assert_eq!(lab.get(8080, "/hello").status, 200);
    // What a session is needed for works again.
    lab.mvm(&["instance", "sleep", VANDAL]);
    assert_eq!(lab.get(8080, "/hello").status, 200);
    assert_eq!(lab.info(VANDAL)["last_start"]["how"], "wake");
}

#[test]
fn a_machine_that_floods_its_channel_troubles_no_other_and_can_be_stopped() {
    let lab = lab_with_bob();
    let others = ["alice/gateways", "bob/workers"];
    let before = others.map(|machine| life(&lab, machine));
    while_bob_answers(&lab, || {
        vandalize(&lab, "noise = os.urandom(32 * 1024)\nwhile True:\n    put(noise)");
        let mut bystander = Program::start(&lab, "alice/gateways");
        let refused = lab.try_mvm(&["instance", "exec", VANDAL, "--", "true"]);
        assert_eq!(refused.status.code(), Some(125), "its guest cannot be reached, which exec says");
        lab.mvm(&["instance", "stop", VANDAL]);
        assert!(!bystander.has_ended(), "another machine's session ended too");
    });
    assert_eq!(others.map(|machine| life(&lab, machine)), before);
    lab.mvm(&["instance", "start", VANDAL]);
    assert!(exec_works(&lab));
    assert_eq!(lab.get(8080, "/hello").status, 200);
}

/// Opens streams past the machine's own agent, which would refuse them, and asks on each.
const UNCOUNTED_STREAMS: &str = r#"
request = b'{"Hold":{"pool_id":"workers","instance_selector":"any"}}'
data = struct.pack(">II", 53, len(request)) + request
for n in range(100):
    stream = 1000000 + 2 * n
    put(header(1, 1, stream, 0) + header(0, 0, stream, len(data)) + data)
"#;

#[test]
fn the_host_counts_streams_itself() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    vandalize(&lab, UNCOUNTED_STREAMS);
    let denied = || lab.events("alice", "HostRequestDenied").len();
    lab.wait_for("48 streams are served", || denied() >= 48);
    assert!(exec_works(&lab), "the session goes on");
    assert_eq!(denied(), 48, "52 streams were refused unread");
}
