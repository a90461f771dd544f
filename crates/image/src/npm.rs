//! Packages of npm: what its lock pins, unpacked as `npm ci --ignore-scripts` would. No script of theirs is run.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::GzDecoder;
use glob::Pattern;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};
use tar::EntryType;

use crate::error::{At, Error, Result, malformed};
use crate::tree::Tree;

/// Where they go, beside Debian's own.
const ROOT: &str = "/usr/lib";
const NODE_MODULES: &str = "node_modules";
/// The machines' system, as packages name it.
const OS: &str = "linux";
const CPU: &str = "x64";
const LIBC: &str = "glibc";
/// The version of npm's lock that is read.
const LOCK_VERSION: u32 = 3;

/// A package's SHA-512; as text 128 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub(crate) struct Integrity([u8; 64]);

impl Integrity {
    /// As npm writes it: `sha512-` and base64.
    fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix("sha512-")?).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Of a file's content.
    pub(crate) fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Sha512::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(Self(hasher.finalize().into()));
            }
            hasher.update(&buffer[..read]);
        }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Integrity> for String {
    fn from(integrity: Integrity) -> String {
        integrity.to_string()
    }
}

/// One version of one package, in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NpmPackage {
    /// Its place, beginning with `node_modules/`.
    pub(crate) path: PathBuf,
    /// Its name in the registry.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The digest of its archive.
    pub(crate) integrity: Integrity,
    /// Its files that are programs, whatever its archive says.
    pub(crate) programs: Vec<PathBuf>,
}

/// What is read of npm's lock.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NpmLock {
    lockfile_version: u32,
    packages: BTreeMap<PathBuf, Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// Only where the place does not say it.
    name: Option<String>,
    version: Option<String>,
    integrity: Option<String>,
    #[serde(default)]
    optional: bool,
    /// It comes with the package that it is in.
    #[serde(default)]
    in_bundle: bool,
    #[serde(default)]
    bin: BTreeMap<String, PathBuf>,
    os: Option<Names>,
    cpu: Option<Names>,
    libc: Option<Names>,
}

/// Both are written.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Some(Vec<String>),
}

impl Entry {
    /// Whether it is for machines.
    fn fits(&self) -> bool {
        [(&self.os, OS), (&self.cpu, CPU), (&self.libc, LIBC)]
            .into_iter()
            .all(|(list, own)| allows(list, own))
    }
}

/// `"linux"`, `["linux"]`, `["!win32"]`, or nothing.
fn allows(names: &Option<Names>, own: &str) -> bool {
    let list = match names {
        None => return true,
        Some(Names::One(name)) => std::slice::from_ref(name),
        Some(Names::Some(list)) => list,
    };
    let (not, only): (Vec<&str>, Vec<&str>) =
        list.iter().map(String::as_str).partition(|name| name.starts_with('!'));
    !not.iter().any(|name| &name[1..] == own) && (only.is_empty() || only.contains(&own))
}

/// Reads npm's lock: the packages that machines get, each after the one that it lies in; `file` is for messages.
///
/// # Errors
/// [`Error::Lock`] where it is not in order, or has not what was asked for.
pub(crate) fn locked(file: &Path, text: &[u8], requested: &[&str]) -> Result<Vec<NpmPackage>> {
    let broken = |reason: String| Error::Lock { file: file.to_owned(), reason };
    let lock: NpmLock = serde_json::from_slice(text).map_err(|e| broken(e.to_string()))?;
    if lock.lockfile_version != LOCK_VERSION {
        return Err(broken(format!("has version {}, not {LOCK_VERSION}", lock.lockfile_version)));
    }
    let mut packages = Vec::new();
    for (path, entry) in lock.packages {
        // The first one is what asks for the others.
        if path.as_os_str().is_empty() || entry.in_bundle || (entry.optional && !entry.fits()) {
            continue;
        }
        let place = path.display().to_string();
        packages.push(package(path, entry).map_err(|reason| broken(format!("`{place}` {reason}")))?);
    }
    let is_there = |request: &str| {
        exact(request).is_some_and(|(name, version)| {
            let place = Path::new(NODE_MODULES).join(name);
            packages.iter().any(|package| package.path == place && package.version == version)
        })
    };
    match requested.iter().find(|request| !is_there(request)) {
        Some(missing) => Err(broken(format!("the package `{missing}` of the recipe is not in it"))),
        None => Ok(packages),
    }
}

fn package(path: PathBuf, entry: Entry) -> Result<NpmPackage, String> {
    let is_inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    if !path.starts_with(NODE_MODULES) || !is_inside(&path) {
        return Err("is not a place below node_modules".to_owned());
    }
    if !entry.fits() {
        return Err(format!("is not for {OS} on {CPU}"));
    }
    let place = path.to_string_lossy();
    let name =
        entry.name.unwrap_or_else(|| place.rsplit("node_modules/").next().unwrap_or_default().to_owned());
    let (Some(version), Some(integrity)) = (entry.version, entry.integrity) else {
        return Err("has no version or no integrity".to_owned());
    };
    let integrity =
        Integrity::parse(&integrity).ok_or_else(|| format!("has no SHA-512 but `{integrity}`"))?;
    let programs =
        entry.bin.into_values().map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path));
    let programs: Vec<PathBuf> = programs.filter(|path| is_inside(path)).collect();
    Ok(NpmPackage { path, name, version, integrity, programs })
}

