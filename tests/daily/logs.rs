//! What services and consoles say, as a person reads it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use mvm_harness::{Lab, checkout};

use crate::shell::{MANIFEST, POOL};

/// Two services that write what they are told.
const RECIPE: &str = r#"
[image]
name = "talkers"
base = "minimal"

[[services]]
name = "one"
command = ["/bin/sh", "-c", "echo one begins; [ -p /run/one ] || mkfifo /run/one; exec cat <>/run/one"]

[[services]]
name = "two"
command = ["/bin/sh", "-c", "echo two begins; [ -p /run/two ] || mkfifo /run/two; exec cat <>/run/two"]
"#;

/// One that takes long to be ready once it is told to.
const SLOW: &str = r#"
[image]
name = "slow"
base = "minimal"

[[services]]
name = "slow"
command = ["/bin/sh", "-c", "echo begins; [ -e /data/slow ] && sleep 40; touch /run/ready; echo ready; exec sleep infinity"]
[services.ready]
command = ["/bin/sh", "-c", "[ -e /run/ready ]"]
timeout_seconds = 240
"#;

fn lab() -> Lab {
    let lab = lab_of(RECIPE);
    // They run when the machine is ready, and write in their own time.
    lab.exec(POOL, &["sh", "-c", "until [ -p /run/one -a -p /run/two ]; do sleep 0.1; done"]);
    lab
}

fn lab_of(recipe: &str) -> Lab {
    let lab = Lab::new();
    let lock = std::fs::read_to_string(checkout().join("images/minimal/image.lock")).unwrap();
    lab.file("talkers/image.lock", &lock);
    let recipe = lab.file("talkers/image.toml", recipe);
    let image = format!("image = \"{}\"", recipe.parent().unwrap().display());
    lab.deploy(&MANIFEST.replace("image = \"minimal\"", &image));
    lab
}

/// Has a service write something, and waits until it is in its log.
fn tell(lab: &Lab, service: &str, text: &str) {
    lab.exec(POOL, &["sh", "-c", &format!("echo '{text}' >/run/{service}")]);
    lab.wait_for("it is in the log", || {
        lab.exec(POOL, &["cat", &format!("/run/mvm/log/{service}.log")]).contains(text)
    });
}

fn logs(lab: &Lab, arguments: &[&str]) -> String {
    lab.mvm(&[&["instance", "logs", POOL], arguments].concat())
}

/// Whoever follows, and the lines that came.
struct Follower {
    command: Child,
    lines: Receiver<String>,
    told: Receiver<String>,
}

