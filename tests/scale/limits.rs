//! Quotas are refused before anything is done; where the host's memory ends, no more is started.

use mvm_harness::{Lab, Value};

use crate::manifest::empty_pool;

const POOL: &str = "alice/workers";

#[test]
fn a_quota_is_refused_before_anything_is_created() {
    let lab = Lab::new();
    lab.deploy(&empty_pool("max_running = 2\nmax_instances_per_pool = 4"));
    let before = lab.json(&["pool", "info", POOL]);
    for (options, quota) in [
        (["--running", "3", "--sleeping", "0"], "max_running = 2 is too small: 3 needed"),
        (["--running", "2", "--sleeping", "3"], "max_instances_per_pool = 4 is too small: 5 needed"),
    ] {
        let said = lab.mvm_fails(&[&["pool", "scale", POOL], &options[..]].concat());
        assert!(said.contains(quota), "{said}");
        assert_eq!(lab.json(&["pool", "info", POOL]), before);
    }
    let full = lab.mvm_fails(&["pool", "scale", POOL, "--running", "0", "--sleeping", "300"]);
    assert!(full.contains("subnet 10.240.0.0/24 is full"), "{full}");
    let unknown = lab.mvm_fails(&["pool", "scale", "alice/other", "--running", "1"]);
    assert!(unknown.contains("tenant alice has no pool `other`"), "{unknown}");
    assert_eq!(lab.json(&["instance", "list"]).as_array().unwrap().len(), 0);
    assert_eq!(std::fs::read_dir(lab.data_dir().join("instances")).unwrap().count(), 0);
    assert_eq!(lab.events("alice", "PoolScaled").len(), 0);
}

#[test]
fn where_the_hosts_memory_ends_no_more_is_started_and_it_says_what_helps() {
    let mut lab = Lab::new();
    lab.deploy(&empty_pool(""));
    lab.mvm(&["pool", "scale", POOL, "--running", "1"]);
    // As on a host that has nothing left.
    lab.restart_agent_with(&[("MVM_MEMORY_RESERVE_MIB", "1000000000")]);
    lab.settle();
    let output = lab.try_mvm(&["pool", "scale", POOL, "--running", "3", "-o", "json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in
        ["2 instances left as they were", "1000000000 MiB are kept free: 1 of 3 run", "mvm instance sleep"]
    {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["not_begun"].as_array().unwrap().len(), 2, "{result}");
    assert_eq!((&result["instances"]["running"], &result["instances"]["ready"]), (&1.into(), &2.into()));

    lab.restart_agent_with(&[("MVM_MEMORY_RESERVE_MIB", "some")]);
    let said = lab.mvm_fails(&["pool", "scale", POOL, "--running", "3"]);
    assert!(said.contains("MVM_MEMORY_RESERVE_MIB is a number of MiB, not `some`"), "{said}");

    // With memory again, the same is done that was left.
    lab.restart_agent_with(&[]);
    let said = lab.mvm(&["pool", "scale", POOL, "--running", "3"]);
    assert!(said.contains("2 started or woken; it has 3 running"), "{said}");
}
