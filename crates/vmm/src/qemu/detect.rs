//! What the installed QEMU is, and whether it can do everything that is needed.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::{Child, Command};

use super::arguments::{DISK, NETWORK, SERIAL};
use crate::error::{Doing, Error, Result, blocking};
use crate::process::boot_id;
use crate::qmp::Qmp;
use crate::shape;

/// What was found out about QEMU and this host. It can be kept and given to [`Detection::run`] again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// QEMU's binary.
    pub binary: PathBuf,
    /// Its version.
    pub version: String,
    /// SHA-256 of the binary, in hex.
    pub sha256: String,
    /// The host's processor.
    pub host_cpu: String,
    /// Frequency of its time stamp counter.
    pub tsc_khz: u64,
    stamp: FileStamp,
    boot_id: String,
}

/// What changes when a file is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// The oldest version that was tried.
const OLDEST: (u64, u64) = (7, 2);
const COMMANDS: [&str; 17] = [
    "add-fd",
    "blockdev-add",
    "blockdev-reopen",
    "cont",
    "getfd",
    "human-monitor-command",
    "migrate-incoming",
    "migrate-set-parameters",
    "query-chardev",
    "query-migrate",
    "query-status",
    "quit",
    "remove-fd",
    "set_link",
    "stop",
    "xen-save-devices-state",
    "closefd",
];
const PROPERTIES: [(&str, &[&str]); 4] = [
    (DISK, &["drive"]),
    (NETWORK, &["netdev", "mac"]),
    (SERIAL, &["max_ports"]),
    ("virtserialport", &["chardev", "name", "nr"]),
];
const OBJECTS: [&str; 3] = ["memory-backend-ram", "memory-backend-file", "throttle-group"];
const MACHINE: &str = "microvm";

impl Detection {
    /// Examines `binary` and names everything it lacks. What is `known` and still true is not found out again.
    ///
    /// # Errors
    /// [`Error::NoBinary`], [`Error::Unfit`].
    pub async fn run(binary: &Path, known: Option<Self>) -> Result<Self> {
        let no_binary = |reason: String| Error::NoBinary { binary: binary.to_owned(), reason };
        let stamp = FileStamp::of(binary).map_err(|error| no_binary(error.to_string()))?;
        let boot_id = boot_id()?;
        let known = known.filter(|known| known.binary == binary && known.boot_id == boot_id);
        if let Some(known) = known.as_ref().filter(|known| known.stamp == stamp) {
            return Ok(known.clone());
        }
        let path = binary.to_owned();
        let measured = blocking(move || {
            // The processor stays what it is for as long as the host runs.
            let (host_cpu, tsc_khz) = match known {
                Some(known) => (known.host_cpu, known.tsc_khz),
                None => (shape::host_cpu()?, shape::measure_tsc_khz()?),
            };
            Ok((hash(&path)?, host_cpu, tsc_khz))
        });
        let (version, measured) = tokio::join!(examine(binary), measured);
        let (sha256, host_cpu, tsc_khz) = measured?;
        Ok(Self { binary: binary.to_owned(), version: version?, sha256, host_cpu, tsc_khz, stamp, boot_id })
    }
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        let (device, inode, bytes) = (found.dev(), found.ino(), found.len());
        Ok(Self { device, inode, bytes, changed: (found.ctime(), found.ctime_nsec()) })
    }
}

fn hash(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hasher))
        .doing(|| format!("read {}", path.display()))?;
    Ok(hex::encode(hasher.finalize()))
}

/// Starts QEMU without a machine, asks it, and returns its version.
async fn examine(binary: &Path) -> Result<String> {
    let no_binary = |reason: String| Error::NoBinary { binary: binary.to_owned(), reason };
    let (mut child, socket) = start(binary).map_err(|error| no_binary(error.to_string()))?;
    let asked = async {
        let socket = tokio::net::UnixStream::from_std(socket).doing(|| "use a socket".into())?;
        let (monitor, _events) = Qmp::negotiate(socket).await?;
        let version = version(&monitor).await?;
        Ok::<_, Error>((version, missing(&monitor, version).await?))
    };
    let answer = asked.await;
    // It was started for these questions only.
    let _ = child.kill().await;
    let (version, missing) = answer.map_err(|error| no_binary(error.to_string()))?;
    if missing.is_empty() {
        return Ok(version.to_string());
    }
    Err(Error::Unfit { binary: binary.to_owned(), missing })
}

fn start(binary: &Path) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(binary)
        .args(["-M", "none", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-chardev", "socket,id=monitor,fd=0", "-mon", "chardev=monitor,mode=control"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, ours))
}

#[derive(Clone, Copy)]
struct Version {
    major: u64,
    minor: u64,
    micro: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

async fn version(monitor: &Qmp) -> Result<Version> {
    let answer = monitor.execute("query-version", json!({})).await?;
    let number = |name: &str| answer["qemu"][name].as_u64();
    match (number("major"), number("minor"), number("micro")) {
        (Some(major), Some(minor), Some(micro)) => Ok(Version { major, minor, micro }),
        _ => Err(Error::Answer(format!("the version {answer}"))),
    }
}

/// Everything needed that this QEMU lacks.
async fn missing(monitor: &Qmp, version: Version) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    if (version.major, version.minor) < OLDEST {
        missing.push(format!("version {}.{} (it is {version})", OLDEST.0, OLDEST.1));
    }
    let mut lacks = |what: &str, wanted: &[&str], found: &[String]| {
        let absent = wanted.iter().filter(|name| !found.iter().any(|found| found == *name));
        missing.extend(absent.map(|name| format!("the {what} {name}")));
    };
    lacks("command", &COMMANDS, &names(&monitor.execute("query-commands", json!({})).await?));
    lacks("machine", &[MACHINE], &names(&monitor.execute("query-machines", json!({})).await?));
    lacks("object", &OBJECTS, &names(&monitor.execute("qom-list-types", json!({})).await?));
    for (device, properties) in PROPERTIES {
        let asked = monitor.execute("device-list-properties", json!({ "typename": device })).await;
        lacks(
            &format!("{device} property"),
            properties,
            &asked.map(|answer| names(&answer)).unwrap_or_default(),
        );
    }
    let options = monitor.execute("query-command-line-options", json!({ "option": "sandbox" })).await;
    lacks("option", &["sandbox"], &options.map(|answer| option_names(&answer)).unwrap_or_default());
    let help = json!({ "command-line": "help gpa2hva" });
    let help = monitor.execute("human-monitor-command", help).await?;
    let found = help.as_str().unwrap_or_default().starts_with("gpa2hva").then(|| "gpa2hva".to_owned());
    lacks("monitor command", &["gpa2hva"], found.as_slice());
    Ok(missing)
}

/// The `name`s in a list of objects.
fn names(list: &Value) -> Vec<String> {
    strings(list, "name")
}

fn option_names(list: &Value) -> Vec<String> {
    strings(list, "option")
}

fn strings(list: &Value, key: &str) -> Vec<String> {
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(|entry| entry[key].as_str().map(str::to_owned)).collect()
}
