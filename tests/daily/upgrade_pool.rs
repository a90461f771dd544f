//! Another image for a pool whose machines have something to lose: they keep it, or have again what they had.

use std::path::PathBuf;

use mvm_harness::KillPoint::{self, *};
use mvm_harness::{Lab, assert_tidy, echo_image, kill_at};

const POOL: &str = "alice/workers";
const MESSAGES: &str = "/data/home/echo/messages";

/// A recipe of the echo worker whose health is this word.
fn image(lab: &Lab, word: &str) -> String {
    let source = read("echo.py");
    let changed = source.replace("{\"status\": \"ok\"}", &format!("{{\"status\": \"{word}\"}}"));
    assert_ne!(source, changed);
    recipe(lab, word, &changed, &read("image.toml"))
}

/// One that ruins its data and is never ready.
fn broken_image(lab: &Lab) -> String {
    let source = read("echo.py");
    let ruin = "open(MESSAGES, \"w\").write(\"ruined\")\nraise SystemExit(\"broken on purpose\")\n";
    let changed = source.replace("PORT = int(", &format!("{ruin}PORT = int("));
    let description = read("image.toml");
    let short = description.replace("timeout_seconds = 60", "timeout_seconds = 3");
    assert!(source != changed && description != short);
    recipe(lab, "broken", &changed, &short)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(echo_image().join(file)).unwrap()
}

fn recipe(lab: &Lab, name: &str, source: &str, description: &str) -> String {
    lab.file(&format!("{name}/echo.py"), source);
    lab.file(&format!("{name}/image.lock"), &read("image.lock"));
    let folder: PathBuf = lab.file(&format!("{name}/image.toml"), description);
    folder.parent().unwrap().to_str().unwrap().to_owned()
}

fn deploy(lab: &Lab, image: &str, sleeping: u32) -> Vec<String> {
    lab.deploy(&format!(
        "[tenant]\nid = \"alice\"\n[[pools]]\nid = \"workers\"\nimage = \"{image}\"\nvcpus = 1\nmem_mib = 256\n\
         data_disk_mib = 64\ndesired_running = 1\ndesired_sleeping = {sleeping}\nspares = 0\n"
    ));
    let workers = lab.instances(POOL);
    for worker in &workers {
        let state = lab.state(worker);
        lab.exec(worker, &["sh", "-c", &format!("echo a message of {worker} >>{MESSAGES}; sync")]);
        if state == "sleeping" {
            lab.mvm(&["instance", "sleep", worker]);
        }
    }
    workers
}

/// The word of the image that a machine runs with.
fn word(lab: &Lab, worker: &str) -> String {
    let health = lab.exec(worker, &["wget", "-q", "-O-", "http://127.0.0.1:8080/healthz"]);
    let health: mvm_harness::Value = serde_json::from_str(&health).unwrap();
    health["status"].as_str().unwrap().to_owned()
}

#[track_caller]
fn assert_kept(lab: &Lab, worker: &str) {
    assert_eq!(lab.exec(worker, &["cat", MESSAGES]).trim(), format!("a message of {worker}"));
}

fn rests(lab: &Lab) -> usize {
    std::fs::read_dir(lab.data_dir().join("restores")).unwrap().count()
}

fn states(lab: &Lab, workers: &[String]) -> Vec<String> {
    workers.iter().map(|worker| lab.state(worker)).collect()
}

#[test]
fn machines_keep_their_data_and_are_as_they_were_with_the_new_image() {
    let lab = Lab::new();
    let (one, two) = (image(&lab, "one"), image(&lab, "two"));
    let workers = deploy(&lab, &one, 1);
    let before = states(&lab, &workers);
    let dry = lab.mvm(&["pool", "update", POOL, "--image", &two, "--dry-run"]);
    assert!(dry.matches(": upgraded").count() == 2 && dry.contains("nothing was done"), "{dry}");
    assert_eq!((states(&lab, &workers), lab.events("alice", "InstanceUpgraded").len()), (before.clone(), 0));
    let told = lab.mvm(&["pool", "update", POOL, "--image", &two]);
    assert_eq!(told.matches("upgraded to the new image").count(), 2, "{told}");
    assert_eq!(states(&lab, &workers), before);
    assert_eq!((lab.events("alice", "InstanceUpgraded").len(), rests(&lab)), (2, 0));
    for worker in &workers {
        assert_kept(&lab, worker);
        assert_eq!(word(&lab, worker), "two");
    }
    assert_tidy(&lab);
    let told = lab.mvm(&["pool", "update", POOL, "--image", &two]);
    assert!(told.contains("nothing to do"), "{told}");

    let told = lab.mvm(&["pool", "update", POOL, "--image", &one, "--later"]);
    assert!(told.contains("at its next cold start"), "{told}");
    assert_eq!(word(&lab, &workers[0]), "two");
    let dry = lab.mvm(&["pool", "update", POOL, "--image", &one, "--dry-run"]);
    assert_eq!(dry.matches(": upgraded").count(), 2, "{dry}");
    lab.mvm(&["pool", "update", POOL, "--image", &one]);
    assert_eq!(word(&lab, &workers[0]), "one");
    assert_kept(&lab, &workers[0]);
    let unknown = lab.mvm_fails(&["pool", "update", POOL, "--image", "python@2"]);
    assert!(unknown.contains("python@3.11"), "{unknown}");
}

