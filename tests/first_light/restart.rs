//! The agent dies by SIGKILL and is started again: after every step of every act, and at any moment.

use std::time::Duration;

use mvm_harness::KillPoint::*;
use mvm_harness::{Echo, KillPoint, Lab, Value, answered, assert_tidy, die_in, echo, kill_at, now};

const GATEWAY: &str = "alice/gateways";
const WORKER: &str = "alice/workers";

/// The test that takes care of a point. A new point does not compile without one.
const fn act(point: KillPoint) -> &'static str {
    match point {
        DeployDisksMade | DeployCommitted | DeployNetworkMade | StartBegun | StartLaunched
        | StartRecorded | StartLoaded | StartGoing | StartConfirmed | StartReady | StartCommitted
        | BaseLaunched | BaseWritten | BaseCommitted => "deploy",
        // tests/clones
        WarmBegun | WarmPaused | ResumeBegun => "warm",
        BaseReady | BasePartlyWritten => "base",
        RecoverVmmEnded | RecoverResumed => "recover",
        BasesForgotten | RevisionsForgotten => "gc",
        SleepPagesBegun | SleepPagesWritten | SleepDeviceWritten | SleepManifestWritten => "snapshot",
        OwnOpened | OwnPartlyWritten | OwnContentWritten => "own image",
        SpareTaken | SpareMoved | SpareWrittenDown | SpareTapNamed | SpareDiskGiven => "spare",
        SleepBegun | SleepDrained | SleepPaused | SleepWritten | SleepCommitted | SleepEnded => "sleep",
        WakeBegun | WakeLaunched | WakeRecorded | WakeRestored | WakeConsumed | WakeGoing | WakeConfirmed
        | WakeReady | WakeCommitted => "wake",
        StopBegun | StopShutDown | StopEnded => "stop",
        DestroyMarked
        | DestroyBegun
        | DestroyEnded
        | DestroyFilesRemoved
        | DestroyMachinesGone
        | DestroyNetworkRemoved => "destroy",
        // tests/daily
        PoolDestroyMarked | PoolDestroyMachinesGone => "pool-destroy",
        BackupAsleep => "backup",
        RestoreKept | RestoreBegun | RestoreStopped | RestoreReplaced | RestoreCommitted => "restore",
        UpgradeBegun | UpgradeStopped | UpgradeKept | UpgradeReady | UpgradeCommitted | UpgradeFailed
        | UpgradeUndone | UpgradeBack => "upgrade",
    }
}

/// The points of one test.
pub fn points_of(name: &str) -> impl Iterator<Item = KillPoint> {
    KillPoint::ALL.iter().copied().filter(move |point| act(*point) == name)
}

fn pid(lab: &Lab, instance: &str) -> Value {
    lab.info(instance)["pid"].clone()
}

#[test]
fn a_deployment_is_finished_after_the_agent_died_in_the_middle_of_it() {
    let mut lab = Lab::without_agent();
    let manifest = echo("alice");
    let path = lab.file("deployment.toml", &manifest);
    let deploy = ["deploy", path.to_str().unwrap()];
    for point in points_of("deploy") {
        lab.start_agent_with(&[("MVM_KILL_AT", point.name())]);
        die_in(&mut lab, point.name(), &deploy);
        lab.start_agent();
        if point == DeployDisksMade {
            assert_eq!(lab.json(&["tenant", "list"]), Value::Array(Vec::new()), "nothing was committed");
            lab.deploy(&manifest);
        }
        lab.settle();
        assert_eq!(lab.instances(GATEWAY).len() + lab.instances(WORKER).len(), 2, "at {}", point.name());
        lab.wait_for("both run", || lab.state(GATEWAY) == "running" && lab.state(WORKER) == "running");
        assert_tidy(&lab);
        assert_eq!(answered(&lab, 8080)["hello"], "alice", "at {}", point.name());
        assert!(lab.deploy(&manifest).contains("nothing to do"), "the deployment is whole");
        lab.mvm(&["tenant", "destroy", "alice", "--force"]);
        lab.stop_agent();
    }
}

/// How long a machine stands still without an agent: more than its clock may be wrong.
const ASTRAY: Duration = Duration::from_secs(2);

