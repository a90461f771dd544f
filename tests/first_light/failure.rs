//! VMMs that end without anyone having asked for it.

use mvm_harness::{Echo, Lab, Value, answered, assert_tidy, echo, kill};

const GATEWAY: &str = "alice/gateways";
const WORKER: &str = "alice/workers";
const KILLED: &str = "the VMM was killed by signal 9";

fn pid(lab: &Lab, instance: &str) -> u32 {
    u32::try_from(lab.info(instance)["pid"].as_u64().unwrap()).unwrap()
}

fn reason(lab: &Lab, instance: &str) -> String {
    lab.info(instance)["reason"].as_str().unwrap_or_default().to_owned()
}

fn kill_and_see_it_run_again(lab: &Lab, instance: &str) {
    let before = pid(lab, instance);
    kill(before);
    lab.wait_for("it runs again", || {
        let info = lab.info(instance);
        info["state"] == "running" && info["pid"] != before
    });
}

/// What the log says of failures of an instance.
fn failures(lab: &Lab, instance: &str) -> Vec<Value> {
    let address = &lab.instances(instance)[0];
    lab.events("alice", "InstanceFailed").into_iter().filter(|event| event["subject"] == **address).collect()
}

#[test]
fn a_killed_worker_is_seen_to_have_failed_and_started_by_the_next_message() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    assert_eq!(answered(&lab, 8080)["count"], 1);
    kill(pid(&lab, WORKER));
    lab.wait_for("it is seen", || lab.state(WORKER) == "failed");
    assert_eq!(reason(&lab, WORKER), KILLED);
    assert_eq!(failures(&lab, WORKER)[0]["detail"], KILLED);
    assert_tidy(&lab);
    assert_eq!(answered(&lab, 8080)["count"], 1, "it was started cold");
    assert_eq!(lab.state(WORKER), "running");
    assert_eq!(lab.info(WORKER)["reason"], Value::Null);
    assert_eq!(failures(&lab, WORKER).len(), 1);
    assert_tidy(&lab);
}

#[test]
fn a_killed_gateway_is_started_again_by_itself_every_time() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    let worker = pid(&lab, WORKER);
    for time in 1..=2 {
        kill_and_see_it_run_again(&lab, GATEWAY);
        let failures = failures(&lab, GATEWAY);
        assert_eq!(failures.len(), time);
        assert_eq!(failures[time - 1]["detail"], KILLED);
        assert_eq!(answered(&lab, 8080)["count"], time, "the worker was not disturbed");
        assert_eq!(pid(&lab, WORKER), worker);
        assert_tidy(&lab);
    }
}

#[test]
fn what_was_killed_while_no_agent_ran_is_seen_at_the_next_start() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    let (gateway, worker) = (pid(&lab, GATEWAY), pid(&lab, WORKER));
    lab.kill_agent();
    kill(gateway);
    kill(worker);
    lab.start_agent();
    lab.wait_for("the worker's end is seen", || lab.state(WORKER) == "failed");
    let why = "the VMM ended while no agent was running; its exit status is unknown";
    assert_eq!(reason(&lab, WORKER), why);
    assert_eq!(failures(&lab, WORKER)[0]["detail"], why);
    lab.wait_for("the gateway runs again", || lab.state(GATEWAY) == "running");
    assert_eq!(failures(&lab, GATEWAY)[0]["detail"], why);
    assert_tidy(&lab);
    assert_eq!(answered(&lab, 8080)["count"], 1);
    assert_tidy(&lab);
}

#[test]
fn what_is_never_restarted_waits_for_a_person() {
    let never = "restart = \"never\"";
    let lab = Lab::new();
    lab.deploy(&Echo { worker_keys: never, gateway_keys: never, ..Echo::default() }.manifest());
    kill(pid(&lab, WORKER));
    lab.wait_for("it is seen", || lab.state(WORKER) == "failed");
    let response = lab.get(8080, "/hello");
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(lab.state(WORKER), "failed");
    kill(pid(&lab, GATEWAY));
    lab.wait_for("it is seen", || lab.state(GATEWAY) == "failed");
    assert!(lab.try_get(8080, "/hello").is_none(), "nobody answers");
    assert_eq!(lab.state(GATEWAY), "failed");
    assert_tidy(&lab);
    lab.mvm(&["instance", "start", WORKER]);
    lab.mvm(&["instance", "start", GATEWAY]);
    assert_eq!(answered(&lab, 8080)["count"], 1);
    assert_tidy(&lab);
}

#[test]
fn a_failed_gateway_that_a_person_stopped_stays_stopped() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    kill_and_see_it_run_again(&lab, GATEWAY);
    // The second restart in a row waits for a second.
    kill(pid(&lab, GATEWAY));
    lab.wait_for("it is seen", || lab.state(GATEWAY) == "failed");
    lab.mvm(&["instance", "stop", GATEWAY]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let info = lab.info(GATEWAY);
    assert_eq!((&info["state"], &info["act"]), (&"stopped".into(), &Value::Null));
    lab.kill_agent();
    lab.start_agent();
    lab.settle();
    assert_eq!(lab.state(GATEWAY), "stopped");
    assert_tidy(&lab);
}
