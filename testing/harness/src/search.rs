//! The search for what must be nowhere.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Lab;

/// How much memory is read at once.
const PORTION: usize = 4 << 20;
/// Of a machine's memory at least so much can be read.
const LEAST_MEMORY: usize = 256 << 20;

/// No file.
pub const NOWHERE: [&Path; 0] = [];

/// A value that is nowhere by chance.
pub fn fresh() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

/// A value, and every form in which it is still in clear.
pub fn forms(value: &str) -> Vec<String> {
    let mut base64 = Command::new("base64");
    let mut base64 = base64.arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    base64.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    let base64 = String::from_utf8(base64.wait_with_output().unwrap().stdout).unwrap();
    // Its last letters depend on what follows.
    let base64 = base64.trim_end_matches('=')[..value.len() / 3 * 4].to_owned();
    let hex = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let bytes: Vec<String> = value.bytes().map(|byte| byte.to_string()).collect();
    vec![value.to_owned(), base64, hex, bytes.join(",")]
}

/// The files in and below some places that hold a text.
pub fn holders(lab: &Lab, texts: &[String], places: &[PathBuf]) -> Vec<PathBuf> {
    // By a file, or the search would find itself among the processes.
    let needles = lab.file("needles", &(texts.join("\n") + "\n"));
    let mut complaint = String::new();
    for _ in 0..20 {
        let mut grep = Command::new("grep");
        grep.args(["-rlazF", "--null", "-D", "skip", "-f"]).arg(&needles).arg("--").args(places);
        let found = grep.output().unwrap();
        // 2: a file went away meanwhile, most likely.
        if found.status.code() != Some(2) {
            let paths = found.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty());
            return paths.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path))).collect();
        }
        complaint = String::from_utf8_lossy(&found.stderr).into_owned();
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("the files could not be searched: {complaint}");
}

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
    assert!(read_bytes > LEAST_MEMORY, "the guest's whole memory was read: {read_bytes}");
    let counted = grep.wait_with_output().unwrap();
    String::from_utf8(counted.stdout).unwrap().trim() != "0"
}