/// Name and version of `name@1.2.3` or `@scope/name@1.2.3`; nothing where it is no exact version.
pub(crate) fn exact(request: &str) -> Option<(&str, &str)> {
    let (name, version) = request.rsplit_once('@')?;
    let is_word = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let parts: Vec<&str> = name.strip_prefix('@').unwrap_or(name).split('/').collect();
    let has_parts = parts.len() == if name.starts_with('@') { 2 } else { 1 };
    let is_name = has_parts && parts.iter().all(|part| is_word(part, "-_.") && !part.starts_with('.'));
    let is_version = version.split('.').count() >= 3 && is_word(version, "-+.");
    (is_name && is_version && version.starts_with(|c: char| c.is_ascii_digit())).then_some((name, version))
}

/// The first pattern that is none, and why.
pub(crate) fn bad_pattern(patterns: &[String]) -> Option<(&str, String)> {
    patterns.iter().find_map(|text| Some((text.as_str(), Pattern::new(text).err()?.to_string())))
}

/// What is left out of packages.
pub(crate) struct Prune(Vec<Pattern>);

impl Prune {
    pub(crate) fn new(patterns: &[String]) -> Result<Self> {
        let parsed = patterns.iter().map(|text| Pattern::new(text).map_err(|e| malformed(text, e)));
        parsed.collect::<Result<_>>().map(Self)
    }

    /// Whether a path below `node_modules`, or a folder that it is in, is to be left out.
    fn takes(&self, path: &Path) -> bool {
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            ..Default::default()
        };
        let matches = |path: &Path| self.0.iter().any(|pattern| pattern.matches_path_with(path, options));
        path.ancestors().filter(|part| !part.as_os_str().is_empty()).any(matches)
    }
}

/// Unpacks a package into its place. Links in it are left out, as npm does.
pub(crate) fn unpack(tree: &Tree, package: &NpmPackage, file: &Path, prune: &Prune) -> Result<()> {
    let what = format!("{}@{}", package.name, package.version);
    let compressed = BufReader::with_capacity(1 << 16, File::open(file).at(file)?);
    let mut archive = tar::Archive::new(GzDecoder::new(compressed));
    let below = package.path.strip_prefix(NODE_MODULES).unwrap_or(&package.path);
    for entry in archive.entries().at(&what)? {
        let mut entry = entry.at(&what)?;
        if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous) {
            continue;
        }
        let path = entry.path().at(&what)?.into_owned();
        // Whatever its first folder is called.
        let inside: PathBuf = path.components().skip(1).collect();
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !is_plain || inside.as_os_str().is_empty() {
            return Err(malformed(&what, format!("has a file in a place of its own: {}", path.display())));
        }
        if prune.takes(&below.join(&inside)) {
            continue;
        }
        let is_program = entry.header().mode().at(&what)? & 0o111 != 0 || package.programs.contains(&inside);
        let mode = if is_program { 0o755 } else { 0o644 };
        tree.file(Path::new(ROOT).join(&package.path).join(&inside), mode, &mut entry)?;
    }
    Ok(())
}

/// Takes from a program what is not loaded when it runs: it is cut after its last segment, and says that it has no
/// sections.
pub(crate) fn strip(tree: &Tree, program: &Path) -> Result<()> {
    let path = tree.on_host(Path::new(ROOT).join(NODE_MODULES).join(program))?;
    let mut file = File::options().read(true).write(true).open(&path).at(&path)?;
    let mut head = [0; 64];
    file.read_exact(&mut head).at(&path)?;
    let end = end_of_segments(&mut file, &head).at(&path)?;
    let end = end.ok_or_else(|| malformed(&path.display().to_string(), "is no 64-bit program of Linux"))?;
    // Offset of the section table; size, number and names of sections.
    head[40..48].fill(0);
    head[58..64].fill(0);
    file.seek(SeekFrom::Start(0)).at(&path)?;
    file.write_all(&head).at(&path)?;
    let length = fs::metadata(&path).at(&path)?.len();
    file.set_len(end.min(length)).at(&path)
}

