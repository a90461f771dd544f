//! Many sleeps and wakes in a row: every byte is right, and nothing grows that the machine did not fill.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use mvm_harness::{Lab, Value};

use crate::workers::{POOL, Workers, ask, ask_by_port, fill_memory, folder_of, how};

/// Memory and a file of the data disk that change a little with every step, and what they hold.
const WORK: &str = "
import random, zlib
SIZE = 2 << 20
memory['work'] = bytearray(random.Random(1).randbytes(SIZE))
FILE = os.open('/data/work', os.O_RDWR | os.O_CREAT)
os.pwrite(FILE, bytes(memory['work']), 0)
def sums():
    return [zlib.crc32(memory['work']), zlib.crc32(os.pread(FILE, SIZE, 0)), memory.get('steps', 0)]
def step():
    memory['steps'] = memory.get('steps', 0) + 1
    for page in random.sample(range(SIZE // 4096), 8):
        memory['work'][page * 4096:page * 4096 + 64] = os.urandom(64)
        os.pwrite(FILE, os.urandom(64), page * 4096)
    os.fsync(FILE)
    return sums()
;;
sums()
";

/// Bytes of blocks below a folder.
fn blocks(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => blocks(&entry.path()),
            _ => entry.metadata().map_or(0, |file| file.blocks() * 512),
        })
        .sum()
}

/// What must not grow, by name.
fn sizes(lab: &Lab) -> Vec<(&'static str, u64)> {
    let agent = lab.json(&["agent", "status"])["pid"].as_u64().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{agent}/fd")).unwrap().count();
    let threads = std::fs::read_dir(format!("/proc/{agent}/task")).unwrap().count();
    let folder = folder_of(lab, POOL);
    let runs = std::fs::read_dir(lab.run_dir().join("m")).unwrap().count();
    let nameless = std::fs::read_dir(lab.run_dir().join("s")).map_or(0, Iterator::count);
    vec![
        ("snapshot", blocks(&folder.join("snapshot"))),
        ("own image", blocks(&folder.join("own"))),
        ("data disk", std::fs::metadata(folder.join("data.img")).unwrap().blocks() * 512),
        ("run folder", blocks(&lab.run_dir())),
        ("the agent's descriptors", descriptors as u64),
        ("the agent's threads", threads as u64),
        ("folders of VMMs", (runs + nameless) as u64),
        ("cgroups", lab.cgroups().len() as u64),
    ]
}

/// Sleeps and wakes so many times; memory and disk are looked at before and after each, sizes while it sleeps.
fn go_round(lab: &Lab, cycles: u32) -> Vec<Vec<(&'static str, u64)>> {
    let mut told = Vec::new();
    for cycle in 0..cycles {
        let before = ask_by_port(lab, "step()");
        lab.mvm(&["instance", "sleep", POOL]);
        if cycle % 10 == 9 {
            told.push(sizes(lab));
        }
        assert_eq!(ask_by_port(lab, "sums()"), before, "memory and disk after {cycle} cycles");
    }
    assert_eq!(how(lab, POOL), "wake");
    told
}

/// In the second half nothing grows. In the first the guest itself comes to use more of its memory.
#[track_caller]
fn assert_bounded(sizes: &[Vec<(&'static str, u64)>]) {
    let (first, last) = (&sizes[sizes.len() / 2], sizes.last().unwrap());
    for ((name, then), (_, now)) in first.iter().zip(last) {
        let room = match *name {
            "snapshot" | "own image" => 3 << 20,
            "data disk" => 1 << 20,
            "run folder" => 256 << 10,
            _ => 4,
        };
        assert!(*now <= then + room, "{name} grew from {then} to {now}: {sizes:?}");
    }
}

#[test]
fn after_200_sleeps_and_wakes_every_byte_is_right_and_nothing_has_grown() {
    let lab = Workers::default().in_lab();
    let first = ask(&lab, POOL, WORK);
    assert_eq!(first[0], first[1]);
    let sizes = go_round(&lab, 160);
    assert_bounded(&sizes);
    assert!(!folder_of(&lab, POOL).join("own").exists());

    // The same with an own image, which is changed in place.
    fill_memory(&lab, POOL);
    let ballast = "zlib.crc32(memory['ballast'])";
    let filled = ask_by_port(&lab, ballast);
    let sizes = go_round(&lab, 40);
    let own = |sizes: &[(&str, u64)]| sizes.iter().find(|(name, _)| *name == "own image").unwrap().1;
    assert!((80 << 20..256 << 20).contains(&own(&sizes[0])), "{sizes:?}");
    assert_bounded(&sizes);
    assert_eq!(ask_by_port(&lab, ballast), filled);
    assert_eq!(ask(&lab, POOL, "memory['steps']"), Value::from(200));
    assert_eq!(lab.events("alice", "InstanceWoken").len(), 200, "every one was a wake");
}
