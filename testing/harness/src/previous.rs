//! The `mvm` of the commit before, for tests of upgrades.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{build, checkout};

/// The commit before the one that is tested: where something is not committed yet, that is the last one. Nothing where the
/// checkout has no history.
fn revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(checkout()).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let changed = git(&["status", "--porcelain"])?;
    git(&["rev-parse", "--verify", "--quiet", if changed.is_empty() { "HEAD~1" } else { "HEAD" }])
}

/// Builds it, once; the binary and its revision. Nothing where there is no earlier commit.
pub fn previous_mvm() -> Option<(PathBuf, String)> {
    let revision = revision()?;
    let folder = checkout().join("target/previous");
    fs::create_dir_all(&folder).unwrap();
    let lock = fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let binary = folder.join("out/debug/mvm");
    let built = folder.join("revision");
    if fs::read_to_string(&built).ok().as_ref() != Some(&revision) || !binary.exists() {
        let _ = fs::remove_file(&built);
        check_out(&revision, &folder.join("source"));
        take_dependencies(&folder);
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(folder.join("source")).args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "mvm-cli",
        ]);
        cargo.arg("--target-dir").arg(folder.join("out"));
        assert!(cargo.status().unwrap().success(), "the mvm of {revision} could not be built");
        fs::write(&built, &revision).unwrap();
    }
    Some((binary, revision))
}

/// What both commits are made of and cargo has compiled for this one: most of a build is that.
fn take_dependencies(folder: &Path) {
    let _building = build::lock();
    let guest = "target/guest";
    for (from, to) in [
        (build::profile_folder(), folder.join("out/debug")),
        (checkout().join(guest).join("guest"), folder.join("source").join(guest).join("guest")),
        (
            checkout().join(guest).join(build::MUSL).join("guest"),
            folder.join("source").join(guest).join(build::MUSL).join("guest"),
        ),
    ] {
        if to.exists() || !from.exists() {
            continue;
        }
        for kind in ["deps", ".fingerprint", "build"] {
            let to = to.join(kind);
            fs::create_dir_all(&to).unwrap();
            let dependencies = fs::read_dir(from.join(kind)).unwrap().flatten().filter(|entry| {
                let name = entry.file_name();
                let name = name.to_str().unwrap();
                let is_program = kind == "deps" && !name.contains('.');
                !is_program && !name.strip_prefix("lib").unwrap_or(name).starts_with("mvm")
            });
            let mut copy = Command::new("cp");
            copy.arg("-a").args(dependencies.map(|entry| entry.path())).arg(&to);
            assert!(copy.status().unwrap().success(), "what {from:?} has could not be copied");
        }
    }
}

/// Puts a commit's files into a folder; those that are the same already keep their times, so that they are not compiled again.
fn check_out(revision: &str, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let fresh = folder.with_extension("fresh");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).unwrap();
    let mut git = Command::new("git");
    git.current_dir(checkout()).args(["archive", "--format=tar", revision]).stdout(Stdio::piped());
    let mut archive = git.spawn().unwrap();
    let mut tar = Command::new("tar");
    let unpacked =
        tar.arg("-x").arg("-C").arg(&fresh).stdin(archive.stdout.take().unwrap()).status().unwrap();
    assert!(archive.wait().unwrap().success() && unpacked.success(), "{revision} could not be checked out");
    let mut files = Vec::new();
    list(&fresh, &fresh, &mut files);
    for path in &files {
        let (from, to) = (fresh.join(path), folder.join(path));
        if fs::read(&from).ok() != fs::read(&to).ok() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(&from, &to).unwrap();
        }
    }
    let mut present = Vec::new();
    list(folder, folder, &mut present);
    for path in present.iter().filter(|path| !path.starts_with("target") && !files.contains(path)) {
        fs::remove_file(folder.join(path)).unwrap();
    }
    fs::remove_dir_all(&fresh).unwrap();
}

/// The files below a folder, relative to its root.
fn list(folder: &Path, root: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            if path != root.join("target") {
                list(&path, root, found);
            }
        } else {
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
}