/// Where the last segment of an ELF file ends; nothing where it is none.
fn end_of_segments(file: &mut File, head: &[u8; 64]) -> io::Result<Option<u64>> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    if head[..6] != *b"\x7fELF\x02\x01" {
        return Ok(None);
    }
    let (table, size, count) = (number(&head[32..40]), number(&head[54..56]), number(&head[56..58]));
    let mut end = table + size * count;
    for index in 0..count {
        let mut segment = [0; 56];
        file.seek(SeekFrom::Start(table + index * size))?;
        file.read_exact(&mut segment)?;
        end = end.max(number(&segment[8..16]) + number(&segment[32..40]));
    }
    Ok(Some(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(packages: serde_json::Value) -> Vec<u8> {
        serde_json::json!({ "lockfileVersion": 3, "packages": packages }).to_string().into_bytes()
    }

    fn sha() -> String {
        format!("sha512-{}", STANDARD.encode([7; 64]))
    }

    #[test]
    fn a_lock_gives_what_machines_get() {
        let text = lock(serde_json::json!({
            "": { "dependencies": { "a": "1.0.0" } },
            "node_modules/a": { "version": "1.0.0", "integrity": sha(), "cpu": "x64", "bin": { "a": "./cli.js" } },
            "node_modules/a/node_modules/@s/b": { "version": "2.0.0", "integrity": sha(), "os": ["!win32"] },
            "node_modules/alias": { "name": "real", "version": "1.2.3", "integrity": sha() },
            "node_modules/mac": { "version": "1.0.0", "integrity": sha(), "os": ["darwin"], "optional": true },
            "node_modules/musl": { "version": "1.0.0", "integrity": sha(), "libc": ["musl"], "optional": true },
            "node_modules/a/node_modules/c": { "version": "1.0.0", "inBundle": true },
        }));
        let packages = locked(Path::new("lock"), &text, &["a@1.0.0"]).unwrap();
        let found: Vec<_> = packages.iter().map(|p| (p.path.to_str().unwrap(), p.name.as_str())).collect();
        let expected = [
            ("node_modules/a", "a"),
            ("node_modules/a/node_modules/@s/b", "@s/b"),
            ("node_modules/alias", "real"),
        ];
        assert_eq!(found, expected);
        assert_eq!(packages[0].programs, [Path::new("cli.js")]);
        let complaint = |text: &[u8], requested: &[&str]| {
            locked(Path::new("lock"), text, requested).unwrap_err().to_string()
        };
        assert!(complaint(&text, &["a@1.0.1"]).contains("`a@1.0.1` of the recipe is not in it"));
        let one = |entry: serde_json::Value| lock(serde_json::json!({ "node_modules/a": entry }));
        assert!(complaint(&one(serde_json::json!({ "version": "1.0.0" })), &[]).contains("no integrity"));
        let sha1 = serde_json::json!({ "version": "1.0.0", "integrity": "sha1-abc" });
        assert!(complaint(&one(sha1), &[]).contains("no SHA-512"));
        let mac = serde_json::json!({ "version": "1.0.0", "integrity": sha(), "os": ["darwin"] });
        assert!(complaint(&one(mac), &[]).contains("is not for linux"));
        let outside = serde_json::json!({ "../a": { "version": "1.0.0", "integrity": sha() } });
        assert!(complaint(&lock(outside), &[]).contains("below node_modules"));
    }

    #[test]
    fn only_exact_versions_are_asked_for() {
        assert_eq!(exact("a@1.0.0"), Some(("a", "1.0.0")));
        assert_eq!(exact("@s/a.b@1.0.0-beta.1"), Some(("@s/a.b", "1.0.0-beta.1")));
        for other in [
            "a",
            "a@1",
            "a@^1.0.0",
            "a@latest",
            "@s@1.0.0",
            "a/b@1.0.0",
            "../a@1.0.0",
            "@s/..@1.0.0",
            "@1.0.0",
        ] {
            assert_eq!(exact(other), None, "{other}");
        }
    }

    #[test]
    fn patterns_take_files_and_whole_folders() {
        let patterns = ["**/*.map", "a/docs", "@s", "**/*.d.ts"].map(str::to_owned);
        let prune = Prune::new(&patterns).unwrap();
        for taken in ["a/x.map", "x.map", "a/docs/b/c.js", "@s/b/c.js", "a/b/c.d.ts"] {
            assert!(prune.takes(Path::new(taken)), "{taken}");
        }
        for left in ["a/x.js", "a/docs.js", "b/docs/c.js", "a/map"] {
            assert!(!prune.takes(Path::new(left)), "{left}");
        }
        assert!(bad_pattern(&["a/***".to_owned()]).is_some());
    }

    #[test]
    fn a_program_that_was_stripped_still_runs() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("usr/lib/node_modules");
        fs::create_dir_all(&root).unwrap();
        let own = std::env::current_exe().unwrap();
        fs::copy(&own, root.join("program")).unwrap();
        strip(&Tree::new(folder.path()), Path::new("program")).unwrap();
        let path = root.join("program");
        assert!(fs::metadata(&path).unwrap().len() < fs::metadata(&own).unwrap().len());
        let said = std::process::Command::new(&path).arg("--list").output().unwrap();
        assert!(said.status.success() && !said.stdout.is_empty());
        fs::write(&path, [0; 100]).unwrap();
        assert!(strip(&Tree::new(folder.path()), Path::new("program")).is_err());
    }
}
