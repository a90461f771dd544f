//! Copying files into machines and out of them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use mvm_harness::{Lab, Terminal, json};

use crate::shell::{MANIFEST, POOL};

/// The most memory that a process may have taken that passes a gibibyte on, in KiB.
const MOST_MEMORY: u64 = 128 * 1024;

fn lab(data_disk_mib: u64) -> Lab {
    let lab = Lab::new();
    lab.deploy(&MANIFEST.replace("data_disk_mib = 16", &format!("data_disk_mib = {data_disk_mib}")));
    lab
}

/// The most memory that a process has had, in KiB; nothing of one that has ended.
fn most_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}

/// Copies beside the test, and looks what memory that takes.
fn copy_frugally(lab: &Lab, from: &str, to: &str) {
    let mut copying = lab.mvm_beside(&["instance", "cp", from, to]);
    let mut most = 0;
    while copying.try_wait().unwrap().is_none() {
        most = most.max(most_memory(copying.id()).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let output = copying.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!((1..MOST_MEMORY).contains(&most), "the client took {most} KiB");
    let agent = most_memory(lab.agent_pid().unwrap()).unwrap();
    assert!(agent < MOST_MEMORY, "the agent took {agent} KiB");
}

#[test]
fn a_gibibyte_goes_in_and_out_whole() {
    let lab = lab(1200);
    let path = |name: &str| lab.file(name, "").to_str().unwrap().to_owned();
    let (big, back) = (path("big"), path("back"));
    let there = format!("{POOL}:/data/big");
    // First one that is broken off: nothing is left of it.
    File::options().write(true).open(&big).unwrap().set_len(1 << 30).unwrap();
    let mut copying = Terminal::open(&lab, &["instance", "cp", &big, &there], (100, 24));
    copying.wait_for("MiB/s");
    copying.type_in("\x03");
    assert_eq!(copying.end(), 130);
    lab.wait_for("nothing is left", || lab.exec(POOL, &["ls", "-A", "/data"]).trim() == "lost+found");

    let mut random = File::open("/dev/urandom").unwrap().take(1 << 30);
    std::io::copy(&mut random, &mut File::create(&big).unwrap()).unwrap();
    copy_frugally(&lab, &big, &there);
    // What was said to be there is on the disk, and not in memory: that goes.
    lab.mvm(&["instance", "stop", POOL]);
    lab.mvm(&["instance", "start", POOL]);
    lab.mvm(&["instance", "sleep", POOL]);
    copy_frugally(&lab, &there, &back);
    let compared = Command::new("cmp").args([&big, &back]).output().unwrap();
    assert!(compared.status.success(), "{compared:?}");
}

/// A folder with a bit of everything.
fn tree(lab: &Lab) -> std::path::PathBuf {
    lab.file("tree/sub/deep/file", "deep");
    let tree = lab.file("tree/run", "#!/bin/sh\necho ran \"$1\"\n").parent().unwrap().to_owned();
    fs::create_dir(tree.join("empty")).unwrap();
    symlink("../run", tree.join("sub/link")).unwrap();
    symlink("/nowhere", tree.join("dangling")).unwrap();
    for (name, mode) in [("run", 0o755), ("sub/deep/file", 0o640), ("empty", 0o700), ("sub", 0o750)] {
        fs::set_permissions(tree.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    tree
}

/// What a folder holds, as `find` has it: names, kinds, permissions, owners, and where links lead.
fn held(folder: &Path) -> Vec<String> {
    let mut held = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let found = path.symlink_metadata().unwrap();
        if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let mode = if found.is_symlink() { 0 } else { found.mode() };
        let (link, name) = (fs::read_link(&path).unwrap_or_default(), path.strip_prefix(folder).unwrap());
        held.push(format!("{} {mode:o} {} {}", name.display(), found.uid(), link.display()));
    }
    held.sort();
    held
}

#[test]
fn folders_are_copied_as_docker_copies_them_and_a_sleeper_is_woken() {
    let lab = lab(16);
    let tree = tree(&lab);
    let here = tree.to_str().unwrap();
    let files = tree.parent().unwrap();
    let there = |path: &str| format!("{POOL}:{path}");
    lab.mvm(&["instance", "sleep", POOL]);
    let output = lab.try_mvm(&["instance", "cp", here, &there("/data/x")]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("was asleep and was woken in "), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("copied 2 files (28 B) to "), "{output:?}");
    assert_eq!(lab.exec(POOL, &["/data/x/sub/link", "there"]), "ran there\n");
    let seen = lab.exec(
        POOL,
        &["stat", "-c", "%n %a %U", "/data/x/run", "/data/x/empty", "/data/x/sub", "/data/x/sub/deep/file"],
    );
    let expected = "/data/x/run 755 root\n/data/x/empty 700 root\n/data/x/sub 750 root\n/data/x/sub/deep/file 640 root\n";
    assert_eq!(seen, expected);

    // Into a folder that is there, by name, and what is in it; and out again.
    lab.mvm(&["instance", "cp", here, &there("/data/x/empty/")]);
    lab.mvm(&["instance", "cp", &format!("{here}/."), &there("/data/x/empty/tree")]);
    let back = files.join("back");
    let done = lab.json(&["instance", "cp", &there("/data/x/empty/tree"), back.to_str().unwrap()]);
    assert_eq!(held(&back), held(&tree));
    assert_eq!(done["to"], back.to_str().unwrap());
    assert_eq!(
        (&done["files"], &done["folders"], &done["links"], &done["bytes"]),
        (&json!(2), &json!(4), &json!(2), &json!(28))
    );
    lab.mvm(&["instance", "cp", &there("/data/x/run"), back.join("empty").to_str().unwrap()]);
    assert!(back.join("empty/run").is_file());

    // What is no file is named, and makes the copy a failed one, of which the rest is there.
    let said = lab.mvm_fails(&["instance", "cp", &there("/run/mvm"), files.join("run").to_str().unwrap()]);
    assert!(said.contains("left out: socket /run/mvm/host.sock"), "{said}");
    assert!(files.join("run/mvm-guest").is_file());

    let absent = files.join("absent");
    for (from, to, says) in [
        (&*there("/nope"), here, "/nope: No such file"),
        (absent.to_str().unwrap(), &*there("/data"), "absent: No such file"),
        (here, &there("/data/x/run"), "/data/x/run is no folder"),
        (here, &there("/none/x"), "/none is not there: make the folder first"),
        (&there("/data/x"), absent.join("x").to_str().unwrap(), "absent is not there"),
        (here, "elsewhere", "one of both must be in a machine"),
        (&there("/a"), &there("/b"), "one of both must be in a machine"),
    ] {
        let said = lab.mvm_fails(&["instance", "cp", from, to]);
        assert!(said.contains(says), "{from} to {to}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(!absent.exists());
    lab.mvm(&["instance", "stop", POOL]);
    let said = lab.mvm_fails(&["instance", "cp", here, &there("/data")]);
    assert!(said.contains("is stopped: `mvm instance start "), "{said}");
}

/// Gives a copy this as its input; whether it succeeded, and what it said.
fn copy_input(lab: &Lab, to: &str, input: &[u8]) -> (bool, String) {
    let mut copying = lab.mvm_with_input(&["instance", "cp", "-", to]);
    // One that is refused may not be read to its end.
    let _ = copying.stdin.take().unwrap().write_all(input);
    let output = copying.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn tar(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn archives_go_in_and_out_by_streams_and_stay_where_they_belong() {
    let lab = lab(16);
    let tree = tree(&lab);
    let folder = tree.parent().unwrap().to_str().unwrap();
    let to = format!("{POOL}:/data");
    let archive = tar(&["c", "-C", folder, "tree"]);
    let (copied, said) = copy_input(&lab, &to, &archive);
    assert!(copied, "{said}");
    assert_eq!(lab.exec(POOL, &["/data/tree/run", "there"]), "ran there\n");
    let back = lab.try_mvm(&["instance", "cp", &format!("{to}/tree"), "-"]);
    assert!(back.status.success(), "{back:?}");
    let unpacked = lab.file("unpacked/archive.tar", "");
    fs::write(&unpacked, back.stdout).unwrap();
    let beside = unpacked.parent().unwrap();
    tar(&["xf", unpacked.to_str().unwrap(), "-C", beside.to_str().unwrap()]);
    assert_eq!(held(&beside.join("tree")), held(&tree));

    let (copied, said) = copy_input(&lab, &to, &archive[..archive.len() / 2]);
    assert!(!copied && said.contains("ends in the middle"), "{said}");

    // A link, and then something through it; a name that climbs out.
    let linked = lab.file("linked/etc/evil", "evil").parent().unwrap().parent().unwrap().to_owned();
    let file = tar(&["c", "-C", linked.to_str().unwrap(), "etc/evil"]);
    fs::remove_dir_all(linked.join("etc")).unwrap();
    symlink("/etc", linked.join("etc")).unwrap();
    let mut through = tar(&["c", "-C", linked.to_str().unwrap(), "etc"]);
    through.truncate(512);
    through.extend(file);
    let climbing = tar(&["c", "-P", "-C", folder, "--transform", "s,^tree/run,../etc/evil,", "tree/run"]);
    let absolute = tar(&["c", "-P", "-C", folder, "--transform", "s,^tree/run,/etc/evil,", "tree/run"]);
    for (archive, says) in [
        (through, "a symbolic link or a file is where the archive has a folder"),
        (climbing, "which leads out of the folder"),
        (absolute, "which leads out of the folder"),
    ] {
        let (copied, said) = copy_input(&lab, &to, &archive);
        assert!(!copied && said.contains(says), "{said}");
        assert_eq!(lab.exec(POOL, &["ls", "/etc"]).matches("evil").count(), 0);
    }
}

#[test]
fn a_full_disk_is_one_clear_error_and_nothing_half_written() {
    let lab = lab(16);
    let big = lab.file("big", &"x".repeat(32 << 20));
    lab.exec(POOL, &["sh", "-c", "echo before > /data/big"]);
    let said = lab.mvm_fails(&["instance", "cp", big.to_str().unwrap(), &format!("{POOL}:/data/big")]);
    assert!(said.contains("/data/big: there is no space left"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(lab.exec(POOL, &["cat", "/data/big"]), "before\n");
    assert_eq!(lab.exec(POOL, &["ls", "-A", "/data"]).trim(), "big\nlost+found");
}
