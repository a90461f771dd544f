//! Warm: a machine that stands still has its memory, and goes on with the right time for whoever needs it.

use std::time::Duration;

use mvm_harness::{Echo, Lab, assert_tidy, now};

use crate::workers::POOL;

fn count(lab: &Lab) -> u64 {
    lab.get(8080, "/hello").json()["count"].as_u64().unwrap()
}

fn seconds_off(lab: &Lab) -> f64 {
    lab.get(8080, "/state").json()["time"].as_f64().unwrap() - now()
}

/// How long it stands still: more than its clock may be off afterwards.
const STILL: Duration = Duration::from_secs(2);

#[test]
fn a_paused_machine_goes_on_for_a_command_or_a_message_with_its_memory_and_the_right_time() {
    let lab = Lab::new();
    lab.deploy(&Echo::default().manifest());
    assert_eq!(count(&lab), 1);
    let pid = lab.info(POOL)["pid"].clone();
    let generation = || lab.info(POOL)["generation"].as_u64().unwrap();
    let first = generation();
    for (round, by_message) in (1..).zip([false, true, true]) {
        lab.wait_for("nothing is in hand", || lab.info(POOL)["holds"] == 0);
        lab.mvm(&["instance", "warm", POOL]);
        let warm = lab.info(POOL);
        assert_eq!((&warm["state"], &warm["pid"]), (&"warm".into(), &pid), "{warm}");
        assert!(lab.mvm(&["instance", "warm", POOL]).contains("warm"), "once more changes nothing");
        assert_tidy(&lab);
        std::thread::sleep(STILL);
        if !by_message {
            lab.mvm(&["instance", "resume", POOL]);
        }
        assert_eq!(count(&lab), round + 1, "by a message: {by_message}");
        let off = seconds_off(&lab);
        assert!(off.abs() < 0.5, "its clock is {off} s off");
        let info = lab.info(POOL);
        assert_eq!((&info["state"], &info["pid"]), (&"running".into(), &pid), "the same VMM: {info}");
        assert_eq!(generation(), first + round, "it was told that it is another time");
        assert_eq!(lab.exec(POOL, &["echo", "here"]), "here\n", "the session is another one");
    }
    assert_eq!(lab.events("alice", "InstanceWarm").len(), 3);
    assert_eq!(lab.events("alice", "InstanceResumed").len(), 3);
    assert!(lab.mvm(&["instance", "resume", POOL]).contains("running already"));

    // From warm it can go to sleep, and it can end.
    lab.wait_for("nothing is in hand", || lab.info(POOL)["holds"] == 0);
    lab.mvm(&["instance", "warm", POOL]);
    lab.mvm(&["instance", "sleep", POOL]);
    assert_eq!(lab.state(POOL), "sleeping");
    assert_tidy(&lab);
    assert_eq!(count(&lab), 5);
    assert_eq!(lab.info(POOL)["last_start"]["how"], "wake");
    lab.wait_for("nothing is in hand", || lab.info(POOL)["holds"] == 0);
    lab.mvm(&["instance", "warm", POOL]);
    lab.mvm(&["instance", "stop", POOL]);
    assert_eq!(lab.state(POOL), "stopped");
    assert_tidy(&lab);
}

#[test]
fn a_paused_machine_is_found_paused_by_the_next_agent() {
    let mut lab = Lab::new();
    lab.deploy(&Echo::default().manifest());
    assert_eq!(count(&lab), 1);
    lab.wait_for("nothing is in hand", || lab.info(POOL)["holds"] == 0);
    lab.mvm(&["instance", "warm", POOL]);
    lab.kill_agent();
    std::thread::sleep(STILL);
    lab.start_agent();
    lab.settle();
    assert_eq!(lab.state(POOL), "warm");
    assert_tidy(&lab);
    assert_eq!(count(&lab), 2);
    let off = seconds_off(&lab);
    assert!(off.abs() < 0.5, "its clock is {off} s off");
}