#[test]
fn a_sleep_is_taken_back_or_finished_after_the_agent_died_in_the_middle_of_it() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    let gateway = pid(&lab, GATEWAY);
    let mut count = answered(&lab, 8080)["count"].as_u64().unwrap();
    for point in points_of("sleep") {
        let before = pid(&lab, WORKER);
        lab.restart_agent_with(&[("MVM_KILL_AT", point.name())]);
        lab.settle();
        die_in(&mut lab, point.name(), &["instance", "sleep", WORKER]);
        std::thread::sleep(ASTRAY);
        lab.start_agent();
        lab.settle();
        let committed = matches!(point, SleepCommitted | SleepEnded);
        let after = lab.info(WORKER);
        if committed {
            assert_eq!(after["state"], "sleeping", "at {}", point.name());
        } else {
            assert_eq!((&after["state"], &after["pid"]), (&"running".into(), &before), "at {}", point.name());
        }
        assert_tidy(&lab);
        count += 1;
        assert_eq!(answered(&lab, 8080)["count"], count, "its memory is whole, at {}", point.name());
        let time = lab.get(8080, "/state").json()["time"].as_f64().unwrap();
        assert!(
            (time - now()).abs() < 1.0,
            "its clock is right however long it stood still, at {}",
            point.name()
        );
        assert_eq!(lab.info(WORKER)["last_start"]["how"] == "wake", count > 5, "at {}", point.name());
        assert_eq!(pid(&lab, GATEWAY), gateway, "the gateway was not disturbed");
        let cancelled = lab.events("alice", "SleepCancelled").len();
        assert_eq!(cancelled as u64, count.min(5) - 1, "what was taken back is told, at {}", point.name());
    }
}

#[test]
fn a_wake_is_done_again_or_done_cold_after_the_agent_died_in_the_middle_of_it() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    let gateway = pid(&lab, GATEWAY);
    let mut count = answered(&lab, 8080)["count"].as_u64().unwrap();
    for point in points_of("wake") {
        lab.mvm(&["instance", "sleep", WORKER]);
        kill_at(&mut lab, point.name(), &["instance", "wake", WORKER]);
        lab.settle();
        let info = lab.info(WORKER);
        assert_eq!(info["state"], "running", "at {}: {info}", point.name());
        assert_tidy(&lab);
        let refused = lab.events("alice", "WakeRefused");
        let again = answered(&lab, 8080)["count"].as_u64().unwrap();
        if matches!(point, WakeBegun | WakeLaunched | WakeRecorded | WakeRestored | WakeCommitted) {
            count += 1;
            assert_eq!(again, count, "its snapshot was not consumed, or it had woken, at {}", point.name());
            assert_eq!(info["last_start"]["how"], "wake");
            assert_eq!(info["reason"], Value::Null);
        } else {
            count = 1;
            assert_eq!(again, count, "a consumed snapshot is never used again, at {}", point.name());
            assert_eq!(info["last_start"]["how"], "cold boot");
            let reason = info["reason"].as_str().unwrap();
            assert!(reason.contains("its snapshot had been consumed when the agent ended"), "{reason}");
            let detail = refused.last().unwrap()["detail"].as_str().unwrap();
            assert!(detail.contains("consumed when the agent ended"), "{detail}");
        }
        assert_eq!(pid(&lab, GATEWAY), gateway, "the gateway was not disturbed");
    }
    assert_eq!(lab.events("alice", "WakeRefused").len(), 4);
}

#[test]
fn a_stop_is_finished_after_the_agent_died_in_the_middle_of_it() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    for point in points_of("stop") {
        lab.mvm(&["instance", "start", WORKER]);
        kill_at(&mut lab, point.name(), &["instance", "stop", WORKER]);
        lab.settle();
        assert_eq!(lab.state(WORKER), "stopped", "at {}", point.name());
        assert_tidy(&lab);
    }
    let stopped = lab.events("alice", "InstanceStopped");
    assert_eq!(stopped[0]["detail"], "in order", "the guest was told again");
}

#[test]
fn machines_run_on_and_answer_while_the_agent_is_killed_at_any_moment() {
    let mut lab = Lab::new();
    lab.deploy(&Echo { workers: 2, ..Echo::default() }.manifest());
    let gateway = pid(&lab, GATEWAY);
    let workers = lab.instances(WORKER);
    let (busy, still) = (&workers[0], &workers[1]);
    let undisturbed = pid(&lab, still);
    // Moments in milliseconds after the command; they need not hit anything to be worth trying.
    for (round, moment) in [3, 17, 29, 41, 67, 97, 131, 173].into_iter().enumerate() {
        let act = if lab.state(busy) == "sleeping" { "wake" } else { "sleep" };
        let mut command = lab.mvm_beside(&["instance", act, busy]);
        std::thread::sleep(Duration::from_millis(moment));
        lab.kill_agent();
        command.wait().unwrap();
        lab.start_agent();
        lab.settle();
        let state = lab.state(busy);
        assert!(state == "running" || state == "sleeping", "round {round}: {}", lab.info(busy));
        assert_tidy(&lab);
        assert_eq!((pid(&lab, GATEWAY), pid(&lab, still)), (gateway.clone(), undisturbed.clone()));
        answered(&lab, 8080);
    }
}

