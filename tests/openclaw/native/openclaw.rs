//! OpenClaw and node as the image's lock has them, installed once below `target`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use mvm_harness::checkout;

const STAMP: &str = "installed";

/// What npm says where the registry cannot be reached.
const UNREACHED: [&str; 8] = [
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "ECONNRESET",
    "ENETUNREACH",
    "tunneling socket",
    "via proxy",
];

/// Where `node_modules` is. Nothing where there is no npm or its registry cannot be reached, and then it is said that tests
/// are skipped.
pub(super) fn installed() -> Option<PathBuf> {
    let folder = checkout().join("target/openclaw-npm");
    match install(&folder) {
        Ok(()) => Some(folder.canonicalize().unwrap()),
        Err(reason) => {
            eprintln!("SKIPPED: OpenClaw cannot be installed from npm: {reason}");
            None
        }
    }
}

/// CI installs what tests need: there it is a defect that one is skipped for want of it.
pub(super) fn assert_may_be_missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "there is no {what}, and in CI there has to be");
}

fn install(folder: &Path) -> Result<(), String> {
    // Tests are processes beside one another: one of them installs it, for all.
    let turn = fs::File::create(folder.with_extension("lock")).unwrap();
    turn.lock().unwrap();
    let lock = fs::read_to_string(checkout().join("images/openclaw/package-lock.json")).unwrap();
    if fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp == lock) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&lock).unwrap();
    let package =
        serde_json::json!({ "private": true, "dependencies": parsed["packages"][""]["dependencies"] });
    fs::write(folder.join("package.json"), package.to_string()).unwrap();
    fs::write(folder.join("package-lock.json"), &lock).unwrap();
    let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    let output = match Command::new("npm").current_dir(folder).args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert_may_be_missing("npm");
            return Err("there is no npm".to_owned());
        }
        ran => ran.unwrap(),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let is_unreached = UNREACHED.iter().any(|word| said.contains(word));
        assert!(is_unreached, "npm ci {}: {said}", output.status);
        return Err(said);
    }
    // As the image leaves it out.
    fs::remove_file(folder.join("node_modules/openclaw/.openclaw-lifecycle-pending")).unwrap();
    fs::write(folder.join(STAMP), lock).unwrap();
    Ok(())
}
