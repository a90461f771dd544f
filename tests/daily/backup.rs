//! Data disks to files and back: on one node, from one to another, and with everything that dies in between.

use std::fs;
use std::path::{Path, PathBuf};

use mvm_harness::KillPoint::*;
use mvm_harness::{Lab, Value, answered, assert_tidy, echo, json, kill_at};

use crate::destroy::answer;

const WORKER: &str = "alice/workers";
const MESSAGES: &str = "/data/home/echo/messages";

/// Sends so many messages; the worker's memory counts them, its data disk keeps them.
fn send(lab: &Lab, messages: u64) {
    for _ in 0..messages {
        answered(lab, 8080);
    }
}

/// What the worker's memory has counted, and how many lines its data disk has.
fn state(lab: &Lab) -> (u64, u64) {
    let state = lab.get(8080, "/state").json();
    (state["count"].as_u64().unwrap(), state["lines"].as_u64().unwrap())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Where a backup may go.
fn place(lab: &Lab, name: &str) -> PathBuf {
    lab.file("backups/here", "").with_file_name(name)
}

fn back_up(lab: &Lab, to: &Path) -> Value {
    lab.json(&["instance", "backup", WORKER, path(to)])
}

/// How much there is of disks that are no machine's.
fn rests(lab: &Lab) -> usize {
    fs::read_dir(lab.data_dir().join("restores")).unwrap().count()
}

#[test]
fn a_sleepers_backup_is_restored_on_another_node() {
    let here = Lab::new();
    here.deploy(&echo("alice"));
    send(&here, 2);
    here.exec(WORKER, &["sh", "-c", "echo in memory >/tmp/here"]);
    here.mvm(&["instance", "sleep", WORKER]);
    let (before, file) = (here.info(WORKER), place(&here, "worker.backup"));
    let made = back_up(&here, &file);
    assert_eq!(here.info(WORKER), before, "it slept on");
    let address = here.instances(WORKER)[0].clone();
    let bytes = fs::metadata(&file).unwrap().len();
    assert_eq!((&made["instance"], &made["state"]), (&json!(address), &json!("sleeping")));
    assert_eq!((&made["bytes"], &made["data_disk_bytes"]), (&json!(bytes), &json!(64 << 20)));
    assert_eq!(here.events("alice", "InstanceBackedUp").len(), 1);
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 2, "only the backup was written");
    let refused = here.mvm_fails(&["instance", "backup", WORKER, path(&file)]);
    assert!(refused.contains("worker.backup is there already: --force replaces it"), "{refused}");

    // Another node, where the same is deployed and something else was said.
    let there = Lab::new();
    there.deploy(&format!(
        "{}\n[[pools]]\nid = \"small\"\nimage = \"minimal\"\ndata_disk_mib = 16\n\
         [[pools]]\nid = \"none\"\nimage = \"minimal\"\n",
        echo("alice")
    ));
    send(&there, 5);
    there.mvm(&["instance", "sleep", WORKER]);
    refuses_what_is_not_whole(&there, &file);

    there.mvm(&["instance", "create", "alice/none"]);
    let refused = there.mvm_fails(&["instance", "backup", "alice/none", path(&place(&there, "none"))]);
    assert!(refused.contains("has no data disk: there is nothing to back up"), "{refused}");
    assert!(!place(&there, "none").exists());

    let id = there.instances(WORKER)[0].rsplit('/').next().unwrap().to_owned();
    let command = ["instance", "restore", WORKER, path(&file)];
    let losses = [
        "This replaces what is on the data disk, and ends what is in memory",
        "(sleeping): data disk ",
        "snapshot ",
    ];
    assert_eq!(answer(&there, &command, &losses, "no"), 1);
    assert_eq!(state(&there), (5, 5), "nothing was done");
    there.mvm(&["instance", "sleep", WORKER]);
    assert_eq!(answer(&there, &command, &losses, &id), 0);
    assert_eq!(there.state(WORKER), "sleeping", "as it was");
    assert_eq!(answered(&there, 8080)["count"], 1, "its memory is gone, and it answers");
    assert_eq!(state(&there), (1, 3), "its data disk is the backup's");
    assert_eq!(there.exec(WORKER, &["ls", "/tmp"]), "");
    let told = there.events("alice", "InstanceRestored");
    assert!(told.len() == 1 && told[0]["detail"].as_str().unwrap().contains(&address), "{told:?}");
    assert_tidy(&there);

    // One more, by its id; another, since that is taken by then.
    let restored = there.json(&["instance", "restore", WORKER, path(&file), "--new"]);
    assert_eq!((&restored["instance"], &restored["of"]), (&json!(address), &json!(address)));
    assert_eq!((&restored["state"], &restored["checksum"]), (&json!("running"), &made["checksum"]));
    assert_eq!(there.exec(&address, &["cat", MESSAGES]).lines().count(), 2);
    let another = there.json(&["instance", "restore", WORKER, path(&file), "--new"]);
    assert_ne!(another["instance"], restored["instance"]);
    assert_eq!(there.json(&["pool", "info", WORKER])["spec"]["desired"]["running"], 3);
    assert_tidy(&there);
    assert_eq!(rests(&there), 0);
}

