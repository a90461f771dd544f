//! OpenClaw and node as the image's lock has them, installed once below `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mvm_harness::checkout;

const STAMP: &str = "installed";

/// Where `node_modules` is. Nothing where npm's packages cannot be had, and then it is said that tests are skipped.
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

fn install(folder: &Path) -> Result<(), String> {
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
    let output =
        Command::new("npm").current_dir(folder).args(arguments).output().map_err(|e| format!("npm: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    // As the image leaves it out.
    fs::remove_file(folder.join("node_modules/openclaw/.openclaw-lifecycle-pending")).unwrap();
    fs::write(folder.join(STAMP), lock).unwrap();
    Ok(())
}
