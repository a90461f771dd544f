//! npm's own lock, written by npm.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use mvm_image::ImageSource;
use mvm_image::archive::Mirrors;
use mvm_image::lock::NPM_LOCK_FILE;
use mvm_image::source::requested_npm_packages;

use crate::Result;

/// Pins what the packages that a recipe names depend on. Nothing of theirs is run.
pub(crate) fn update(recipe: &Path) -> Result<()> {
    let requested = requested_npm_packages(&ImageSource::Path(recipe.to_owned()))?;
    if requested.is_empty() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let dependencies: BTreeMap<_, _> =
        requested.iter().filter_map(|package| package.rsplit_once('@')).collect();
    let wanted = serde_json::json!({ "private": true, "dependencies": dependencies });
    fs::write(folder.path().join("package.json"), wanted.to_string())?;
    let output = Command::new("npm")
        .current_dir(folder.path())
        .args(["install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund"])
        // Where the archives are is said when they are fetched.
        .arg("--omit-lockfile-registry-resolved")
        .args(["--registry", &Mirrors::from_environment().npm])
        .output()
        .map_err(|e| format!("npm: {e}; install the package npm"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: npm failed: {}", recipe.display(), said.trim()).into());
    }
    let mut text = fs::read_to_string(folder.path().join(NPM_LOCK_FILE))?;
    // npm names it after the folder.
    let name = folder.path().file_name().and_then(|name| name.to_str()).unwrap_or_default();
    text = text.replacen(&format!("  \"name\": \"{name}\",\n"), "", 1);
    fs::write(recipe.join(NPM_LOCK_FILE), text)?;
    println!("{}: written by npm", recipe.join(NPM_LOCK_FILE).display());
    Ok(())
}
