//! Puts what the `mvm` binary carries into it: `mvm-guest`, built statically for the machines, and
//! the built-in recipes of `images/`.
//!
//! `MVM_GUEST_BIN=/path` takes a ready-made guest instead of building one.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use sha2::{Digest as _, Sha256};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let crate_folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = crate_folder.join("../..").canonicalize()?;
    let out = PathBuf::from(variable("OUT_DIR")?);

    println!("cargo:rerun-if-env-changed=MVM_GUEST_BIN");
    let guest = match env::var_os("MVM_GUEST_BIN") {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", path.display());
            PathBuf::from(path)
        }
        None => build_guest(&workspace)?,
    };
    let content = fs::read(&guest).map_err(|e| format!("{}: {e}", guest.display()))?;
    fs::write(out.join("mvm-guest"), &content)?;
    println!("cargo:rustc-env=MVM_GUEST_SHA256={}", hex::encode(Sha256::digest(&content)));

    fs::write(out.join("recipes.rs"), list_recipes(&workspace.join("images"))?)?;
    Ok(())
}

/// A nested cargo, with a target folder of its own: the outer one holds its target folder's lock.
fn build_guest(workspace: &Path) -> Result<PathBuf> {
    let crates = ["crates/guest", "crates/protocol", "crates/model", "crates/transfer"];
    for watched in crates.into_iter().chain(["Cargo.toml", "Cargo.lock"]) {
        println!("cargo:rerun-if-changed={}", workspace.join(watched).display());
    }
    // The guest's TLS library is C, for which musl has a compiler of its own (Debian: musl-tools).
    let target = if has_target(MUSL)? && has_program("musl-gcc") { MUSL } else { GNU };
    let target_folder = workspace.join("target/guest");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(workspace)
        .args(["build", "-p", "mvm-guest", "--bin", "mvm-guest", "--profile", "guest"])
        .args(["--target", target, "--target-dir"])
        .arg(&target_folder);
    // What the outer build was told (flags, target, wrappers such as clippy's) is not for the guest.
    for (name, _) in env::vars_os() {
        if is_outer_build_setting(&name.to_string_lossy()) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let output = cargo.output()?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr);
        return Err(format!("building mvm-guest for {target} failed:\n{detail}").into());
    }
    Ok(target_folder.join(target).join("guest/mvm-guest"))
}

fn is_outer_build_setting(name: &str) -> bool {
    const EXACT: [&str; 8] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "LLVM_PROFILE_FILE",
    ];
    const PREFIXES: [&str; 5] =
        ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_CFG_", "CARGO_FEATURE_"];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn has_target(target: &str) -> Result<bool> {
    let output =
        Command::new(variable("RUSTC")?).args(["--print", "target-libdir", "--target", target]).output()?;
    Ok(output.status.success() && Path::new(String::from_utf8(output.stdout)?.trim()).is_dir())
}

fn has_program(name: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).any(|folder| folder.join(name).is_file())
}

/// Rust source of the table of built-in recipes: `(recipe, file, content)`.
fn list_recipes(images: &Path) -> Result<String> {
    println!("cargo:rerun-if-changed={}", images.display());
    let mut source = String::from("&[\n");
    for recipe in sorted(images)?.iter().filter(|path| path.is_dir()) {
        let name = file_name(recipe)?;
        let mut folders = vec![recipe.clone()];
        while let Some(folder) = folders.pop() {
            for path in sorted(&folder)? {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let file = path.strip_prefix(recipe)?;
                    writeln!(source, "    ({name:?}, {file:?}, include_bytes!({path:?})),")?;
                }
            }
        }
    }
    source.push_str("]\n");
    Ok(source)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.ok_or_else(|| format!("{}: not a text name", path.display()))?.to_owned())
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}").into())
}