/// What comes out of a command, line by line.
pub fn lines_of(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            if sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Follower {
    fn new(lab: &Lab, arguments: &[&str]) -> Self {
        let mut command = lab.mvm_beside(&[&["instance", "logs", POOL, "-f"], arguments].concat());
        let (lines, told) = (command.stdout.take().unwrap(), command.stderr.take().unwrap());
        Self { command, lines: lines_of(lines), told: lines_of(told) }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(120)).expect("another line")
    }

    #[track_caller]
    fn next_told(&self) -> String {
        self.told.recv_timeout(Duration::from_secs(120)).expect("something is said")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

#[test]
fn logs_are_shown_by_service_number_and_time() {
    let lab = lab();
    tell(&lab, "one", "first");
    tell(&lab, "one", "second");
    assert_eq!(logs(&lab, &[]), "==> one <==\none begins\nfirst\nsecond\n\n==> two <==\ntwo begins\n");
    assert_eq!(logs(&lab, &["-s", "one"]), "one begins\nfirst\nsecond\n");
    assert_eq!(logs(&lab, &["--tail", "1"]), "==> one <==\nsecond\n\n==> two <==\ntwo begins\n");
    assert_eq!(logs(&lab, &["-n", "0"]), "");

    // What is said now is apart from what was said before by more than the times in a log are apart.
    std::thread::sleep(Duration::from_secs(3));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let date = lab.host().run("date", &["-u", "-d", &format!("@{now}"), "+%Y-%m-%dT%H:%M:%SZ"]);
    tell(&lab, "one", "third");
    assert_eq!(logs(&lab, &["--since", date.trim()]), "==> one <==\nthird\n");
    assert_eq!(logs(&lab, &["--since", "1h", "-s", "one", "-n", "2"]), "second\nthird\n");
    assert!(lab.mvm_fails(&["instance", "logs", POOL, "--since", "monday"]).contains("as 10m"));
    assert!(
        lab.mvm_fails(&["instance", "logs", POOL, "-s", "three"]).contains("these do: one, two"),
        "it names those there are"
    );
}

#[test]
fn a_log_is_followed_over_restarts_sleeps_and_starts_and_wakes_nobody() {
    let lab = lab();
    let all = Follower::new(&lab, &[]);
    let one = Follower::new(&lab, &["-s", "one", "--tail", "0"]);
    // After a sleep, what was left out is known by its time, to about a second.
    std::thread::sleep(Duration::from_secs(3));
    let new = Follower::new(&lab, &["--tail", "0"]);
    for line in ["==> one <==", "one begins", "", "==> two <==", "two begins"] {
        assert_eq!(all.next(), line);
    }
    tell(&lab, "one", "here");
    assert_eq!((all.next().as_str(), all.next().as_str(), all.next().as_str()), ("", "==> one <==", "here"));
    assert_eq!(one.next(), "here");

    lab.exec(POOL, &["sh", "-c", "kill $(ps -o pid,args | awk '$2 == \"cat\" { print $1; exit }')"]);
    assert_eq!(one.next(), "-- one was ended by signal 15");
    assert_eq!(one.next(), "one begins");
    assert_eq!(lab.info(POOL)["holds"], 0, "whoever follows does not keep it awake");

    let told = |state: &str| {
        let said = one.next_told();
        assert!(said.ends_with(&format!("is {state}: its logs go on when it runs")), "{said}");
    };
    lab.mvm(&["instance", "sleep", POOL]);
    told("sleeping");
    let refused = lab.mvm_fails(&["instance", "logs", POOL]);
    assert!(refused.contains("it is not woken to be read"), "{refused}");
    assert_eq!(lab.state(POOL), "sleeping");
    lab.mvm(&["instance", "wake", POOL]);
    tell(&lab, "one", "awake");
    assert_eq!(one.next(), "awake", "what was shown before is not shown again");
    tell(&lab, "two", "awake too");
    let lines: Vec<String> =
        std::iter::repeat_with(|| new.next()).take_while(|line| line != "awake too").collect();
    assert!(!lines.contains(&"two begins".to_owned()), "nor what was left out: {lines:?}");
    lab.mvm(&["instance", "stop", POOL]);
    told("stopped");
    lab.mvm(&["instance", "start", POOL]);
    assert_eq!(one.next(), "one begins", "another memory, another log");

    let mut gone = one;
    lab.mvm(&["tenant", "destroy", "alice", "--force"]);
    assert!(gone.next_told().ends_with(" is gone"));
    assert!(gone.command.wait().unwrap().success());
}

#[test]
fn what_services_say_is_shown_while_their_machine_starts() {
    let lab = lab_of(SLOW);
    lab.exec(POOL, &["touch", "/data/slow"]);
    lab.mvm(&["instance", "stop", POOL]);
    let follower = Follower::new(&lab, &[]);
    assert!(follower.next_told().ends_with("is stopped: its logs go on when it runs"));
    let mut starting = lab.mvm_beside(&["instance", "start", POOL]);
    let lines = [follower.next(), follower.next()];
    assert_eq!(lines, ["==> slow <==", "begins"]);
    assert_eq!(
        (logs(&lab, &[]), logs(&lab, &["-s", "slow"])),
        ("==> slow <==\nbegins\n".into(), "begins\n".into())
    );
    assert_eq!(lab.info(POOL)["act"], "starting");
    assert_eq!(starting.try_wait().unwrap(), None, "it starts still");
    assert_eq!(follower.next(), "ready");
    assert!(starting.wait().unwrap().success());

    // Whoever asks before its guest can be asked waits for no longer than that.
    lab.mvm(&["instance", "stop", POOL]);
    let mut starting = lab.mvm_beside(&["instance", "start", POOL]);
    lab.wait_for("a start", || lab.info(POOL)["act"] == "starting");
    lab.wait_for("what it says", || logs(&lab, &["-s", "slow"]) == "begins\n");
    assert_eq!(starting.try_wait().unwrap(), None, "it starts still");
    assert!(starting.wait().unwrap().success());
}

#[test]
fn the_console_is_shown_in_every_state_and_a_reader_may_go() {
    let lab = lab();
    let say = |text: &str| lab.exec(POOL, &["sh", "-c", &format!("echo {text} >/dev/console")]);
    let console = |arguments: &[&str]| logs(&lab, &[&["--console"], arguments].concat()).replace('\r', "");
    say("early");
    say("late");
    lab.wait_for("it is on the console", || console(&["-n", "1"]) == "late\n");
    let follower = Follower::new(&lab, &["--console", "--tail", "1"]);
    assert_eq!(follower.next().trim_end(), "late");
    say("later");
    assert_eq!(follower.next().trim_end(), "later");
    lab.mvm(&["instance", "sleep", POOL]);
    assert!(console(&[]).ends_with("early\nlate\nlater\n"));
    lab.mvm(&["instance", "stop", POOL]);
    assert!(console(&[]).contains("early\nlate\nlater\n"));
    // The console is all there is, and it is said that it is.
    let output = lab.try_mvm(&["instance", "logs", POOL]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("early"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is gone. Its console:"), "{output:?}");
    assert!(lab.mvm_fails(&["instance", "logs", POOL, "-s", "one"]).contains("is gone with its memory"));

    // As of `… | head -1`.
    lab.mvm(&["instance", "start", POOL]);
    let mut read = lab.mvm_beside(&["instance", "logs", POOL, "-f"]);
    let mut some = [0; 4];
    read.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert!(read.wait().unwrap().success());
}