/// Each is one error, and nothing is another afterwards.
fn refuses_what_is_not_whole(lab: &Lab, whole: &Path) {
    let before = lab.info(WORKER);
    let content = fs::read(whole).unwrap();
    let file = |name: &str, content: &[u8]| {
        let file = place(lab, name);
        fs::write(&file, content).unwrap();
        file
    };
    let mut flipped = content.clone();
    flipped[content.len() / 2] ^= 1;
    let cases = [
        (file("flipped", &flipped), WORKER, "the backup is damaged: "),
        (file("cut-off", &content[..content.len() - 9]), WORKER, "the backup is damaged: "),
        (file("begun", &content[..30]), WORKER, "it is no backup that mvm made"),
        (file("foreign", b"PK\x03\x04 something else"), WORKER, "it is no backup that mvm made"),
        (file("empty", b""), WORKER, "it is no backup that mvm made"),
        (
            whole.to_owned(),
            "alice/small",
            "has data disks of 16 MiB; `mvm pool update alice/small --data-disk-mib 64`",
        ),
        (whole.to_owned(), "alice/none", "has machines without a data disk"),
        (place(lab, "absent"), WORKER, "absent: No such file"),
    ];
    for (file, to, says) in cases {
        let new = if to == WORKER { "--force" } else { "--new" };
        let said = lab.mvm_fails(&["instance", "restore", to, path(&file), new]);
        assert!(said.contains(says) && said.lines().count() == 1, "{}: {said}", file.display());
    }
    // One that is broken off before its end.
    let mut begun = lab.mvm_with_input(&["instance", "restore", WORKER, "-", "--force"]);
    std::io::Write::write_all(begun.stdin.as_mut().unwrap(), &content[..content.len() / 2]).unwrap();
    lab.wait_for("it arrives", || rests(lab) > 0);
    mvm_harness::kill(begun.id());
    begun.wait().unwrap();
    lab.wait_for("nothing is left of it", || rests(lab) == 0);
    let unasked = lab.mvm_fails(&["instance", "restore", WORKER, path(whole)]);
    assert!(unasked.contains("add --force"), "{unasked}");
    assert_eq!(lab.info(WORKER), before);
    assert_eq!(rests(lab), 0);
}

#[test]
fn what_runs_sleeps_for_its_backup_and_is_again_as_it_was() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    send(&lab, 2);
    let file = place(&lab, "worker.backup");
    let output = lab.try_mvm(&["instance", "backup", WORKER, path(&file)]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("going to sleep for its backup"), "{said}");
    assert_eq!(lab.state(WORKER), "running");
    send(&lab, 1);
    assert_eq!(state(&lab), (3, 3), "its memory goes on");

    lab.mvm(&["instance", "warm", WORKER]);
    let made = lab.json(&["instance", "backup", WORKER, path(&file), "--force"]);
    assert_eq!((&made["state"], lab.state(WORKER).as_str()), (&json!("warm"), "warm"));

    // Whoever gives it up, by Ctrl-C or by going away, does not leave it asleep.
    lab.exec(WORKER, &["dd", "if=/dev/urandom", "of=/data/random", "bs=1M", "count=8"]);
    let mut taking = lab.mvm_beside(&["instance", "backup", WORKER, "-"]);
    lab.wait_for("it sleeps for its backup", || lab.state(WORKER) == "sleeping");
    mvm_harness::kill(taking.id());
    taking.wait().unwrap();
    lab.wait_for("it runs again", || lab.state(WORKER) == "running");
    assert_eq!(state(&lab), (3, 3));

    kill_at(&mut lab, BackupAsleep.name(), &["instance", "backup", WORKER, path(&file), "--force"]);
    lab.wait_for("it runs again", || lab.state(WORKER) == "running");
    assert_eq!(state(&lab), (3, 3), "the next agent has woken it");
    assert_tidy(&lab);

    // Through standard output and input; what a person has stopped stays so.
    lab.mvm(&["instance", "stop", WORKER]);
    let output = lab.try_mvm(&["instance", "backup", WORKER, "-"]);
    assert!(output.status.success(), "{output:?}");
    lab.mvm(&["instance", "start", WORKER]);
    send(&lab, 4);
    lab.mvm(&["instance", "stop", WORKER]);
    let mut restoring = lab.mvm_with_input(&["instance", "restore", WORKER, "-", "--force"]);
    std::io::Write::write_all(restoring.stdin.as_mut().unwrap(), &output.stdout).unwrap();
    drop(restoring.stdin.take());
    let restored = restoring.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&restored.stdout);
    assert!(restored.status.success() && said.contains("it is stopped; `mvm instance start"), "{restored:?}");
    assert_eq!(lab.state(WORKER), "stopped");
    lab.mvm(&["instance", "start", WORKER]);
    assert_eq!(state(&lab), (0, 3));
    assert_eq!(rests(&lab), 0);
}

#[test]
fn a_restore_is_done_or_not_begun_wherever_the_agent_dies() {
    let mut lab = Lab::new();
    lab.deploy(&echo("alice"));
    send(&lab, 1);
    let file = place(&lab, "worker.backup");
    back_up(&lab, &file);
    let restore = ["instance", "restore", WORKER, path(&file), "--force"];
    for (point, asleep) in [
        (RestoreKept, false),
        (RestoreBegun, false),
        (RestoreStopped, true),
        (RestoreReplaced, false),
        (RestoreCommitted, true),
    ] {
        send(&lab, 1);
        let lines = lab.exec(WORKER, &["cat", MESSAGES]).lines().count() as u64;
        if asleep {
            lab.mvm(&["instance", "sleep", WORKER]);
        }
        let told = lab.events("alice", "InstanceRestored").len();
        kill_at(&mut lab, point.name(), &restore);
        lab.settle();
        let was = if asleep { "sleeping" } else { "running" };
        lab.wait_for("it is as it was", || lab.state(WORKER) == was);
        assert_tidy(&lab);
        assert_eq!(rests(&lab), 0);
        send(&lab, 1);
        let (old, new) = (lines + 1, 2);
        let expected = if point == RestoreKept { old } else { new };
        assert_eq!(state(&lab).1, expected, "at {}", point.name());
        let restored = lab.events("alice", "InstanceRestored").len() - told;
        assert_eq!(restored, usize::from(point != RestoreKept), "at {}", point.name());
    }
}