#[test]
fn an_image_that_is_not_ready_is_given_up_and_everything_is_as_before() {
    let lab = Lab::new();
    let (one, broken) = (image(&lab, "one"), broken_image(&lab));
    let workers = deploy(&lab, &one, 1);
    let (before, pool) = (states(&lab, &workers), lab.json(&["pool", "info", POOL]));
    let output = lab.try_mvm(&["pool", "update", POOL, "--image", &broken]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("was not upgraded") && told.contains("did not come up with the new image"),
        "{told}"
    );
    assert!(told.contains("1 that differ after it were left as they are"), "{told}");
    let now = lab.json(&["pool", "info", POOL]);
    for key in ["image", "revision"] {
        assert_eq!(now[key], pool[key]);
    }
    assert_eq!(states(&lab, &workers), before);
    assert_eq!((lab.events("alice", "UpgradeFailed").len(), rests(&lab)), (1, 0));
    for worker in &workers {
        assert_kept(&lab, worker);
        assert_eq!(word(&lab, worker), "one");
    }
    assert_tidy(&lab);
}

#[test]
fn a_machine_that_is_two_images_behind_goes_back_to_its_own_and_its_pool_to_the_one_between() {
    let mut lab = Lab::new();
    let (one, two, broken) = (image(&lab, "one"), image(&lab, "two"), broken_image(&lab));
    let workers = deploy(&lab, &one, 0);
    lab.mvm(&["pool", "update", POOL, "--image", &two, "--later"]);
    let (between, ran) = (lab.json(&["pool", "info", POOL]), lab.info(&workers[0])["revision"].clone());
    assert_ne!(between["revision"], ran);
    let update = ["pool", "update", POOL, "--image", &broken];
    // Also where the agent dies when it is about to start it with that.
    kill_at(&mut lab, UpgradeBack.name(), &update);
    for _ in 0..2 {
        check(&lab, &workers[0], "one");
        assert_eq!(lab.info(&workers[0])["revision"], ran);
        let now = lab.json(&["pool", "info", POOL]);
        assert_eq!((&now["image"], &now["revision"]), (&between["image"], &between["revision"]));
        let told = lab.mvm_fails(&update);
        assert!(told.contains("is running with its earlier image and data disk"), "{told}");
    }
    let told = lab.mvm(&["pool", "update", POOL, "--image", &two, "--later"]);
    assert!(told.contains("at its next cold start"), "{told}");
    lab.mvm(&["instance", "stop", &workers[0]]);
    lab.mvm(&["instance", "start", &workers[0]]);
    check(&lab, &workers[0], "two");
}

#[test]
fn an_agent_that_dies_in_an_upgrade_leaves_the_old_or_the_new() {
    let mut lab = Lab::new();
    let images = [image(&lab, "one"), image(&lab, "two")];
    let broken = broken_image(&lab);
    let workers = deploy(&lab, &images[0], 0);
    let mut has = 0;
    let forward = [UpgradeBegun, UpgradeStopped, UpgradeKept, StartGoing, UpgradeReady, UpgradeCommitted];
    for point in forward.map(KillPoint::name) {
        has = 1 - has;
        kill_at(&mut lab, point, &["pool", "update", POOL, "--image", &images[has]]);
        check(&lab, &workers[0], ["one", "two"][has]);
    }
    for point in [UpgradeFailed, UpgradeUndone, UpgradeBack].map(KillPoint::name) {
        kill_at(&mut lab, point, &["pool", "update", POOL, "--image", &broken]);
        check(&lab, &workers[0], ["one", "two"][has]);
        assert_eq!(lab.json(&["pool", "info", POOL])["image"], images[has].as_str());
    }
}

#[track_caller]
fn check(lab: &Lab, worker: &str, has: &str) {
    lab.settle();
    lab.wait_for("it runs", || lab.state(worker) == "running");
    assert_eq!(word(lab, worker), has);
    assert_kept(lab, worker);
    assert_eq!(rests(lab), 0);
    assert_tidy(lab);
}
