//! Up, again, down.

use std::collections::BTreeSet;

use mvm_harness::{Lab, Value, json};

use crate::manifest::empty_pool;

const POOL: &str = "alice/workers";

fn scale(lab: &Lab, options: &[&str]) -> Value {
    lab.json(&[&["pool", "scale", POOL], options].concat())
}

/// What `instance list` says of each: address and state.
fn states(lab: &Lab) -> BTreeSet<(String, String)> {
    lab.instances(POOL).into_iter().map(|address| (address.clone(), lab.state(&address))).collect()
}

fn addresses(outcomes: &Value, act: &str) -> Vec<String> {
    let of_act = outcomes.as_array().unwrap().iter().filter(|outcome| outcome["act"] == act);
    of_act.map(|outcome| outcome["instance"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_pool_is_brought_to_its_counts_and_down_again_only_where_that_is_wanted() {
    let lab = Lab::new();
    lab.deploy(&empty_pool(""));

    let up = scale(&lab, &["--running", "2", "--sleeping", "2"]);
    assert_eq!(up["instances"], json!({ "running": 2, "sleeping": 2 }), "{up}");
    assert_eq!((&up["created"], &up["changed"]), (&json!(4), &json!(true)));
    let outcomes = &up["outcomes"];
    assert_eq!((addresses(outcomes, "run").len(), addresses(outcomes, "prepare").len()), (2, 2), "{up}");
    for outcome in outcomes.as_array().unwrap() {
        assert!(outcome["ms"].as_f64().unwrap() > 0.0 && outcome["how"].is_string(), "{outcome}");
        assert!(outcome["error"].is_null(), "{outcome}");
    }
    let desired = &lab.json(&["pool", "info", POOL])["spec"]["desired"];
    assert_eq!(desired, &json!({ "running": 2, "warm": 0, "sleeping": 2 }));

    nothing_to_do(&lab);
    one_woken_is_put_to_sleep_again(&lab);
    fewer_are_refused(&lab);
    fewer(&lab);
    assert_eq!(lab.events("alice", "PoolScaled").len(), 3);
}

fn nothing_to_do(lab: &Lab) {
    let before = states(lab);
    let said = lab.mvm(&["pool", "scale", POOL, "--running", "2", "--sleeping", "2"]);
    assert_eq!(said, format!("nothing to do: {POOL} has 2 running, 2 sleeping\n"));
    assert_eq!(scale(lab, &["--running", "2"])["changed"], false);
    assert_eq!(states(lab), before);
}

/// What was moved since is brought back, and what runs is not touched.
fn one_woken_is_put_to_sleep_again(lab: &Lab) {
    let sleeping = states(lab).into_iter().find(|(_, state)| state == "sleeping").unwrap().0;
    lab.mvm(&["instance", "wake", &sleeping]);
    let back = scale(lab, &["--sleeping", "2"]);
    assert_eq!(addresses(&back["outcomes"], "sleep").len(), 1, "{back}");
    assert_eq!(back["outcomes"].as_array().unwrap().len(), 1, "{back}");
    assert_eq!(back["instances"], json!({ "running": 2, "sleeping": 2 }), "{back}");
}

fn fewer_are_refused(lab: &Lab) {
    let before = states(lab);
    let sleeping: Vec<String> =
        before.iter().filter(|(_, state)| state == "sleeping").map(|(address, _)| address.clone()).collect();
    let said = lab.mvm_fails(&["pool", "scale", POOL, "--sleeping", "0"]);
    let names = format!("{}, {}", sleeping[1], sleeping[0]);
    assert!(said.contains("4 instances and 2 are wanted") && said.contains(&names), "{said}");
    assert_eq!(states(lab), before);
    let desired = &lab.json(&["pool", "info", POOL])["spec"]["desired"];
    assert_eq!(desired["sleeping"], 2, "nothing was done");
}

/// What sleeps goes first, then what runs; the highest id first.
fn fewer(lab: &Lab) {
    let before = states(lab);
    let (running, sleeping): (Vec<_>, Vec<_>) =
        before.iter().map(|(address, state)| (address, state)).partition(|(_, state)| *state == "running");
    let output = lab.try_mvm(&["pool", "scale", POOL, "--running", "1", "--sleeping", "0", "--destroy"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let order = format!("destroying {}, {}, {}", sleeping[1].0, sleeping[0].0, running[1].0);
    assert!(said.contains(&order), "{order} is not in {said}");
    assert_eq!(states(lab), [(running[0].0.clone(), "running".to_owned())].into());
    let folders = std::fs::read_dir(lab.data_dir().join("instances")).unwrap().count();
    assert_eq!((folders, lab.vmms().len()), (1, 1), "nothing of the others is left");
}

#[test]
fn what_is_begun_when_its_client_goes_is_finished_and_nothing_more_is_begun() {
    let lab = Lab::new();
    lab.deploy(&empty_pool(""));
    let mut client = lab.mvm_beside(&["pool", "scale", POOL, "--running", "12"]);
    lab.wait_for("machines are being started", || {
        let list = lab.json(&["instance", "list"]);
        list.as_array().unwrap().iter().any(|instance| instance["act"] == "starting")
    });
    client.kill().unwrap();
    client.wait().unwrap();
    lab.settle();
    // The next one waits until the earlier is over.
    let done = lab.try_mvm(&["pool", "scale", POOL, "--running", "12", "--sleeping", "0", "-o", "json"]);
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done["created"], 0, "they were created with the first: {done}");
    let left = addresses(&done["outcomes"], "run").len();
    assert!((1..12).contains(&left), "some were started before the client went, not all: {left}");
    assert_eq!(done["instances"], json!({ "running": 12 }), "{done}");
}

#[test]
fn a_machine_that_does_not_start_is_named_and_the_others_run() {
    let lab = Lab::new();
    lab.deploy(&empty_pool(""));
    scale(&lab, &["--running", "2"]);
    let broken = lab.instances(POOL)[0].clone();
    lab.mvm(&["instance", "stop", &broken]);
    let id = broken.rsplit('/').next().unwrap();
    let disk = lab.data_dir().join("instances").join(id).join("data.img");
    std::fs::rename(&disk, disk.with_extension("away")).unwrap();

    let output = lab.try_mvm(&["pool", "scale", POOL, "--running", "3", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("error: 1 act of {POOL} failed:\n  {broken}: ")), "{said}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["instances"]["running"], 2, "{result}");
}
