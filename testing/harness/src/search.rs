//! The search for what must be nowhere.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Lab;

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
