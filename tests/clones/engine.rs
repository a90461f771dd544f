//! QEMU is replaced while the agent runs, as a package's upgrade does it.

use std::process::Command;

use mvm_harness::{Lab, Value, assert_tidy};

use crate::workers::{POOL, Workers, ask, bases, how};

/// Has the agent see a /usr that can be written, over this host's own. What it mounts elsewhere, as namespaces, is seen by
/// all; and what is mounted here goes with it.
const OWN_USR: &str = r#"
set -e
mount --make-private /
mount -t tmpfs own-usr /mnt
mkdir /mnt/changed /mnt/work
mount -t overlay own-usr -o lowerdir=/usr,upperdir=/mnt/changed,workdir=/mnt/work /usr
exec "$@"
"#;

/// Another file of another content in its place, which runs guests as it did.
const REPLACE: &str = "
set -e
cd /usr/bin
cp qemu-system-x86_64 qemu.new
printf another >> qemu.new
mv qemu.new qemu-system-x86_64
";

fn replace_engine(lab: &Lab) {
    let agent = lab.agent_pid().unwrap().to_string();
    let status = Command::new("nsenter").args(["--mount", "--target", &agent, "sh", "-c", REPLACE]).status();
    assert!(status.unwrap().success());
}

fn engine_of(lab: &Lab, instance: &str) -> Value {
    let id = lab.info(instance)["id"].as_str().unwrap().to_owned();
    let launched = std::fs::read_to_string(lab.run_dir().join("m").join(id).join("launch.json")).unwrap();
    launched.parse::<Value>().unwrap()["shape"]["engine"]["sha256"].clone()
}

#[test]
fn machines_start_with_a_qemu_that_was_replaced_under_the_agent_and_what_ran_goes_on() {
    let mut lab = Lab::without_agent();
    lab.leave_agent_to(&["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", OWN_USR, "sh"]);
    lab.wait_for("the agent answers", || lab.try_mvm(&["agent", "status"]).status.success());
    let agent = lab.agent_pid();
    Workers { running: 3, ..Workers::default() }.deploy(&lab);
    let workers = lab.instances(POOL);
    let [runs, sleeps, stops] = [&workers[0], &workers[1], &workers[2]].map(String::as_str);
    for worker in [runs, sleeps, stops] {
        assert_eq!(ask(&lab, worker, "memory.setdefault('mark', 7)"), 7);
    }
    lab.mvm(&["instance", "sleep", sleeps]);
    lab.mvm(&["instance", "stop", stops]);
    let (old, pid, made) = (engine_of(&lab, runs), lab.info(runs)["pid"].clone(), bases(&lab));
    assert_eq!(made.len(), 1);

    replace_engine(&lab);
    lab.mvm(&["instance", "wake", sleeps]);
    let refused = lab.events("alice", "WakeRefused");
    assert_eq!(refused.len(), 1, "not even tried, and told");
    let detail = refused[0]["detail"].as_str().unwrap();
    assert!(detail.contains("(S4): the engine was "), "{detail}");
    assert_eq!(how(&lab, sleeps), "cold boot");
    assert_eq!(ask(&lab, sleeps, "memory.get('mark')"), Value::Null, "nothing of its memory is there");
    assert_ne!(engine_of(&lab, sleeps), old);

    lab.wait_for("a base is made anew", || lab.events("alice", "BaseMade").len() == 2);
    lab.mvm(&["instance", "start", stops]);
    assert_eq!(how(&lab, stops), "clone", "{}", lab.info(stops));
    assert_eq!(engine_of(&lab, stops), engine_of(&lab, sleeps));

    let info = lab.info(runs);
    assert_eq!((&info["state"], &info["pid"]), (&"running".into(), &pid), "{info}");
    assert_eq!(ask(&lab, runs, "memory.get('mark')"), 7, "what ran goes on");
    // It can be put to sleep, too; its memory does not fit any more.
    lab.mvm(&["instance", "sleep", runs]);
    lab.mvm(&["instance", "wake", runs]);
    assert_eq!(how(&lab, runs), "cold boot");
    assert_eq!(lab.agent_pid(), agent, "nobody restarted it");
    assert_eq!(lab.events("alice", "WakeFailed").len(), 0);
    assert_tidy(&lab);
}
