//! A newer mvm in the place of an older one: machines run on or sleep on, and nothing is lost. Not the other way round.

use mvm_harness::{Lab, answered, assert_tidy, echo_with, previous_mvm};

const RUNS: &str = "alice/workers";
const SLEEPS: &str = "alice/sleepers";
const STOPPED: &str = "alice/idle";

/// What is known of every machine, but for what time changes.
fn known(lab: &Lab) -> Vec<[String; 5]> {
    let list = lab.json(&["instance", "list"]);
    let part = |instance: &mvm_harness::Value, key: &str| instance[key].as_str().unwrap().to_owned();
    list.as_array()
        .unwrap()
        .iter()
        .map(|instance| ["tenant", "pool", "id", "state", "ip"].map(|key| part(instance, key)))
        .collect()
}

#[test]
fn machines_of_the_commit_before_run_on_and_sleepers_wake_under_this_one() {
    let Some((previous, revision)) = previous_mvm() else {
        eprintln!("skipped: this checkout has no earlier commit");
        return;
    };
    let mut lab = Lab::without_agent();
    let this = lab.use_mvm(previous);
    lab.start_agent();
    lab.deploy(&echo_with("sleepers", "idle"));
    lab.mvm(&["instance", "stop", STOPPED]);
    answered(&lab, 8080);
    answered(&lab, 8081);
    lab.mvm(&["instance", "sleep", SLEEPS]);
    let (before, pid) = (known(&lab), lab.info(RUNS)["pid"].clone());
    let events = lab.json(&["events", "alice"]).as_array().unwrap().len();
    lab.stop_agent();

    lab.use_mvm(this);
    lab.start_agent();
    lab.settle();
    assert_eq!(known(&lab), before, "upgraded from {revision}");
    assert_eq!(lab.info(RUNS)["pid"], pid, "its VMM is the same");
    assert!(lab.json(&["events", "alice"]).as_array().unwrap().len() >= events, "its history is whole");
    assert_eq!(answered(&lab, 8080)["count"], 2, "it ran on");
    assert_eq!(answered(&lab, 8081)["count"], 2, "it slept on: {}", lab.info(SLEEPS));
    assert_eq!(lab.info(SLEEPS)["last_start"]["how"], "wake");
    assert_tidy(&lab);
    // And all of it goes on as if they had begun under this one.
    lab.mvm(&["instance", "sleep", RUNS]);
    assert_eq!(answered(&lab, 8080)["count"], 3);
    lab.mvm(&["instance", "start", STOPPED]);
    assert_tidy(&lab);
}

#[test]
fn a_store_of_a_newer_mvm_is_refused_and_left_alone() {
    let mut lab = Lab::new();
    lab.deploy("[tenant]\nid = \"alice\"\n");
    lab.stop_agent();
    let path = lab.data_dir().join("mvm.db");
    let store = rusqlite::Connection::open(&path).unwrap();
    let version: i64 = store.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    store.pragma_update(None, "user_version", version + 1).unwrap();
    drop(store);
    let before = std::fs::read(&path).unwrap();
    let refused = lab.mvm_fails(&["agent", "serve"]);
    assert!(refused.contains("mvm.db") && refused.contains("newer mvm"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
