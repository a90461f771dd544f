//! A pool's image over time: what runs or sleeps keeps its own, and what nothing refers to goes.

use std::path::PathBuf;

use mvm_harness::KillPoint::{BasesForgotten, RevisionsForgotten};
use mvm_harness::{Lab, assert_tidy, die_in, json};

use crate::workers::{POOL, Workers, ask, bases, how, own_image, start_anew};

/// Builds the pool's image so that it has another version.
fn build(lab: &Lab, version: u32) -> String {
    change(lab, version);
    lab.mvm(&["pool", "build", POOL]);
    revision(lab)
}

/// Gives the recipe another version.
fn change(lab: &Lab, version: u32) {
    let source = std::fs::read_to_string(crate::workers::image().join("worker.py")).unwrap();
    let changed = source.replace("VERSION = 1\n", &format!("VERSION = {version}\n"));
    assert!(version == 1 || changed != source);
    lab.file("worker/worker.py", &changed);
}

fn revision(lab: &Lab) -> String {
    lab.json(&["pool", "info", POOL])["revision"].as_str().unwrap().to_owned()
}

/// Whether a revision's files are there.
fn is_kept(lab: &Lab, revision: &str) -> bool {
    let mut folders = vec![lab.data_dir().join("images")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_name().to_string_lossy().contains(revision) {
                return true;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    false
}

fn collect(lab: &Lab) -> Vec<PathBuf> {
    lab.mvm(&["pool", "gc", POOL]);
    bases(lab)
}

#[test]
fn machines_keep_their_revision_and_base_until_they_start_anew_and_then_both_can_go() {
    let lab = Lab::new();
    let image = own_image(&lab);
    Workers { image, running: 2, ..Workers::default() }.deploy(&lab);
    let [first, second] = [0, 1].map(|index| lab.instances(POOL).remove(index));
    let one = revision(&lab);
    let base_of_one = bases(&lab);
    for worker in [&first, &second] {
        ask(&lab, worker, "memory.update(mark='from before') or 1");
        lab.mvm(&["instance", "sleep", worker]);
    }

    // Built anew: both that sleep keep theirs.
    let two = build(&lab, 2);
    assert_ne!(one, two);
    assert_eq!(collect(&lab).len(), 2, "the old base has deltas over it");
    assert!(is_kept(&lab, &one) && is_kept(&lab, &two));
    lab.mvm(&["instance", "wake", &first]);
    assert_eq!(how(&lab, &first), "wake");
    let told = ask(&lab, &first, "[version, memory['mark']]");
    assert_eq!((&told[0], &told[1]), (&1.into(), &"from before".into()));
    start_anew(&lab, &first);
    assert_eq!(ask(&lab, &first, "[version, memory.get('mark')]"), json!([2, null]));

    // And back.
    lab.mvm(&["pool", "rollback", POOL]);
    assert_eq!(revision(&lab), one);
    assert_eq!(collect(&lab).len(), 2, "the first runs on the newer one");
    start_anew(&lab, &first);
    assert_eq!(ask(&lab, &first, "version"), 1);
    assert_eq!(collect(&lab), base_of_one, "nothing needs the newer one now");
    assert!(is_kept(&lab, &two), "it is one step away");
    lab.mvm(&["instance", "wake", &second]);
    assert_eq!(ask(&lab, &second, "[version, memory['mark']]"), json!([1, "from before"]));

    // Two steps on: what runs keeps the first's files and base, and nothing of it is left afterwards.
    assert_eq!(build(&lab, 2), two, "the same recipe is the same revision");
    let three = build(&lab, 3);
    start_anew(&lab, &first);
    let kept = collect(&lab);
    assert!(kept.contains(&base_of_one[0]) && is_kept(&lab, &one), "the second runs on it: {kept:?}");
    lab.mvm(&["instance", "sleep", &second]);
    assert!(collect(&lab).contains(&base_of_one[0]) && is_kept(&lab, &one), "the second sleeps over it");
    lab.mvm(&["instance", "wake", &second]);
    assert_eq!(ask(&lab, &second, "[version, memory['mark']]"), json!([1, "from before"]));
    start_anew(&lab, &second);
    assert_eq!(ask(&lab, &second, "version"), 3);
    let left = collect(&lab);
    assert!(left.len() == 1 && !left.contains(&base_of_one[0]), "{left:?}");
    assert!(!is_kept(&lab, &one), "nothing needs the first revision any more");
    assert!(is_kept(&lab, &two) && is_kept(&lab, &three), "the one it has, and the one before");
    assert_tidy(&lab);
}

#[test]
fn what_was_forgotten_and_not_removed_when_the_agent_died_is_removed_by_the_next() {
    let mut lab = Lab::new();
    let image = own_image(&lab);
    Workers { image, ..Workers::default() }.deploy(&lab);
    let one = revision(&lab);
    let base_of_one = bases(&lab).remove(0);
    let two = build(&lab, 2);
    lab.restart_agent_with(&[("MVM_KILL_AT", BasesForgotten.name())]);
    lab.settle();
    // It goes by itself, a moment after the last that needed it.
    for act in ["stop", "start"] {
        lab.try_mvm(&["instance", act, POOL]);
    }
    lab.wait_for_killed_agent(BasesForgotten.name());
    assert!(base_of_one.exists());
    lab.start_agent();
    lab.settle();
    assert!(!base_of_one.exists());
    lab.mvm(&["instance", "start", POOL]);
    let three = build(&lab, 3);
    assert!([&one, &two, &three].map(|revision| is_kept(&lab, revision)) == [true; 3], "the pool had them");

    lab.restart_agent_with(&[("MVM_KILL_AT", RevisionsForgotten.name())]);
    die_in(&mut lab, RevisionsForgotten.name(), &["pool", "gc", POOL]);
    assert!(is_kept(&lab, &one));
    lab.start_agent();
    assert_eq!([&one, &two, &three].map(|revision| is_kept(&lab, revision)), [false, true, true]);
    // A kernel and an initrd, and a root of each.
    assert_eq!(std::fs::read_dir(lab.data_dir().join("images/parts")).unwrap().count(), 4);
    assert_eq!(ask(&lab, POOL, "version"), 2, "it runs on");
    start_anew(&lab, POOL);
    assert_eq!(ask(&lab, POOL, "version"), 3);
    assert_tidy(&lab);
}

#[test]
fn a_base_goes_by_itself_with_the_last_that_needed_it() {
    let lab = Lab::new();
    let image = own_image(&lab);
    Workers { image, ..Workers::default() }.deploy(&lab);
    let first = bases(&lab);
    build(&lab, 2);
    assert_eq!(bases(&lab).len(), 2, "the machine maps the first one");
    start_anew(&lab, POOL);
    lab.wait_for("the start lets go of it", || bases(&lab).len() == 1);
    assert_ne!(bases(&lab), first);

    let second = bases(&lab);
    build(&lab, 3);
    lab.mvm(&["instance", "stop", POOL]);
    lab.wait_for("so does what is no start, before long", || bases(&lab).len() == 1);
    assert_ne!(bases(&lab), second);
    assert_tidy(&lab);
}
