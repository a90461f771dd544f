//! Fetches pinned packages, of the distribution's archives and of npm's registry, and keeps them by digest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{At, Error, Result};
use crate::flock::FileLock;
use crate::lock::{Archive, LockedPackage};
use crate::npm::{Integrity, NpmPackage};
use crate::work::Workshop;
use crate::{BuildStep, Digest, Progress};

/// The most that is taken of a package whose size is not known, bytes.
const LARGEST: u64 = 1 << 30;

/// Where packages come from. Any server will do: packages are known by their digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// Debian's archive; `MVM_DEBIAN_MIRROR`.
    pub debian: String,
    /// Debian's security updates; `MVM_DEBIAN_SECURITY_MIRROR`.
    pub debian_security: String,
    /// The archive of everything there ever was; `MVM_DEBIAN_SNAPSHOT`.
    pub snapshot: String,
    /// npm's registry; `MVM_NPM_REGISTRY`.
    pub npm: String,
}

impl Mirrors {
    /// The public ones, or what the environment names instead.
    pub fn from_environment() -> Self {
        let variable = |name: &str, default: &str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty());
            value.as_deref().unwrap_or(default).trim_end_matches('/').to_owned()
        };
        Self {
            debian: variable("MVM_DEBIAN_MIRROR", "http://deb.debian.org/debian"),
            debian_security: variable("MVM_DEBIAN_SECURITY_MIRROR", "http://deb.debian.org/debian-security"),
            snapshot: variable("MVM_DEBIAN_SNAPSHOT", "http://snapshot.debian.org/archive"),
            npm: variable("MVM_NPM_REGISTRY", "https://registry.npmjs.org"),
        }
    }

    /// The address of an archive's root.
    pub fn root(&self, archive: Archive) -> &str {
        match archive {
            Archive::Debian => &self.debian,
            Archive::DebianSecurity => &self.debian_security,
        }
    }

    /// A package of the distribution.
    pub(crate) fn deb(&self, package: &LockedPackage, timestamp: &str) -> Wanted {
        let name = match package.archive {
            Archive::Debian => "debian",
            Archive::DebianSecurity => "debian-security",
        };
        Wanted {
            name: package.name.clone(),
            version: package.version.clone(),
            file: format!("{}.deb", package.sha256),
            size: Some(package.size),
            digest: Expected::Sha256(package.sha256),
            addresses: vec![
                format!("{}/{}", self.root(package.archive), package.path),
                format!("{}/{name}/{timestamp}/{}", self.snapshot, package.path),
            ],
        }
    }

    /// A package of npm's registry.
    pub(crate) fn npm(&self, package: &NpmPackage) -> Wanted {
        let NpmPackage { name, version, integrity, .. } = package;
        let base = name.rsplit('/').next().unwrap_or(name);
        Wanted {
            name: name.clone(),
            version: version.clone(),
            file: format!("{integrity}.tgz"),
            size: None,
            digest: Expected::Sha512(*integrity),
            addresses: vec![format!("{}/{name}/-/{base}-{version}.tgz", self.npm)],
        }
    }
}

/// A package that a build needs.
#[derive(Debug)]
pub(crate) struct Wanted {
    name: String,
    version: String,
    /// Its file in the cache.
    file: String,
    /// Bytes, where that is known.
    size: Option<u64>,
    digest: Expected,
    /// Where to look for it, in this order.
    addresses: Vec<String>,
}

/// What a package is known by.
#[derive(Debug)]
enum Expected {
    Sha256(Digest),
    Sha512(Integrity),
}

impl Wanted {
    fn is_intact(&self, path: &Path) -> bool {
        let has_size = |size| fs::metadata(path).is_ok_and(|found| found.len() == size);
        self.size.is_none_or(has_size)
            && match &self.digest {
                Expected::Sha256(expected) => {
                    Digest::of_file(path).is_ok_and(|(digest, _)| digest == *expected)
                }
                Expected::Sha512(expected) => Integrity::of_file(path).is_ok_and(|found| found == *expected),
            }
    }
}

/// Packages on disk, by their digests. Processes may share the folder.
#[derive(Debug)]
pub(crate) struct PackageCache {
    folder: PathBuf,
    work: Workshop,
    agent: ureq::Agent,
}

impl PackageCache {
    pub(crate) fn open(folder: PathBuf, work: Workshop) -> Result<Self> {
        fs::create_dir_all(&folder).at(&folder)?;
        Ok(Self { folder, work, agent: http_agent() })
    }

    /// Makes sure that every package is here, and gives their paths.
    pub(crate) fn fetch_all(&self, packages: &[Wanted], progress: Progress<'_>) -> Result<Vec<PathBuf>> {
        let of = packages.len();
        let fetch = |(index, package): (usize, &Wanted)| {
            self.fetch(package, &|bytes| {
                progress(BuildStep::Fetch {
                    package: package.name.clone(),
                    number: index + 1,
                    of,
                    bytes,
                    total_bytes: package.size,
                });
            })
        };
        packages.iter().enumerate().map(fetch).collect()
    }

    fn fetch(&self, package: &Wanted, received: &dyn Fn(u64)) -> Result<PathBuf> {
        let path = self.folder.join(&package.file);
        let lock = path.with_extension("lock");
        let _lock = FileLock::exclusive(&lock)?;
        if package.is_intact(&path) {
            received(fs::metadata(&path).at(&path)?.len());
            return Ok(path);
        }
        let work = self.work.begin()?;
        let part = work.join("package");
        let mut reasons = Vec::new();
        for address in &package.addresses {
            match self.download(address, package, &part, received) {
                Ok(()) => {
                    fs::rename(&part, &path).at(&path)?;
                    return Ok(path);
                }
                Err(reason) => reasons.push(format!("{address}: {reason}")),
            }
        }
        Err(Error::Fetch {
            package: package.name.clone(),
            version: package.version.clone(),
            reasons: reasons.join("; "),
        })
    }

