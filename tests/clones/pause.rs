//! Warm: a machine that stands still has its memory, and goes on with the right time for whoever needs it.

use std::time::Duration;

use mvm_harness::{Echo, KillPoint, Lab, assert_tidy, die_in, freeze, now, thaw};

use crate::workers::{POOL, Workers, ask, count as count_worker, own_image};

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

/// Has the only worker's service stand still from now on, and go on after so many seconds of its machine's time, if ever.
fn hang_service(lab: &Lab, seconds: Option<u32>) {
    let pid = ask(lab, POOL, "os.getpid()");
    let later =
        seconds.map(|seconds| format!("setsid sh -c 'sleep {seconds}; kill -CONT {pid}' > /dev/null 2>&1 &"));
    let script = format!("kill -STOP {pid}; {}", later.unwrap_or_default());
    lab.exec(POOL, &["sh", "-c", &script]);
}

#[test]
fn a_paused_machine_whose_service_takes_its_time_is_waited_for_as_at_a_start() {
    let lab = Workers::default().in_lab();
    assert_eq!(count_worker(&lab).0, 1);
    let pid = lab.info(POOL)["pid"].clone();
    lab.wait_for("nothing is in hand", || lab.info(POOL)["holds"] == 0);
    // Less than its recipe allows it.
    hang_service(&lab, Some(40));
    lab.mvm(&["instance", "warm", POOL]);
    lab.mvm(&["instance", "resume", POOL]);
    let info = lab.info(POOL);
    assert_eq!((&info["state"], &info["pid"]), (&"running".into(), &pid), "{info}");
    assert_eq!(count_worker(&lab).0, 2, "its memory is whole");
}

#[test]
fn a_paused_machine_whose_service_is_down_does_not_run_when_it_is_resumed() {
    let lab = Lab::new();
    let image = own_image(&lab);
    let recipe = std::fs::read_to_string(image.join("image.toml")).unwrap();
    lab.file("worker/image.toml", &recipe.replace("timeout_seconds = 60", "timeout_seconds = 20"));
    Workers { image, ..Workers::default() }.deploy(&lab);
    assert_eq!(count_worker(&lab).0, 1);
    lab.wait_for("nothing is in hand", || lab.info(POOL)["holds"] == 0);
    hang_service(&lab, None);
    lab.mvm(&["instance", "warm", POOL]);
    let said = lab.mvm_fails(&["instance", "resume", POOL]);
    assert!(said.contains("service `worker` was not ready after 20 s"), "{said}");
    let info = lab.info(POOL);
    assert_eq!(info["state"], "failed", "{info}");
    let reason = info["reason"].as_str().unwrap();
    assert!(reason.contains("could not be resumed") && reason.contains("not ready"), "{reason}");
    assert_eq!(lab.events("alice", "InstanceResumed").len(), 0);
    assert_tidy(&lab);
    assert_eq!(count_worker(&lab).0, 1, "the next message starts it anew");
}

#[test]
fn a_machine_that_stands_still_and_does_not_answer_the_next_agent_at_once_keeps_its_memory() {
    let mut lab = Workers { running: 2, ..Workers::default() }.in_lab();
    let workers = lab.instances(POOL);
    let before: Vec<_> = workers.iter().map(|worker| lab.info(worker)["pid"].clone()).collect();
    for worker in &workers {
        assert_eq!(ask(&lab, worker, "memory.setdefault('mark', 7)"), 7);
    }
    lab.mvm(&["instance", "warm", &workers[0]]);
    let point = KillPoint::SleepPaused.name();
    lab.restart_agent_with(&[("MVM_KILL_AT", point)]);
    lab.settle();
    die_in(&mut lab, point, &["instance", "sleep", &workers[1]]);
    let vmms = lab.vmms();
    vmms.iter().copied().for_each(freeze);
    lab.start_agent();
    lab.wait_for("it was tried in vain to take them over", || {
        let log = std::fs::read_to_string(lab.log()).unwrap();
        workers.iter().all(|worker| {
            log.lines().any(|line| line.contains("not taken over yet") && line.contains(worker.as_str()))
        })
    });
    vmms.into_iter().for_each(thaw);
    lab.settle();
    lab.mvm(&["instance", "resume", &workers[0]]);
    for (worker, pid) in workers.iter().zip(before) {
        let info = lab.info(worker);
        assert_eq!((&info["state"], &info["pid"]), (&"running".into(), &pid), "{info}");
        assert_eq!(ask(&lab, worker, "memory.get('mark')"), 7);
    }
    assert_eq!(lab.events("alice", "SleepCancelled").len(), 1);
    assert_tidy(&lab);
}
