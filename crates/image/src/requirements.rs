//! The tools that images and disks are made with.

use std::process::Command;

use mvm_model::Requirement;

use crate::tool;

/// The oldest e2fsprogs that disks were tried with.
const E2FSPROGS: (u32, u32) = (1, 47);

/// Each, tried.
pub fn requirements() -> [Requirement; 2] {
    [erofs_utils(), e2fsprogs()]
}

fn erofs_utils() -> Requirement {
    let package = "erofs-utils";
    match version(["mkfs.erofs", "--help"], package) {
        Ok(said) => Requirement::ok(package, said),
        Err(missing) => missing,
    }
}

fn e2fsprogs() -> Requirement {
    let package = "e2fsprogs";
    let said = match version(["mke2fs", "-V"], package) {
        Ok(said) => said,
        Err(missing) => return missing,
    };
    match number(&said) {
        Some(found) if found < E2FSPROGS => Requirement::warning(
            package,
            format!("{said}: mvm was tried with {}.{} and newer", E2FSPROGS.0, E2FSPROGS.1),
            "upgrade the package e2fsprogs",
        )
        .by_package(package),
        _ => Requirement::ok(package, said),
    }
}

/// What a tool says of its version, on the stream that it likes.
fn version([tool, flag]: [&str; 2], package: &str) -> Result<String, Requirement> {
    let mut command = Command::new(tool);
    command.arg(flag);
    let remedy = format!("install the package {package}");
    let output = tool::output_of(command, package)
        .map_err(|error| Requirement::missing(package, error, remedy).by_package(package))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().find(|line| line.starts_with(tool)).unwrap_or(tool).trim().to_owned())
}

/// Major and minor: of `mke2fs 1.47.0 (5-Feb-2023)` 1 and 47.
fn number(said: &str) -> Option<(u32, u32)> {
    let word = said.split_ascii_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = word.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_number() {
        assert_eq!(number("mke2fs 1.47.0 (5-Feb-2023)"), Some((1, 47)));
        assert_eq!(number("mke2fs 1.46-WIP"), Some((1, 46)));
        assert_eq!(number("mke2fs"), None);
        assert!((1, 46) < E2FSPROGS && (1, 47) >= E2FSPROGS && (2, 0) > E2FSPROGS);
    }

    #[test]
    fn this_host_has_every_tool() {
        for found in requirements() {
            assert_eq!(found.status, mvm_model::requirement::Status::Ok, "{found:?}");
        }
    }
}
