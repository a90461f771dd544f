//! The binary and the images under test, built once for all tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use mvm_image::{ImageSource, ImageStore};

use crate::checkout;

/// What a guest is built for where cargo has it.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";

/// The folder cargo builds into, found from where this test lies: `<target>/<profile>/deps/<test>`.
pub(crate) fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(|deps| deps.parent()).expect("tests lie in <target>/<profile>/deps").to_owned()
}

/// What may be kept between runs: packages and parts of images.
pub(crate) fn cache() -> PathBuf {
    checkout().join("target/image-cache")
}

/// Held by whoever builds into this folder, or reads it.
pub(crate) fn lock() -> std::fs::File {
    let lock = std::fs::File::create(profile_folder().join("mvm-e2e.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// `mvm`, up to date. Cargo's own lock makes tests that start together wait for one build.
pub(crate) fn mvm() -> PathBuf {
    let folder = profile_folder();
    let _building = lock();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(checkout()).args(["build", "--quiet", "--package", "mvm-cli"]);
    cargo.arg("--target-dir").arg(folder.parent().unwrap());
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "mvm could not be built");
    build_images();
    folder.join("mvm")
}

/// Labs have no way to the package archives: what their agents build is in the cache before.
fn build_images() {
    build(&ImageSource::BuiltIn("minimal".to_owned()));
    build(&ImageSource::Path(checkout().join("examples/echo/worker")));
}

fn build(source: &ImageSource) {
    let store = ImageStore::open(&checkout().join("target/image-store"), &cache()).unwrap();
    store.build(source, &|_| ()).unwrap_or_else(|error| panic!("{source:?} could not be built: {error}"));
}

/// Builds the image of a recipe's folder, so that labs have what it is made of.
pub fn build_image(recipe: &Path) {
    build(&ImageSource::Path(recipe.to_owned()));
}
