//! A host that comes back: what ran runs again, what slept sleeps with its memory, and networks are there anew.

use mvm_harness::{Echo, KillPoint, Lab, answered, assert_tidy, die_in, echo_with};

const SLEEPER: &str = "alice/workers";
const RUNNER: &str = "alice/others";
const STOPPED: &str = "alice/idle";
const GATEWAY: &str = "alice/gateways";

/// The count of messages in a machine's memory, and of those on its disk.
fn state(lab: &Lab, port: u16) -> (u64, u64) {
    answered(lab, port);
    let state = lab.get(port, "/state").json();
    (state["count"].as_u64().unwrap(), state["lines"].as_u64().unwrap())
}

#[test]
fn after_a_reboot_everything_is_as_it_should_be_and_after_another_one_too() {
    let mut lab = Lab::new();
    lab.deploy(&echo_with("others", "idle"));
    lab.mvm(&["instance", "stop", STOPPED]);
    let (mut slept, mut ran) = (state(&lab, 8080), state(&lab, 8081));
    let identity = |lab: &Lab| {
        [SLEEPER, RUNNER].map(|worker| {
            let info = lab.info(worker);
            (info["id"].clone(), info["ip"].clone(), info["mac"].clone())
        })
    };
    let before = identity(&lab);
    for _ in 0..2 {
        lab.mvm(&["instance", "sleep", SLEEPER]);
        lab.reboot();
        lab.start_agent();
        lab.settle();
        for (instance, wanted) in
            [(GATEWAY, "running"), (SLEEPER, "sleeping"), (RUNNER, "running"), (STOPPED, "stopped")]
        {
            lab.wait_for(&format!("{instance} is {wanted}"), || lab.state(instance) == wanted);
        }
        assert_tidy(&lab);
        assert_eq!(identity(&lab), before);
        let reasons: Vec<_> = lab.events("alice", "InstanceFailed");
        assert!(
            reasons.len() >= 2 && reasons.iter().all(|event| event["detail"] == "the host was rebooted"),
            "why gateway and worker were started anew: {reasons:?}"
        );

        let now = state(&lab, 8080);
        assert_eq!(now, (slept.0 + 1, slept.1 + 1), "it slept through it, with its memory and disk");
        assert_eq!(lab.info(SLEEPER)["last_start"]["how"], "wake", "{}", lab.info(SLEEPER));
        slept = now;
        let now = state(&lab, 8081);
        assert_eq!(now, (1, ran.1 + 1), "it was started again, with its disk");
        ran = now;
    }
}

#[test]
fn a_reboot_in_the_middle_of_an_act_is_as_the_end_of_the_agent_in_it() {
    let mut lab = Lab::new();
    lab.deploy(&Echo { tenant: "alice", ..Echo::default() }.manifest());
    let (_, lines) = state(&lab, 8080);
    // Its snapshot is not committed, so its memory is lost with its VMM; its disk is not.
    lab.restart_agent_with(&[("MVM_KILL_AT", KillPoint::SleepWritten.name())]);
    lab.settle();
    die_in(&mut lab, KillPoint::SleepWritten.name(), &["instance", "sleep", SLEEPER]);
    lab.reboot();
    lab.start_agent();
    lab.settle();
    assert_eq!(state(&lab, 8080), (1, lines + 1));

    // Consumed: never used again.
    lab.mvm(&["instance", "sleep", SLEEPER]);
    lab.restart_agent_with(&[("MVM_KILL_AT", KillPoint::WakeConsumed.name())]);
    lab.settle();
    die_in(&mut lab, KillPoint::WakeConsumed.name(), &["instance", "wake", SLEEPER]);
    lab.reboot();
    lab.start_agent();
    lab.settle();
    assert_eq!(state(&lab, 8080), (1, lines + 2));
    assert_eq!(lab.info(SLEEPER)["last_start"]["how"], "cold boot");
}
