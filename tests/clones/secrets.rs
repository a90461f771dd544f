//! What one machine was given is in no other that begins from the same base, nor in the base.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mvm_harness::{Lab, NOWHERE, forms, fresh, holders};

use crate::workers::{POOL, Workers, ask, bases, folder_of, spare};

/// How much memory is read at once.
const PORTION: usize = 4 << 20;

/// Whether a process has a text in its memory, in some form.
pub fn has_in_memory(lab: &Lab, pid: u32, texts: &[String]) -> bool {
    let needles = lab.file("needles", &(texts.join("\n") + "\n"));
    let mut grep = Command::new("grep");
    grep.args(["-caF", "-f"]).arg(&needles).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut grep = grep.spawn().unwrap();
    let mut input = grep.stdin.take().unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut buffer = vec![0; PORTION];
    let mut read_bytes = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with('r')) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        while at < end {
            let length = usize::try_from(end - at).unwrap().min(PORTION);
            // What cannot be read, as the kernel's own pages, holds nothing of a guest.
            let Ok(read @ 1..) = memory.read_at(&mut buffer[..length], at) else { break };
            input.write_all(&buffer[..read]).unwrap();
            (at, read_bytes) = (at + read as u64, read_bytes + read);
        }
    }
    drop(input);
    assert!(read_bytes > 256 << 20, "the guest's whole memory was read: {read_bytes}");
    let counted = grep.wait_with_output().unwrap();
    String::from_utf8(counted.stdout).unwrap().trim() != "0"
}

fn pid(lab: &Lab, instance: &str) -> u32 {
    u32::try_from(lab.info(instance)["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn what_one_clone_was_given_is_not_in_the_base_or_in_another_machine() {
    let (secret, told) = (fresh(), fresh());
    let lab = Lab::new();
    lab.file("secrets/first", &secret);
    let more = "[secrets]\nfirst = { file = \"./secrets/first\" }\n";
    let keys = "snapshot_compression = \"none\"\n\
        secret_scopes = [{ integration = \"default\", keys = [\"FIRST\"] }]";
    Workers { spares: 1, keys, more, ..Workers::default() }.deploy(&lab);
    let holder = lab.instances(POOL).remove(0);
    // One more that this instance only has: it is put together in its memory.
    let (head, tail) = told.split_at(18);
    let code = format!("memory.update(told='-'.join(['{}', '{}'])) or memory['told'][:1]", &head[..17], tail);
    ask(&lab, &holder, &code);
    let told = format!("{}-{tail}", &head[..17]);
    let texts = [forms(&secret), vec![told.clone()]].concat();
    assert!(
        has_in_memory(&lab, pid(&lab, &holder), std::slice::from_ref(&told)),
        "the search finds what is there"
    );
    assert!(
        has_in_memory(&lab, pid(&lab, &holder), std::slice::from_ref(&secret)),
        "the search finds what is there"
    );

    // Others of the tenant that are given nothing: a clone of another pool's base, a spare of the same base.
    lab.mvm(&["instance", "sleep", &holder]);
    let own = folder_of(&lab, &holder);
    let found = holders(&lab, std::slice::from_ref(&told), &[own.join("snapshot")]);
    assert_eq!(found, [own.join("snapshot/memory")], "asleep it is in its own snapshot");
    let base = bases(&lab);
    assert_eq!(base.len(), 1);
    lab.mvm(&["instance", "wake", &holder]);
    let spare = spare(&lab);
    assert!(!has_in_memory(&lab, spare, &texts), "a spare");
    lab.deploy(
        &Workers {
            running: 2,
            spares: 1,
            keys: &keys.replace("[{ integration = \"default\", keys = [\"FIRST\"] }]", "[]"),
            more,
            ..Workers::default()
        }
        .manifest(),
    );
    let other = lab.instances(POOL).into_iter().find(|one| *one != holder).unwrap();
    assert_eq!(lab.info(&other)["last_start"]["how"], "clone");
    assert!(!has_in_memory(&lab, pid(&lab, &other), &texts), "another clone");
    assert!(has_in_memory(&lab, pid(&lab, &holder), &[told]), "which the one has still");
    lab.mvm(&["instance", "sleep", &other]);
    let places: Vec<PathBuf> = vec![lab.data_dir(), lab.run_dir(), lab.log()];
    assert_eq!(holders(&lab, &texts, &places), NOWHERE, "files");
    assert_eq!(holders(&lab, &texts, &base), NOWHERE, "the base");
}
