//! A snapshot that does not fit, or of which a bit is another, is refused by the rule that it breaks.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mvm_harness::{Lab, Value};

use crate::workers::{
    POOL, Workers, ask, bases, count, fill_memory, flip, folder_of, how, own_image, spare, start_anew,
};

/// Changes something while the only worker sleeps.
type Deed<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);

/// Changes something while no agent runs.
type RowDeed<'a> = (&'a str, &'a dyn Fn(&Lab), &'a str);

/// The worker cannot be woken from its snapshot, for this reason, and is started once without it.
#[track_caller]
fn assert_refused(lab: &Lab, what: &str, reason: &str) {
    let refused = lab.events("alice", "WakeRefused").len();
    lab.mvm(&["instance", "wake", POOL]);
    let info = lab.info(POOL);
    assert_eq!(
        (&info["state"], &info["last_start"]["how"]),
        (&"running".into(), &"cold boot".into()),
        "{what}: {info}"
    );
    let events = lab.events("alice", "WakeRefused");
    assert_eq!(events.len(), refused + 1, "{what}");
    let detail = events[refused]["detail"].as_str().unwrap();
    assert!(detail.contains(reason), "{what}: {detail}");
    assert!(info["reason"].as_str().unwrap().contains(reason), "{what}: {info}");
    assert_eq!(count(lab).0, 1, "{what}: nothing of its memory is there");
}

const BASE_REFUSED: &str = "snapshot refused (S8): its memory is damaged: wrong checksum at ";

#[test]
fn a_snapshot_with_a_flipped_bit_or_a_missing_part_is_refused_as_damaged() {
    let lab = Workers::default().in_lab();
    let shorten = |path: &Path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let deeds: [Deed<'_>; 6] = [
        ("snapshot.json", &flip, "snapshot refused (S8): its snapshot.json is damaged"),
        ("device", &flip, "snapshot refused (S8): its device is damaged: wrong checksum"),
        ("memory", &flip, "snapshot refused (S8): its memory is damaged"),
        ("memory", &shorten, "snapshot refused (S8): its memory is damaged"),
        ("memory", &remove, "snapshot refused (S8): its memory cannot be read"),
        ("device", &remove, "snapshot refused (S8): its device cannot be read"),
    ];
    for (part, deed, reason) in deeds {
        // One that booted cold has so much memory of its own that it gets an own image.
        start_anew(&lab, POOL);
        count(&lab);
        lab.mvm(&["instance", "sleep", POOL]);
        deed(&folder_of(&lab, POOL).join("snapshot").join(part));
        assert_refused(&lab, part, reason);
    }
}

/// The one base's content is not what was written any more.
fn damage_base(lab: &Lab) -> PathBuf {
    let [base] = bases(lab).try_into().unwrap();
    flip(&base.join("memory"));
    base
}

#[test]
fn a_base_that_is_found_damaged_is_used_no_more_and_another_is_made() {
    let mut lab = Workers { spares: 1, ..Workers::default() }.in_lab();
    let start_from_another = |lab: &Lab, damaged: &Path| {
        start_anew(lab, POOL);
        assert_eq!(count(lab).0, 1);
        lab.mvm(&["pool", "gc", POOL]);
        let now = bases(lab);
        assert!(now.len() == 1 && now[0] != damaged, "the damaged one is gone: {now:?}");
    };

    // By scrubbing, while the agent has it in use.
    count(&lab);
    let waiting = spare(&lab);
    lab.mvm(&["instance", "sleep", POOL]);
    let damaged = damage_base(&lab);
    let scrubbed = lab.try_mvm(&["node", "scrub"]);
    assert_eq!(scrubbed.status.code(), Some(1), "{scrubbed:?}");
    let told = String::from_utf8(scrubbed.stdout).unwrap();
    assert!(told.contains("start cold until another is made; 1 asleep over it will start cold"), "{told}");
    assert!(!lab.vmms().contains(&waiting), "its spares are ended");
    assert_refused(&lab, "found by scrub", BASE_REFUSED);
    lab.wait_for("another is made", || lab.events("alice", "BaseMade").len() == 2);
    start_from_another(&lab, &damaged);

    // By a build.
    lab.mvm(&["instance", "sleep", POOL]);
    let damaged = damage_base(&lab);
    lab.mvm(&["pool", "build", POOL]);
    assert_eq!(lab.events("alice", "BaseMade").len(), 3);
    assert_refused(&lab, "found by build", BASE_REFUSED);
    start_from_another(&lab, &damaged);

    // By an agent that has not looked at it yet.
    lab.mvm(&["instance", "sleep", POOL]);
    lab.stop_agent();
    let damaged = damage_base(&lab);
    lab.start_agent();
    assert_refused(&lab, "found by a wake", BASE_REFUSED);
    lab.mvm(&["pool", "build", POOL]);
    start_from_another(&lab, &damaged);
    assert!(lab.mvm(&["node", "scrub"]).lines().count() > 0);
}

