//! A sleep that finds no room is taken back.

use std::process::Command;

use mvm_harness::{Lab, Value, assert_tidy};

use crate::workers::{POOL, Workers, ask, count, fill_memory, folder_of, how};

/// What is left on the disk: room for the store, but not for a machine's memory.
const LEFT: u64 = 4 << 20;

/// Runs a program that must succeed; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Takes nearly all that the lab's disk has, until dropped.
struct Filled(std::path::PathBuf);

impl Filled {
    fn new(lab: &Lab) -> Self {
        let folder = lab.data_dir();
        let told = run("df", &["-B1", "--output=avail", folder.to_str().unwrap()]);
        let free: u64 = told.lines().nth(1).unwrap().trim().parse().unwrap();
        let file = folder.join("filler");
        run("fallocate", &["-l", &(free - LEFT).to_string(), file.to_str().unwrap()]);
        Self(file)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

/// Memory that was never used before and cannot be made smaller, and the sums of all.
const NEW_MEMORY: &str = "
import mmap, zlib
new = mmap.mmap(-1, 24 << 20)
for _ in range(24):
    new.write(os.urandom(1 << 20))
memory[f'new{len(memory)}'] = new
def sums():
    return [zlib.crc32(one) for one in memory.values()]
;;
sums()
";

/// It cannot sleep, and runs on as it was; once there is room it sleeps and wakes with the same memory.
#[track_caller]
fn is_taken_back_until_there_is_room(lab: &Lab, own_image: bool) {
    let sums = ask(lab, POOL, NEW_MEMORY);
    let (counted, lines) = count(lab);
    let before = lab.info(POOL);
    let cancelled = lab.events("alice", "SleepCancelled").len();
    let filled = Filled::new(lab);
    let complaint = lab.mvm_fails(&["instance", "sleep", POOL]);
    assert!(complaint.contains("No space left on device"), "{complaint}");
    let after = lab.info(POOL);
    assert_eq!((&after["state"], &after["pid"]), (&"running".into(), &before["pid"]), "{after}");
    assert_eq!(ask(lab, POOL, "sums()"), sums, "its memory is whole");
    assert_eq!(count(lab), (counted + 1, lines + 1), "it answers");
    assert_eq!(lab.events("alice", "SleepCancelled").len(), cancelled + 1);
    assert_eq!(after["snapshot_bytes"], Value::Null);
    assert_tidy(lab);
    drop(filled);

    lab.mvm(&["instance", "sleep", POOL]);
    assert_eq!(folder_of(lab, POOL).join("own").exists(), own_image);
    lab.mvm(&["node", "scrub"]);
    assert_eq!(count(lab), (counted + 2, lines + 2));
    assert_eq!((how(lab, POOL), ask(lab, POOL, "sums()")), ("wake".to_owned(), sums));
}

#[test]
fn a_sleep_without_room_is_taken_back_and_the_machine_runs_on_with_its_memory() {
    let mut lab = Lab::on_disk_of(1200);
    lab.start_agent();
    Workers::default().deploy(&lab);
    is_taken_back_until_there_is_room(&lab, false);
    // The first own image, then the same one that is written over.
    fill_memory(&lab, POOL);
    is_taken_back_until_there_is_room(&lab, true);
    is_taken_back_until_there_is_room(&lab, true);
}