    /// Into the file `part`, which is what was asked for unless this fails.
    fn download(
        &self,
        address: &str,
        package: &Wanted,
        part: &Path,
        received: &dyn Fn(u64),
    ) -> Result<(), DownloadError> {
        received(0);
        let mut response = self.agent.get(address).call()?;
        // One byte more than expected is enough to know that it is something else.
        let mut body = response.body_mut().as_reader().take(package.size.unwrap_or(LARGEST) + 1);
        let mut file = File::create(part)?;
        let mut buffer = vec![0; 1 << 16];
        let mut length = 0;
        loop {
            let read = body.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read])?;
            length += read as u64;
            received(length);
        }
        if !package.is_intact(part) {
            return Err(DownloadError::Different);
        }
        Ok(file.sync_all()?)
    }
}

#[derive(Debug, thiserror::Error)]
enum DownloadError {
    #[error(transparent)]
    Http(#[from] ureq::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("has another size or digest than the lock says")]
    Different,
}

/// What comes is checked by digest (packages) or signature (indexes): TLS is for servers that want it.
fn http_agent() -> ureq::Agent {
    mvm_https::config()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(900)))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    /// An HTTP server that has these files and remembers what it was asked for. It ends with the test.
    fn serve(files: BTreeMap<&'static str, &'static [u8]>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(std::io::Result::ok) {
                let lines = BufReader::new(&stream).lines().map_while(std::io::Result::ok);
                let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
                let (status, body) = match files.get(path.as_str()) {
                    Some(body) => ("200 OK", *body),
                    None => ("404 Not Found", &b"no"[..]),
                };
                seen.lock().unwrap().push(path);
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        (address, asked)
    }

    fn mirrors(server: SocketAddr) -> Mirrors {
        Mirrors {
            debian: format!("http://{server}/debian"),
            debian_security: format!("http://{server}/security"),
            snapshot: format!("http://{server}/snapshot"),
            npm: format!("http://{server}/npm"),
        }
    }

    fn cache(folder: &Path) -> PackageCache {
        let work = Workshop::open(folder.join("work")).unwrap();
        PackageCache::open(folder.join("packages"), work).unwrap()
    }

    fn package() -> LockedPackage {
        LockedPackage {
            name: "app".to_owned(),
            version: "1".to_owned(),
            archive: Archive::Debian,
            path: "pool/app.deb".to_owned(),
            size: 7,
            sha256: Digest::of(b"content"),
        }
    }

    #[test]
    fn the_snapshot_archive_has_what_the_mirror_lost() {
        let folder = tempfile::tempdir().unwrap();
        // The mirror has something else by that name, of the same size.
        let files: BTreeMap<_, &[u8]> = [
            ("/debian/pool/app.deb", &b"CONTENT"[..]),
            ("/snapshot/debian/20260101T000000Z/pool/app.deb", &b"content"[..]),
        ]
        .into();
        let (server, asked) = serve(files);
        let cache = cache(folder.path());
        let wanted = [mirrors(server).deb(&package(), "20260101T000000Z")];
        let fetch = || cache.fetch_all(&wanted, &|_| ()).unwrap();
        let paths = fetch();
        assert_eq!(fs::read(&paths[0]).unwrap(), b"content");
        assert_eq!(fetch(), paths);
        assert_eq!(asked.lock().unwrap().len(), 2, "what is here is not fetched again");

        fs::write(&paths[0], b"damaged").unwrap();
        assert_eq!(fs::read(&fetch()[0]).unwrap(), b"content");
    }

    #[test]
    fn a_package_of_npm_is_known_by_its_integrity() {
        let folder = tempfile::tempdir().unwrap();
        let content = folder.path().join("content");
        fs::write(&content, "content").unwrap();
        let package = NpmPackage {
            path: "node_modules/@a/b".into(),
            name: "@a/b".to_owned(),
            version: "1.0.0".to_owned(),
            integrity: Integrity::of_file(&content).unwrap(),
            programs: Vec::new(),
        };
        let (server, _) = serve([("/npm/@a/b/-/b-1.0.0.tgz", &b"content"[..])].into());
        let cache = cache(folder.path());
        let paths = cache.fetch_all(&[mirrors(server).npm(&package)], &|_| ()).unwrap();
        assert_eq!(fs::read(&paths[0]).unwrap(), b"content");
        let (server, _) = serve([("/npm/@a/b/-/b-1.0.0.tgz", &b"CONTENT"[..])].into());
        fs::remove_file(&paths[0]).unwrap();
        assert!(cache.fetch_all(&[mirrors(server).npm(&package)], &|_| ()).is_err());
    }

    #[test]
    fn what_no_archive_has_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (server, _) = serve([("/debian/pool/app.deb", &b"content and more"[..])].into());
        let wanted = [mirrors(server).deb(&package(), "t")];
        let error = cache(folder.path()).fetch_all(&wanted, &|_| ()).unwrap_err();
        let text = error.to_string();
        for part in ["app 1", "another size or digest", "404", "scripts/update-locks"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let left = fs::read_dir(folder.path().join("packages")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{names:?}");
    }
}