/// Flips a bit of a lab's file of an image. It becomes a file of its own: other labs have the same one.
fn damage_image(file: &Path) {
    let copy = file.with_extension("copy");
    std::fs::copy(file, &copy).unwrap();
    flip(&copy);
    std::fs::rename(&copy, file).unwrap();
}

#[test]
fn a_damaged_image_is_found_under_a_sleeper_and_mended_by_a_build() {
    let lab = Lab::new();
    let image = own_image(&lab);
    Workers { image, ..Workers::default() }.deploy(&lab);
    count(&lab);
    lab.mvm(&["instance", "sleep", POOL]);
    let scrub = || {
        let scrubbed = lab.try_mvm(&["node", "scrub"]);
        (scrubbed.status.code(), String::from_utf8(scrubbed.stdout).unwrap())
    };
    let parts = std::fs::read_dir(lab.data_dir().join("images/parts")).unwrap().flatten();
    let root = parts.max_by_key(|part| part.metadata().unwrap().len()).unwrap().path();
    damage_image(&root);
    let (code, told) = scrub();
    assert!(told.contains("expected SHA-256") && told.contains("`mvm pool build alice/workers`"), "{told}");
    assert_eq!(code, Some(1));
    lab.mvm(&["pool", "build", POOL]);
    assert_eq!(scrub().0, Some(0), "it is mended");
    assert_eq!((count(&lab).0, how(&lab, POOL)), (2, "wake".to_owned()), "with its memory");

    // One that only the sleeper has.
    lab.mvm(&["instance", "sleep", POOL]);
    let source = std::fs::read_to_string(crate::workers::image().join("worker.py")).unwrap();
    lab.file("worker/worker.py", &source.replace("VERSION = 1\n", "VERSION = 2\n"));
    lab.mvm(&["pool", "build", POOL]);
    damage_image(&root);
    let told = scrub().1;
    assert!(told.contains("no pool has it any more: stop and start alice/workers/i-"), "{told}");
    start_anew(&lab, POOL);
    lab.wait_for("nothing has it any more", || scrub().0 == Some(0));
}

#[test]
fn a_damaged_own_image_ends_its_machine_or_is_refused_before_and_never_used_again() {
    let lab = Workers::default().in_lab();
    let own = folder_of(&lab, POOL).join("own");
    let asleep = || {
        count(&lab);
        fill_memory(&lab, POOL);
        lab.mvm(&["instance", "sleep", POOL]);
        assert!(own.join("memory").exists());
    };
    asleep();
    flip(&own.join("checksums"));
    assert_refused(&lab, "checksums", "snapshot refused (S8): its own image is damaged");
    assert!(!own.exists());

    asleep();
    let copy = own.with_file_name("copy");
    std::fs::copy(own.join("memory"), &copy).unwrap();
    std::fs::rename(&copy, own.join("memory")).unwrap();
    assert_refused(&lab, "a copy of it", "snapshot refused (S8): its own image is damaged");
    assert!(!own.exists());

    asleep();
    flip_last(&own.join("memory"));
    let refused = lab.events("alice", "WakeRefused").len();
    let failed = lab.events("alice", "InstanceFailed").len();
    // It goes on at once, and is read through beside it: what is found ends it, in the middle of the wake or later.
    lab.try_mvm(&["instance", "wake", POOL]);
    lab.wait_for("what was found ends it", || lab.events("alice", "InstanceFailed").len() > failed);
    lab.settle();
    let reason = lab.events("alice", "InstanceFailed").pop().unwrap()["detail"].as_str().unwrap().to_owned();
    for part in ["its own image", "(S8)", "wrong checksum"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(lab.events("alice", "WakeRefused").len(), refused, "nothing was begun in its place");
    assert!(!own.exists() && !own.with_file_name("snapshot").exists(), "it is never used again");
    assert_eq!(count(&lab).0, 1, "the next message finds a machine that was started anew");
    assert_ne!(how(&lab, POOL), "wake");
}

/// Flips a bit in the last piece that has content, as a disk does it that rots: the file does not say when it was.
fn flip_last(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    let mut piece = vec![0; 64 << 10];
    let pieces = file.metadata().unwrap().size() / piece.len() as u64;
    for index in (0..pieces).rev() {
        let at = index * piece.len() as u64;
        file.read_exact_at(&mut piece, at).unwrap();
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(&[piece[0] ^ 1], at).unwrap();
            return file.set_modified(written).unwrap();
        }
    }
    panic!("{} is empty", path.display());
}

/// Changes the only worker's row, while no agent runs.
fn change_row(lab: &Lab, set: &str) {
    let store = rusqlite::Connection::open(lab.data_dir().join("mvm.db")).unwrap();
    assert_eq!(store.execute(&format!("UPDATE instances SET {set}"), []).unwrap(), 1, "{set}");
}

