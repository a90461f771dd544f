//! Messages and sleep at the same time: whoever holds a machine keeps it awake, and no message is lost.

use std::sync::Barrier;
use std::time::Duration;

use mvm_harness::{Echo, Lab, Response, echo};

const WORKER: &str = "alice/workers";

/// A route to a service of the worker that the test starts itself.
const SLOW_ROUTE: &str = r#"
[[routes]]
name = "slow"
match_rule = { port = 8080, path_prefix = "/slow" }
target = { pool_id = "workers", instance_selector = "any", target_port = 9090 }
"#;

/// Answers /slow/<n> after n seconds.
const SLOW_SERVICE: &str = r#"
class Slow(Handler):
    def do_GET(self):
        time.sleep(float(self.path.split("/")[2]))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"done\n")
serve(9090, Slow)
"#;

/// A number of an instance's info.
fn number(lab: &Lab, key: &str) -> u64 {
    lab.info(WORKER)[key].as_u64().unwrap()
}

fn wakes(lab: &Lab) -> usize {
    lab.events("alice", "InstanceWoken").len()
}

/// The number in the echo worker's answer.
#[track_caller]
fn count(response: &Response) -> u64 {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["count"].as_u64().unwrap()
}

#[test]
fn twenty_messages_at_once_to_a_sleeping_worker_are_one_wake_and_twenty_answers() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    for round in 0..2 {
        lab.mvm(&["instance", "sleep", WORKER]);
        let start = Barrier::new(20);
        let mut counts: Vec<u64> = std::thread::scope(|scope| {
            let message = || {
                let mut connection = lab.connect(8080);
                start.wait();
                count(&connection.get("/hello"))
            };
            let messages: Vec<_> = (0..20).map(|_| scope.spawn(message)).collect();
            messages.into_iter().map(|message| message.join().unwrap()).collect()
        });
        counts.sort_unstable();
        let expected: Vec<u64> = (20 * round + 1..=20 * round + 20).collect();
        assert_eq!(counts, expected, "every message was counted once");
        assert_eq!(wakes(&lab), usize::try_from(round).unwrap() + 1);
        assert_eq!(number(&lab, "generation"), round + 2);
    }
    lab.wait_for("no Hold is left over", || number(&lab, "holds") == 0);
}

#[test]
fn a_message_at_any_moment_of_a_sleep_is_answered() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    let after_millis = [0, 10, 20, 40, 60, 80, 100, 130, 160, 200, 300].map(Some);
    // None: not before the sleep was seen to have begun.
    for (sleeps, delay) in after_millis.into_iter().chain([None]).enumerate() {
        assert_eq!(lab.state(WORKER), "running");
        let sleep = lab.mvm_beside(&["instance", "sleep", WORKER]);
        match delay {
            Some(delay) => std::thread::sleep(Duration::from_millis(delay)),
            None => lab.wait_for("the sleep begins", || {
                let info = lab.info(WORKER);
                info["act"] == "going to sleep" || info["state"] == "sleeping"
            }),
        }
        assert_eq!(count(&lab.get(8080, "/hello")), 2 * sleeps as u64 + 1, "{delay:?} ms after its command");
        if delay.is_none() {
            assert_eq!(wakes(&lab), sleeps + 1, "it was answered after the wake");
        }
        let slept = sleep.wait_with_output().unwrap();
        assert!(slept.status.success(), "{}", String::from_utf8_lossy(&slept.stderr));
        // One that came before the sleep began was waited for, and its worker sleeps now: this one wakes it.
        assert_eq!(count(&lab.get(8080, "/hello")), 2 * sleeps as u64 + 2);
        assert_eq!(wakes(&lab), sleeps + 1, "each sleep was followed by one wake");
        assert_eq!(number(&lab, "generation"), sleeps as u64 + 2, "every launch was a wake");
    }
}

#[test]
fn a_sleep_waits_for_requests_in_hand_up_to_the_drain_timeout_and_later_ones_wait_for_the_wake() {
    let lab = Lab::new();
    let keys = "runtime_policy = { drain_timeout_seconds = 12 }";
    lab.deploy(&Echo { worker_keys: keys, more: SLOW_ROUTE, ..Echo::default() }.manifest());
    lab.serve(WORKER, SLOW_SERVICE);
    let begin_sleep_during = |path: &str| {
        // A program that was run just now holds the machine a moment longer.
        lab.wait_for("nothing else is in hand", || number(&lab, "holds") == 0);
        let mut in_hand = lab.connect(8080);
        in_hand.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes());
        lab.wait_for("the request is in hand", || number(&lab, "holds") == 1);
        let sleep = lab.mvm_beside(&["instance", "sleep", WORKER]);
        lab.wait_for("the sleep waits", || lab.info(WORKER)["act"] == "going to sleep");
        (in_hand, sleep)
    };

    // Nothing would wake the worker, so an answer comes before the sleep or never.
    let (mut in_hand, sleep) = begin_sleep_during("/slow/8");
    let answer = in_hand.response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "done\n"));
    assert!(sleep.wait_with_output().unwrap().status.success());
    assert_eq!((lab.state(WORKER).as_str(), wakes(&lab)), ("sleeping", 0));
    assert_eq!(count(&lab.get(8080, "/hello")), 1);

    // One that takes longer than the drain timeout does not keep it awake.
    let (mut endless, sleep) = begin_sleep_during("/slow/3600");
    assert_eq!(count(&lab.get(8080, "/hello")), 2);
    assert_eq!((wakes(&lab), number(&lab, "generation")), (2, 3), "the late message came after a wake");
    assert!(sleep.wait_with_output().unwrap().status.success());
    assert_eq!(lab.events("alice", "InstanceSlept").len(), 2);
    let ended = endless.response();
    assert_eq!(ended.status, 502, "its answer would never come: {}", ended.text());
    lab.wait_for("it holds nobody", || number(&lab, "holds") == 0);
}

#[test]
fn a_worker_that_a_person_stopped_is_not_started_by_messages() {
    let lab = Lab::new();
    let published = "[[publish]]\nport = 9000\npool = \"workers\"\ntarget_port = 8080\n";
    lab.deploy(&Echo { more: published, ..Echo::default() }.manifest());

    // A port that leads to the worker itself wakes it as well as a message through the gateway.
    lab.mvm(&["instance", "sleep", WORKER]);
    let mut direct = lab.connect(9000);
    assert_eq!(count(&direct.get("/hello")), 1);
    assert_eq!((wakes(&lab), number(&lab, "generation")), (1, 2));
    assert_eq!(number(&lab, "holds"), 1, "the open connection keeps it awake");
    drop(direct);

    let launches = lab.events("alice", "InstanceStarted").len();
    lab.mvm(&["instance", "stop", WORKER]);
    let refused = lab.get(8080, "/hello");
    assert_eq!(refused.status, 503, "{}", refused.text());
    let wait: u32 = refused.header("retry-after").expect("says when to try again").parse().unwrap();
    assert!(wait > 0);
    let mut direct = lab.connect(9000);
    direct.send(b"GET /hello HTTP/1.1\r\nhost: test\r\n\r\n");
    assert_eq!(direct.rest(), b"", "a published port of a stopped machine is closed");
    assert_eq!(lab.state(WORKER), "stopped");
    assert_eq!((wakes(&lab), lab.events("alice", "InstanceStarted").len()), (1, launches));

    lab.mvm(&["instance", "start", WORKER]);
    assert_eq!(count(&lab.get(8080, "/hello")), 1);
}
