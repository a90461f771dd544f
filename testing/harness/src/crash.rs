//! Agents that die by SIGKILL, and what must hold after one did.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Lab;

/// Lets the agent die at a point of the act that a command asks for, and starts it again.
#[track_caller]
pub fn kill_at(lab: &mut Lab, point: &str, command: &[&str]) {
    lab.restart_agent_with(&[("MVM_KILL_AT", point)]);
    lab.settle();
    die_in(lab, point, command);
    lab.start_agent();
}

/// The command does not get to its end, because the agent dies in it.
#[track_caller]
pub fn die_in(lab: &mut Lab, point: &str, command: &[&str]) {
    eprintln!("at {point}");
    let output = lab.try_mvm(command);
    lab.wait_for_killed_agent(point);
    assert!(!output.status.success() || point.ends_with("committed"), "mvm {command:?} came to its end");
}

/// The agent stands still at a point of the act that a command asks for; what is given is done meanwhile, and the agent
/// goes on. It is to be started with that point in `MVM_STOP_AT`. Tells whether the command succeeded.
#[track_caller]
pub fn stop_in(lab: &Lab, point: &str, command: &[&str], meanwhile: impl FnOnce()) -> bool {
    eprintln!("at {point}");
    let asked = lab.mvm_beside(command);
    let agent = lab.agent_pid().expect("the agent runs");
    lab.wait_for("the agent stands still", || {
        let stat = std::fs::read_to_string(format!("/proc/{agent}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    });
    meanwhile();
    crate::thaw(agent);
    asked.wait_with_output().unwrap().status.success()
}

/// Nothing is doubled, orphaned or left over: there are the VMMs that the agent lists, and networks are as they
/// should be.
#[track_caller]
pub fn assert_tidy(lab: &Lab) {
    lab.settle();
    let listed = lab.json(&["instance", "list"]);
    let mut pids = BTreeSet::new();
    for instance in listed.as_array().unwrap() {
        let part = |name: &str| instance[name].as_str().unwrap();
        let address = format!("{}/{}/{}", part("tenant"), part("pool"), part("id"));
        let info = lab.info(&address);
        let running = info["state"] == "running" || info["state"] == "warm";
        assert_eq!(info["pid"].is_u64(), running, "a VMM where it runs: {info}");
        pids.extend(info["pid"].as_u64().map(|pid| u32::try_from(pid).unwrap()));
        let partial = lab.data_dir().join("instances").join(part("id")).join("snapshot.partial");
        assert!(!partial.exists(), "a part of a snapshot is left");
        let snapshot = lab.data_dir().join("instances").join(part("id")).join("snapshot");
        assert!(!running || !info["snapshot_bytes"].is_u64(), "a running machine has no snapshot: {info}");
        assert!(snapshot.exists() || info["state"] != "sleeping", "a sleeping machine has one: {info}");
    }
    // Another is there while an agent that has just started makes a base; spares come and go by themselves.
    lab.wait_for("there are only the VMMs that the agent lists and spares, with a cgroup each", || {
        let (spares, vmms) = (lab.spares(), lab.vmms());
        let others: BTreeSet<u32> = vmms.iter().copied().filter(|pid| !spares.contains(pid)).collect();
        others == pids && (lab.cgroups().is_empty() || lab.cgroups() == names_of(&vmms))
    });
    let report = lab.json(&["net", "verify"]);
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report}");
}

/// The names of the cgroups of VMMs, where there are any: those that the VMMs have themselves.
fn names_of(pids: &[u32]) -> BTreeSet<String> {
    pids.iter().map(|pid| crate::cleanup::name_of_vmm(*pid)).collect()
}

/// A message through the published port is answered by the worker, now or in a while.
#[track_caller]
pub fn answered(lab: &Lab, port: u16) -> Value {
    let mut answer = Value::Null;
    lab.wait_for("a message is answered", || match lab.try_get(port, "/hello") {
        Some(response) if response.status == 200 => {
            answer = response.json();
            true
        }
        _ => false,
    });
    answer
}
