//! Asleep for hours: the wall clock is right, clocks that stand still go on, and what waits for a time is told.

use mvm_harness::{Connection, Lab, Value, now};

use crate::workers::{POOL, PORT, Workers, ask, path_of};

const HOURS: u64 = 9;

/// A timer of the wall clock that is to fire in the time that the machine sleeps through, and one for later.
const TIMERS: &str = "
import ctypes, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def timer(at):
    REALTIME, ABSTIME = 0, 1
    fd = libc.timerfd_create(REALTIME, 0)
    value = struct.pack('qqqq', 0, 0, int(at), 0)
    assert libc.timerfd_settime(fd, ABSTIME, value, None) == 0
    fired = []
    def wait():
        os.read(fd, 8)
        fired.append(time.time())
    threading.Thread(target=wait, daemon=True).start()
    return fired
soon, late = timer(time.time() + 4 * 3600), timer(time.time() + 30 * 3600)
;;
[time.time(), time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)]
";

/// How far the wall clock may be off, in seconds.
const BOUND: f64 = 0.05;

/// The guest's clocks, and how far its wall clock is from the host's: by the quickest of several answers.
fn clocks(connection: &mut Connection) -> (f64, Value) {
    let path = path_of(
        "[time.time(), time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)]",
    );
    let readings = (0..20).map(|_| {
        let before = now();
        let answer = connection.get(&path).json();
        let after = now();
        let off = answer[0].as_f64().unwrap() - (before + after) / 2.0;
        (after - before, off, answer)
    });
    let (_, off, answer) = readings.min_by(|one, other| one.0.total_cmp(&other.0)).unwrap();
    (off, answer)
}

/// Begins the worker anew nine hours ago.
fn begun_earlier(lab: &mut Lab) {
    lab.stop_agent();
    lab.start_agent_with(&[("MVM_CLOCK_BEHIND_SECONDS", &(HOURS * 3600).to_string())]);
    lab.mvm(&["instance", "stop", POOL]);
    lab.mvm(&["instance", "start", POOL]);
}

/// Puts the worker to sleep nine hours ago.
fn asleep_for_hours(lab: &mut Lab) {
    lab.mvm(&["instance", "sleep", POOL]);
    lab.stop_agent();
    lab.start_agent();
}

/// A lab in which it is nine hours earlier.
fn lab_of_earlier(workers: &Workers<'_>) -> Lab {
    let mut lab = Lab::without_agent();
    let behind = (HOURS * 3600).to_string();
    lab.start_agent_with(&[("MVM_CLOCK_BEHIND_SECONDS", &behind)]);
    workers.deploy(&lab);
    lab
}

#[test]
fn after_nine_hours_asleep_clocks_are_right_and_timers_have_fired() {
    let mut lab = lab_of_earlier(&Workers::default());
    let before = ask(&lab, POOL, TIMERS);
    let ago = now() - before[0].as_f64().unwrap();
    assert!((ago - 32_400.0).abs() < 5.0, "it is nine hours earlier there: {ago}");
    asleep_for_hours(&mut lab);

    let mut connection = lab.connect(PORT);
    let (off, after) = clocks(&mut connection);
    assert_eq!(lab.info(POOL)["last_start"]["how"], "wake");
    for (name, clock) in [("monotonic", 1), ("boot-time", 2)] {
        let on = after[clock].as_f64().unwrap() - before[clock].as_f64().unwrap();
        assert!((0.0..600.0).contains(&on), "the {name} clock went on, and did not jump: {on} s");
    }
    let fired = |what: &str| ask(&lab, POOL, what);
    lab.wait_for("the timer fires", || fired("len(soon)") == 1);
    let at = fired("soon[0]").as_f64().unwrap();
    assert!(at > before[0].as_f64().unwrap() + 8.9 * 3600.0, "when it woke: {at}");
    assert_eq!(fired("len(late)"), 0, "one for later has not");

    // It is set by a message, whose way a busy host makes longer: the best of some such wakes.
    drop(connection);
    let mut best = off.abs();
    for _ in 0..4 {
        if best < BOUND {
            break;
        }
        begun_earlier(&mut lab);
        asleep_for_hours(&mut lab);
        best = best.min(clocks(&mut lab.connect(PORT)).0.abs());
        assert_eq!(lab.info(POOL)["last_start"]["how"], "wake");
    }
    assert!(best < BOUND, "the wall clock is {best} s off");
}

#[test]
fn an_http_client_that_kept_its_connection_recovers_after_nine_hours() {
    let more = "[[pools]]\nid = \"gateways\"\nrole = \"gateway\"\nvcpus = 1\nmem_mib = 192\ndesired_running = 1\nspares = 0\n\
        [[publish]]\nport = 8080\npool = \"gateways\"\ntarget_port = 8080\n\
        [[routes]]\nname = \"all\"\nmatch_rule = { port = 8080, path_prefix = \"/\" }\n\
        target = { pool_id = \"workers\", instance_selector = \"any\", target_port = 8080 }\n";
    let mut lab = lab_of_earlier(&Workers { more, ..Workers::default() });
    // Its upstream connection to the worker is kept by the gateway.
    assert_eq!(lab.get(8080, "/kept").json()["count"], 1);
    asleep_for_hours(&mut lab);
    let mut kept = lab.connect(8080);
    assert_eq!(kept.get("/kept").json()["count"], 2, "the gateway's connection was kept, or made again");
    assert_eq!(lab.info(POOL)["last_start"]["how"], "wake");
    assert_eq!(kept.get("/kept").json()["count"], 3);
    lab.wait_for("no Hold is left", || lab.info(POOL)["holds"] == 0);
    lab.mvm(&["instance", "sleep", POOL]);
    assert_eq!(kept.get("/kept").json()["count"], 4, "the client's own connection wakes it again");
}
