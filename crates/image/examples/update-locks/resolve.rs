//! What else a list of packages needs.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::index::{Index, Package};
use crate::{Result, version};

/// The packages asked for and all that they need. Of alternatives the first that there is counts;
/// essential packages are there only where they are asked for by name.
pub(crate) fn closure<'a>(index: &'a Index, requested: &[String]) -> Result<Vec<&'a Package>> {
    let mut chosen: BTreeMap<&str, &Package> = BTreeMap::new();
    for name in requested {
        let package = index.package(name).ok_or_else(|| format!("there is no package {name}"))?;
        chosen.insert(&package.name, package);
    }
    let mut open: Vec<&Package> = chosen.values().rev().copied().collect();
    while let Some(package) = open.pop() {
        for dependency in &package.depends {
            let found = choose(index, &chosen, dependency)
                .ok_or_else(|| format!("{}: nothing is {dependency}", package.name))?;
            if !found.essential && chosen.insert(&found.name, found).is_none() {
                open.push(found);
            }
        }
    }
    Ok(chosen.into_values().collect())
}

/// The kernel that a metapackage stands for.
pub(crate) fn kernel<'a>(index: &'a Index, metapackage: &str) -> Result<&'a Package> {
    let depends = index.package(metapackage).map(|package| package.depends.as_slice());
    let mut names = depends.unwrap_or_default().iter().map(|text| Relation::parse(text).name);
    let kernel = names.find(|name| name.starts_with("linux-image-"));
    let package = kernel.and_then(|name| index.package(name));
    package.ok_or_else(|| format!("{metapackage} names no kernel").into())
}

/// What meets a dependency: something chosen already, else its first alternative that there is.
fn choose<'a>(
    index: &'a Index,
    chosen: &BTreeMap<&str, &'a Package>,
    dependency: &str,
) -> Option<&'a Package> {
    let alternatives: Vec<_> = dependency.split('|').map(Relation::parse).collect();
    let is_chosen = |package: &&&'a Package| alternatives.iter().any(|a| a.is_met_by(package));
    if let Some(package) = chosen.values().find(is_chosen) {
        return Some(package);
    }
    alternatives.iter().find_map(|relation| {
        let real = index.package(relation.name).filter(|package| relation.is_met_by(package));
        real.or_else(|| index.provider(relation.name).filter(|package| relation.is_met_by(package)))
    })
}

/// `name (>= version)`
struct Relation<'a> {
    name: &'a str,
    constraint: Option<(&'a str, &'a str)>,
}

impl<'a> Relation<'a> {
    fn parse(text: &'a str) -> Self {
        let (name, constraint) = match text.trim().split_once('(') {
            Some((name, constraint)) => (name, constraint.trim_end_matches(')').split_once(' ')),
            None => (text, None),
        };
        // `:any` is about other machine types, of which there are none.
        Self { name: name.trim().trim_end_matches(":any"), constraint }
    }

    fn is_met_by(&self, package: &Package) -> bool {
        if package.name != self.name {
            return self.constraint.is_none() && package.provides.iter().any(|p| p == self.name);
        }
        let Some((operator, wanted)) = self.constraint else { return true };
        let order = version::compare(&package.version, wanted);
        match operator {
            ">=" => order != Ordering::Less,
            "<=" => order != Ordering::Greater,
            ">>" => order == Ordering::Greater,
            "<<" => order == Ordering::Less,
            "=" => order == Ordering::Equal,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use mvm_image::lock::Archive;

    use super::*;

    fn index(packages: &[(&str, &str, &str)]) -> Index {
        let mut index = Index::default();
        let sha256 = "0".repeat(64);
        for (name, version, more) in packages {
            let stanza = format!(
                "Package: {name}\nVersion: {version}\nFilename: pool/x\nSize: 1\nSHA256: {sha256}\n{more}"
            );
            index.add(Archive::Debian, &stanza).unwrap();
        }
        index
    }

    fn names(index: &Index, requested: &[&str]) -> Result<Vec<String>> {
        let requested: Vec<_> = requested.iter().map(|name| name.to_string()).collect();
        Ok(closure(index, &requested)?.into_iter().map(|package| package.name.clone()).collect())
    }

    #[test]
    fn the_closure_has_what_is_needed_and_nothing_else() {
        let index = index(&[
            ("app", "1", "Pre-Depends: libc (>= 2)\nDepends: missing | awk, dpkg, python:any"),
            ("libc", "2.36-9", ""),
            ("libc", "1.0", "Depends: old"),
            ("mawk", "1", "Provides: awk"),
            ("python", "3", "Depends: libc"),
            ("dpkg", "1", "Essential: yes\nDepends: tar"),
            ("other", "1", ""),
        ]);
        assert_eq!(names(&index, &["app"]).unwrap(), ["app", "libc", "mawk", "python"]);
        let with = ["app", "dpkg"];
        assert!(names(&index, &with).unwrap_err().to_string().contains("nothing is tar"));
    }

    #[test]
    fn a_version_that_is_too_old_is_not_taken() {
        let index = index(&[("app", "1", "Depends: libc (>= 2.36-9+deb12u1)"), ("libc", "2.36-9", "")]);
        assert!(names(&index, &["app"]).is_err());
    }
}