#[test]
fn a_snapshot_of_another_disk_epoch_revision_or_base_is_refused() {
    let mut lab = Lab::new();
    let image = own_image(&lab);
    Workers { image: image.clone(), ..Workers::default() }.deploy(&lab);
    let disk = folder_of(&lab, POOL).join("data.img");
    let copy_disk = |_: &Lab| {
        let copy = disk.with_extension("copy");
        std::fs::copy(&disk, &copy).unwrap();
        std::fs::rename(&copy, &disk).unwrap();
    };
    // The same inode, and an earlier content for all that one can tell.
    let write_in_place = |_: &Lab| {
        let content = std::fs::read(&disk).unwrap();
        std::fs::File::options().write(true).open(&disk).unwrap().write_all_at(&content, 0).unwrap();
    };
    let raise_epoch = |lab: &Lab| change_row(lab, "disk_epoch = disk_epoch + 1");
    // What the pool has by then, and the machine did not fall asleep with.
    let other_base = |lab: &Lab| {
        let newest = "(SELECT id FROM bases ORDER BY rowid DESC LIMIT 1)";
        change_row(lab, &format!("snapshot = json_set(snapshot, '$.memory.delta.base', {newest})"));
    };
    let other_revision = |lab: &Lab| {
        change_row(lab, "launched = json_set(launched, '$.revision', (SELECT revision FROM pools))");
    };
    let deeds: [RowDeed<'_>; 5] = [
        (
            "an epoch in which the disk may have been written",
            &raise_epoch,
            "(S3): its data disk is in write epoch",
        ),
        ("a copy of the disk", &copy_disk, "(S3): its data disk is not the file it was"),
        ("a disk written in place", &write_in_place, "(S3): its data disk is not the file it was"),
        ("another revision", &other_revision, "(S4): it was made with revision"),
        ("another base", &other_base, "(S7): its pages lie over"),
    ];
    for (version, (what, deed, reason)) in (2..).zip(deeds) {
        // Started anew it lies over the pool's base, where it cannot be for long.
        start_anew(&lab, POOL);
        count(&lab);
        lab.mvm(&["instance", "sleep", POOL]);
        let source = std::fs::read_to_string(crate::workers::image().join("worker.py")).unwrap();
        lab.file("worker/worker.py", &source.replace("VERSION = 1\n", &format!("VERSION = {version}\n")));
        lab.mvm(&["pool", "build", POOL]);
        lab.stop_agent();
        deed(&lab);
        lab.start_agent();
        assert_refused(&lab, what, reason);
    }
}

#[test]
fn a_snapshot_of_another_engine_is_not_even_tried_and_bases_are_made_for_the_new_one() {
    let mut lab = Workers::default().in_lab();
    count(&lab);
    lab.mvm(&["instance", "sleep", POOL]);
    let before = bases(&lab);
    lab.stop_agent();
    // What the agent knows of the program that it runs: a later version.
    let known = lab.data_dir().join("engine.json");
    let mut engine: Value = std::fs::read_to_string(&known).unwrap().parse().unwrap();
    engine["detection"]["version"] = "99.0".into();
    std::fs::write(&known, engine.to_string()).unwrap();
    lab.start_agent();
    lab.wait_for("a base is made anew", || lab.events("alice", "BaseMade").len() == 2);
    assert_refused(&lab, "the engine", "(S4): the engine was ");
    lab.mvm(&["instance", "stop", POOL]);
    lab.mvm(&["instance", "start", POOL]);
    assert_eq!(how(&lab, POOL), "clone");
    lab.mvm(&["pool", "gc", POOL]);
    assert!(bases(&lab).len() == 1 && bases(&lab) != before, "nothing refers to the old one");
}

#[test]
fn a_wake_is_not_refused_because_the_pool_has_another_size_by_now() {
    let lab = Workers::default().in_lab();
    count(&lab);
    let code = "memory.update(kept='kept') or 1";
    ask(&lab, POOL, code);
    lab.mvm(&["instance", "sleep", POOL]);
    lab.deploy(&Workers::default().manifest().replace("mem_mib = 256", "mem_mib = 320"));
    assert_eq!(count(&lab).0, 2);
    assert_eq!(
        (how(&lab, POOL), ask(&lab, POOL, "memory['kept']")),
        ("wake".to_owned(), Value::from("kept"))
    );
    lab.mvm(&["instance", "stop", POOL]);
    lab.mvm(&["instance", "start", POOL]);
    assert_eq!(how(&lab, POOL), "clone", "of a base of the new size: {}", lab.info(POOL));
    let memory = ask(&lab, POOL, "import os\n;;\nos.sysconf('SC_PHYS_PAGES') * 4096 >> 20");
    assert!(memory.as_u64().unwrap() > 256, "{memory}");
}
