//! The worker of the rows with a service: a recipe whose one program is compiled here.

use std::path::PathBuf;
use std::process::Command;

use mvm_harness::checkout;

use crate::Result;

/// Alone in a machine, so it brings its own C library.
const STATIC: [&str; 4] =
    ["-Ctarget-feature=+crt-static", "--target", "x86_64-unknown-linux-gnu", "-Copt-level=2"];

/// The folder of the recipe, with its program.
pub(super) fn recipe() -> Result<PathBuf> {
    let (from, to) = (checkout().join("bench/worker"), checkout().join("target/bench/worker"));
    std::fs::create_dir_all(&to)?;
    for file in ["image.toml", "image.lock"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "-Cstrip=symbols"]).args(STATIC);
    let output = rustc.arg("-o").arg(to.join("serve")).arg(from.join("serve.rs")).output()?;
    if !output.status.success() {
        return Err(format!("compiling the worker: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(to.canonicalize()?)
}
