//! Machines that fall asleep by themselves, and those that are woken for what they planned.

use std::time::{Duration, Instant};

use mvm_harness::{Lab, assert_tidy, kill, now};

use crate::shell::{MANIFEST, POOL};

fn deploy(lab: &Lab, keys: &str) {
    lab.deploy(&format!("{MANIFEST}{keys}\n"));
}

fn wait_until(lab: &Lab, state: &str) {
    lab.wait_for(&format!("a machine that is {state}"), || lab.state(POOL) == state);
}

#[test]
fn an_idle_machine_falls_asleep_by_itself_and_never_while_somebody_holds_it() {
    let lab = Lab::new();
    deploy(&lab, "sleep_after_seconds = 6\nruntime_policy = { min_running_seconds = 0 }");

    // Longer than it may be idle, and somebody works in it.
    let begun = Instant::now();
    lab.exec(POOL, &["sleep", "15"]);
    let released = Instant::now();
    assert!(begun.elapsed() >= Duration::from_secs(15));
    assert_eq!(lab.state(POOL), "running");
    wait_until(&lab, "sleeping");
    assert!(released.elapsed() >= Duration::from_secs(5), "asleep after {:?}", released.elapsed());
    let slept = lab.events("alice", "InstanceSlept");
    assert!(slept[0]["detail"].as_str().unwrap().ends_with(", for policy"), "{slept:?}");

    // One that a person woke sleeps again, and without an agent that knows since when.
    lab.mvm(&["instance", "wake", POOL]);
    wait_until(&lab, "sleeping");

    // It runs as long as it must, which is said once.
    lab.mvm(&["pool", "update", POOL, "--sleep-after-seconds", "2", "--min-running-seconds", "12"]);
    lab.mvm(&["instance", "wake", POOL]);
    let woken = Instant::now();
    wait_until(&lab, "sleeping");
    assert!(woken.elapsed() >= Duration::from_secs(10), "asleep after {:?}", woken.elapsed());
    assert_eq!(lab.events("alice", "TransitionDeferred").len(), 1);
    assert_eq!(lab.json(&["node", "stats"])["minimums"]["deferred"], 1);

    // Never is never; and what is changed holds for one that runs.
    lab.mvm(&["pool", "update", POOL, "--sleep-after-seconds", "0", "--min-running-seconds", "0"]);
    lab.mvm(&["instance", "wake", POOL]);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(lab.state(POOL), "running");
    lab.mvm(&["pool", "update", POOL, "--sleep-after-seconds", "3"]);
    wait_until(&lab, "sleeping");
    assert_eq!(lab.events("alice", "SleepCancelled").len(), 0);
    assert_tidy(&lab);
}

#[test]
fn a_person_need_not_wait_for_a_minimum_runtime_which_is_said_and_counted() {
    let lab = Lab::new();
    deploy(&lab, "runtime_policy = { min_running_seconds = 3600, min_warm_seconds = 1800 }");
    for act in ["warm", "sleep", "wake", "sleep", "wake", "stop"] {
        lab.mvm(&["instance", act, POOL]);
    }
    let told: Vec<(String, String)> = lab
        .events("alice", "MinRuntimeOverridden")
        .iter()
        .map(|event| {
            let words: Vec<&str> = event["detail"].as_str().unwrap().split(' ').collect();
            let [done @ .., "after", seconds, "s", state, "its", "pool", "wants", least] = &words[..] else {
                panic!("{event}");
            };
            // A warm machine is judged by how long it was warm.
            assert!(seconds.parse::<u64>().unwrap() < 600, "{event}");
            (done.join(" "), format!("{state} {least}"))
        })
        .collect();
    let told: Vec<(&str, &str)> = told.iter().map(|(done, of)| (done.as_str(), of.as_str())).collect();
    let running = "running; 3600";
    let expected = [
        ("paused", running),
        ("put to sleep", "warm; 1800"),
        ("put to sleep", running),
        ("stopped", running),
    ];
    assert_eq!(told, expected);
    let counted = || lab.json(&["node", "stats"])["minimums"].clone();
    assert_eq!(counted(), serde_json::json!({ "deferred": 0, "overridden": 4 }));

    // Where there is none, nothing is overridden.
    lab.mvm(&["pool", "update", POOL, "--min-running-seconds", "0", "--min-warm-seconds", "0"]);
    for act in ["start", "warm", "sleep", "wake", "stop"] {
        lab.mvm(&["instance", act, POOL]);
    }
    assert_eq!(counted()["overridden"], 4);
}

/// Has it be as if its workload had named a time when it fell asleep, while no agent runs.
fn plan(lab: &Lab, at: u64) {
    let store = rusqlite::Connection::open(lab.data_dir().join("mvm.db")).unwrap();
    assert_eq!(store.execute("UPDATE instances SET wake_at = ?1", [at]).unwrap(), 1);
}

#[test]
fn what_a_machine_planned_outlives_the_agent_and_wakes_it_in_time() {
    let mut lab = Lab::new();
    deploy(&lab, "");
    lab.mvm(&["instance", "sleep", POOL]);

    // One that is overdue when an agent starts.
    lab.stop_agent();
    plan(&lab, now() as u64 - 1000);
    lab.start_agent();
    wait_until(&lab, "running");
    let woken = lab.events("alice", "InstanceWoken");
    assert!(woken[0]["detail"].as_str().unwrap().ends_with(", for its timer"), "{woken:?}");

    // One that is to come, which is shown, and for which a crash makes no difference.
    lab.mvm(&["instance", "sleep", POOL]);
    assert!(lab.info(POOL)["wake_at"].is_null());
    lab.stop_agent();
    let at = now() as u64 + 20;
    plan(&lab, at);
    lab.start_agent();
    assert_eq!(lab.info(POOL)["wake_at"], at);
    assert_eq!(lab.json(&["status", "alice"])["machines"][0]["wake_at"], at);
    lab.kill_agent();
    lab.start_agent();
    assert_eq!(lab.state(POOL), "sleeping");
    wait_until(&lab, "running");
    let woken = lab.events("alice", "InstanceWoken").pop().unwrap();
    let begun =
        woken["at_ms"].as_u64().unwrap() as f64 - lab.info(POOL)["last_start"]["total_ms"].as_f64().unwrap();
    let late = begun - at as f64 * 1000.0;
    assert!((-500.0..1500.0).contains(&late), "{late} ms late");
    assert!(lab.info(POOL)["wake_at"].is_null());

    // One that failed is started for it, unless that is left to persons.
    for (policy, state) in [("on-demand", "running"), ("never", "failed")] {
        lab.mvm(&["pool", "update", POOL, "--restart-policy", policy]);
        kill(u32::try_from(lab.info(POOL)["pid"].as_u64().unwrap()).unwrap());
        wait_until(&lab, "failed");
        lab.stop_agent();
        plan(&lab, now() as u64 + 3);
        lab.start_agent();
        lab.wait_for("the time that it named", || lab.info(POOL)["wake_at"].is_null());
        assert_eq!(lab.state(POOL), state);
    }
    let started = lab.events("alice", "InstanceStarted").pop().unwrap();
    assert!(started["detail"].as_str().unwrap().ends_with(", for its timer"), "{started}");

    // One that a person stopped has no plans.
    lab.mvm(&["instance", "start", POOL]);
    lab.mvm(&["instance", "sleep", POOL]);
    lab.stop_agent();
    plan(&lab, now() as u64 + 3600);
    lab.start_agent();
    lab.mvm(&["instance", "stop", POOL]);
    assert!(lab.info(POOL)["wake_at"].is_null());
    assert_tidy(&lab);
}
