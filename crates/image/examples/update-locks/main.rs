//! Writes the `image.lock` of recipes anew, from what Debian 12's archives have now, and npm's own lock beside it where a
//! recipe asks for packages of npm, from what its registry has now.
//!
//! `scripts/update-locks` runs it. Arguments: recipes' folders.

mod index;
mod npm;
mod resolve;
mod version;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use mvm_image::ImageSource;
use mvm_image::archive::Mirrors;
use mvm_image::lock::{LOCK_FILE, LOCK_VERSION, Lock};
use mvm_image::source::requested_packages;

use index::Index;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Depends on the newest kernel for machines without hardware of their own.
const KERNEL: &str = "linux-image-cloud-amd64";

fn main() -> ExitCode {
    let recipes: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    match update(&recipes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("update-locks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn update(recipes: &[PathBuf]) -> Result<()> {
    if recipes.is_empty() {
        return Err("name the recipes' folders".into());
    }
    let index = Index::fetch(&Mirrors::from_environment())?;
    let timestamp = now()?;
    for recipe in recipes {
        npm::update(recipe)?;
        let file = recipe.join(LOCK_FILE);
        let lock = lock(&index, recipe, &timestamp).map_err(|e| format!("{}: {e}", file.display()))?;
        if read(&file).is_some_and(|old| old.packages == lock.packages && old.kernel == lock.kernel) {
            println!("{}: nothing new", file.display());
            continue;
        }
        fs::write(&file, lock.to_toml()?)?;
        println!("{}: {} packages", file.display(), lock.packages.len());
    }
    Ok(())
}

fn lock(index: &Index, recipe: &Path, timestamp: &str) -> Result<Lock> {
    let requested = requested_packages(&ImageSource::Path(recipe.to_owned()))?;
    let mut chosen = resolve::closure(index, &requested)?;
    let kernel = resolve::kernel(index, KERNEL)?;
    chosen.push(kernel);
    let mut packages: Vec<_> = chosen.into_iter().map(index::Package::locked).collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Lock { version: LOCK_VERSION, timestamp: timestamp.to_owned(), kernel: kernel.name.clone(), packages })
}

fn read(file: &Path) -> Option<Lock> {
    Lock::parse(file, &fs::read_to_string(file).ok()?).ok()
}

fn now() -> Result<String> {
    let output = Command::new("date").args(["--utc", "+%Y%m%dT%H%M%SZ"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
