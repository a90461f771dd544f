//! Following what happens to a tenant.

use std::io::{BufRead as _, BufReader};

use mvm_harness::{Lab, Value};

use crate::shell::{MANIFEST, POOL};

#[test]
fn events_are_followed_from_the_first_to_those_to_come_until_the_tenant_is_gone() {
    let lab = Lab::new();
    lab.deploy(MANIFEST);
    let mut following = lab.mvm_beside(&["events", "alice", "--follow", "-o", "json"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = |kind: &str| -> Value {
        loop {
            let event: Value = lines.next().expect(kind).unwrap().parse().unwrap();
            if event["kind"] == kind {
                return event;
            }
        }
    };
    let started = next("InstanceStarted");
    lab.mvm(&["instance", "sleep", POOL]);
    let slept = next("InstanceSlept");
    assert!(slept["seq"].as_u64() > started["seq"].as_u64(), "{slept}");
    assert_eq!(slept, lab.events("alice", "InstanceSlept")[0], "it is what the log has");

    let mut table = lab.mvm_beside(&["events", "alice", "-f"]);
    lab.mvm(&["instance", "wake", POOL]);
    assert_eq!(next("InstanceWoken")["subject"], slept["subject"]);
    lab.mvm(&["tenant", "destroy", "alice", "--force"]);
    assert!(following.wait().unwrap().success());
    let shown = BufReader::new(table.stdout.take().unwrap()).lines().map(Result::unwrap);
    let woken = shown.filter(|line| line.contains("  InstanceWoken  ")).count();
    assert_eq!((woken, table.wait().unwrap().success()), (1, true));
}

#[test]
fn a_follower_ends_with_its_reader() {
    let lab = Lab::new();
    lab.deploy(MANIFEST);
    let mut following = lab.mvm_beside(&["events", "alice", "--follow"]);
    let mut first = String::new();
    BufReader::new(following.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("  alice"), "{first}");
    assert!(following.wait().unwrap().success());
}