#[test]
fn an_agent_that_dies_while_it_finishes_what_another_left_leaves_it_to_the_next() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    for (first, second) in [(WakeLaunched, WakeConsumed), (WakeConsumed, StartLaunched)] {
        answered(&lab, 8080);
        lab.mvm(&["instance", "sleep", WORKER]);
        lab.restart_agent_with(&[("MVM_KILL_AT", first.name())]);
        die_in(&mut lab, first.name(), &["instance", "wake", WORKER]);
        lab.spawn_agent_with(&[("MVM_KILL_AT", second.name())]);
        lab.wait_for_killed_agent(second.name());
        lab.start_agent();
        lab.settle();
        let info = lab.info(WORKER);
        assert_eq!((&info["state"], &info["last_start"]["how"]), (&"running".into(), &"cold boot".into()));
        assert!(info["reason"].as_str().unwrap().contains("had been consumed"), "{info}");
        assert_tidy(&lab);
        assert_eq!(answered(&lab, 8080)["count"], 1);
    }
}

#[test]
fn what_begins_asleep_is_asleep_after_the_agent_died_on_the_way_there() {
    let mut lab = Lab::without_agent();
    let keys = "desired_sleeping = 1";
    let manifest = Echo { workers: 0, worker_keys: keys, ..Echo::default() }.manifest();
    let path = lab.file("deployment.toml", &manifest);
    for point in [StartGoing, SleepPaused, SleepCommitted] {
        lab.start_agent_with(&[("MVM_KILL_AT", point.name())]);
        die_in(&mut lab, point.name(), &["deploy", path.to_str().unwrap()]);
        lab.start_agent();
        lab.wait_for("it is asleep", || lab.state(WORKER) == "sleeping" && lab.state(GATEWAY) == "running");
        lab.settle();
        assert_tidy(&lab);
        assert_eq!(answered(&lab, 8080)["count"], 1);
        lab.mvm(&["tenant", "destroy", "alice", "--force"]);
        lab.stop_agent();
    }
}

#[test]
fn what_was_deployed_and_not_handed_over_reaches_machines_that_run() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    let gateway = pid(&lab, GATEWAY);
    let more = r#"
[[publish]]
port = 8090
pool = "gateways"
target_port = 8090

[[routes]]
name = "another"
match_rule = { port = 8090 }
target = { pool_id = "workers", instance_selector = "any", target_port = 8080 }
"#;
    let path = lab.file("more.toml", &Echo { more, ..Echo::default() }.manifest());
    kill_at(&mut lab, DeployCommitted.name(), &["deploy", path.to_str().unwrap()]);
    assert_eq!(answered(&lab, 8090)["hello"], "alice");
    assert_eq!(pid(&lab, GATEWAY), gateway);
    assert_tidy(&lab);
}

#[test]
fn a_deployment_is_finished_after_the_agent_was_killed_at_any_moment_of_it() {
    let mut lab = Lab::without_agent();
    let path = lab.file("deployment.toml", &echo("alice"));
    for moment in [150, 900, 2200, 4100] {
        lab.start_agent();
        let mut command = lab.mvm_beside(&["deploy", path.to_str().unwrap()]);
        std::thread::sleep(Duration::from_millis(moment));
        lab.kill_agent();
        command.wait().unwrap();
        lab.start_agent();
        // Before the commit there is nothing, after it everything.
        lab.mvm(&["deploy", path.to_str().unwrap()]);
        lab.settle();
        assert_eq!(lab.instances(GATEWAY).len() + lab.instances(WORKER).len(), 2, "after {moment} ms");
        lab.wait_for("both run", || lab.state(GATEWAY) == "running" && lab.state(WORKER) == "running");
        assert_tidy(&lab);
        assert_eq!(answered(&lab, 8080)["count"], 1, "after {moment} ms");
        lab.mvm(&["tenant", "destroy", "alice", "--force"]);
        lab.stop_agent();
    }
}
