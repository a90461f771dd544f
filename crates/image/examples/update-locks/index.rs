//! The archives' lists of packages, checked by signature and digest.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use lzma_rust2::XzReader;
use mvm_image::Digest;
use mvm_image::archive::Mirrors;
use mvm_image::lock::{Archive, LockedPackage};

use crate::{Result, version};

const SUITES: [(Archive, &str); 3] = [
    (Archive::Debian, "bookworm"),
    (Archive::Debian, "bookworm-updates"),
    (Archive::DebianSecurity, "bookworm-security"),
];
const PACKAGES: &str = "main/binary-amd64/Packages.xz";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A package that an archive has.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// What it needs: each entry is met by one of its alternatives.
    pub(crate) depends: Vec<String>,
    pub(crate) provides: Vec<String>,
    pub(crate) essential: bool,
    locked: LockedPackage,
}

impl Package {
    pub(crate) fn locked(&self) -> LockedPackage {
        self.locked.clone()
    }
}

/// The newest version of every package.
#[derive(Debug, Default)]
pub(crate) struct Index {
    packages: BTreeMap<String, Package>,
}

impl Index {
    /// Fetches the lists of Debian 12: main archive, updates, security updates.
    pub(crate) fn fetch(mirrors: &Mirrors) -> Result<Self> {
        let mut index = Self::default();
        for (archive, suite) in SUITES {
            let base = format!("{}/dists/{suite}", mirrors.root(archive));
            let release = verified(&get(&format!("{base}/InRelease"))?)?;
            let packages = get(&format!("{base}/{PACKAGES}"))?;
            if Some(Digest::of(&packages).to_string()) != listed_digest(&release) {
                return Err(format!("{base}/{PACKAGES}: not the file that the release names").into());
            }
            let mut text = String::new();
            XzReader::new(packages.as_slice(), true).read_to_string(&mut text)?;
            index.add(archive, &text)?;
        }
        Ok(index)
    }

    pub(crate) fn add(&mut self, archive: Archive, text: &str) -> Result<()> {
        for stanza in text.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
            let package = parse(archive, stanza)?;
            let is_newer = self
                .packages
                .get(&package.name)
                .is_none_or(|known| version::compare(&package.version, &known.version).is_gt());
            if is_newer {
                self.packages.insert(package.name.clone(), package);
            }
        }
        Ok(())
    }

    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages.get(name)
    }

    /// The first package, by name, that provides a name.
    pub(crate) fn provider(&self, name: &str) -> Option<&Package> {
        let provides = |package: &&Package| package.provides.iter().any(|provided| provided == name);
        self.packages.values().find(provides)
    }
}

fn parse(archive: Archive, stanza: &str) -> Result<Package> {
    let fields: HashMap<&str, &str> = stanza
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_once(": "))
        .collect();
    let field = |name: &str| {
        fields.get(name).ok_or_else(|| format!("a package of the index has no {name}: {stanza}"))
    };
    let list = |name: &str| {
        let text = fields.get(name).copied().unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned)
    };
    let (name, version) = (field("Package")?.to_string(), field("Version")?.to_string());
    Ok(Package {
        depends: list("Pre-Depends").chain(list("Depends")).collect(),
        provides: list("Provides").filter_map(|p| Some(p.split(' ').next()?.to_owned())).collect(),
        essential: fields.get("Essential") == Some(&"yes"),
        locked: LockedPackage {
            name: name.clone(),
            version: version.clone(),
            archive,
            path: field("Filename")?.to_string(),
            size: field("Size")?.parse()?,
            sha256: field("SHA256")?.parse()?,
        },
        name,
        version,
    })
}

/// What a signed file says, if Debian signed it.
fn verified(signed: &[u8]) -> Result<String> {
    if !Path::new(KEYRING).exists() {
        return Err(format!("{KEYRING} is missing: install debian-archive-keyring").into());
    }
    let folder = tempfile::tempdir()?;
    let (from, to) = (folder.path().join("InRelease"), folder.path().join("Release"));
    fs::write(&from, signed)?;
    let output = Command::new("gpgv")
        .args(["--quiet", "--keyring", KEYRING, "--output"])
        .arg(&to)
        .arg(&from)
        .output()
        .map_err(|e| format!("gpgv: {e}: install the package gpgv"))?;
    if !output.status.success() {
        return Err(format!("gpgv: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(fs::read_to_string(to)?)
}

/// The SHA-256 that a release gives for its list of packages.
fn listed_digest(release: &str) -> Option<String> {
    let (_, digests) = release.split_once("\nSHA256:\n")?;
    let mut lines = digests.lines().take_while(|line| line.starts_with(' '));
    let line = lines.find(|line| line.ends_with(&format!(" {PACKAGES}")))?;
    line.split_whitespace().next().map(str::to_owned)
}

fn get(address: &str) -> Result<Vec<u8>> {
    let agent: ureq::Agent = mvm_https::config().build().into();
    let mut response = agent.get(address).call().map_err(|e| format!("{address}: {e}"))?;
    Ok(response.body_mut().with_config().limit(MAX_INDEX_BYTES).read_to_vec()?)
}
