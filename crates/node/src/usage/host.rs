//! What /proc says about the host.

use std::fs;
use std::path::Path;

use mvm_protocol::api::Folder;

use super::UsageError;

/// The host's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What programs could take without swapping.
    pub available: u64,
}

impl Memory {
    /// All of it, in MiB.
    pub fn total_mib(self) -> u64 {
        self.total >> 20
    }

    /// What programs could take, in MiB.
    pub fn available_mib(self) -> u64 {
        self.available >> 20
    }
}

pub(super) fn read(path: &str) -> Result<String, UsageError> {
    fs::read_to_string(path).map_err(|error| UsageError::new(path, error))
}

/// The host's memory now.
///
/// # Errors
/// Where /proc is not mounted.
pub fn memory() -> Result<Memory, UsageError> {
    let path = "/proc/meminfo";
    parse_memory(&read(path)?).ok_or_else(|| UsageError::new(path, "it says nothing of the memory"))
}

fn parse_memory(text: &str) -> Option<Memory> {
    Some(Memory { total: kib(text, "MemTotal:")? << 10, available: kib(text, "MemAvailable:")? << 10 })
}

/// The number of KiB in the line that begins with `name`.
pub(super) fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The first processor's name; not every architecture tells one.
pub(super) fn cpu_model() -> Result<String, UsageError> {
    let text = read("/proc/cpuinfo")?;
    Ok(parse_cpu_model(&text).unwrap_or("unknown").to_owned())
}

fn parse_cpu_model(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// The load averages of 1, 5 and 15 minutes.
pub(super) fn load() -> Result<[f64; 3], UsageError> {
    let path = "/proc/loadavg";
    parse_load(&read(path)?).ok_or_else(|| UsageError::new(path, "it says nothing of the load"))
}

fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}

/// A folder and the file system that it is on.
///
/// # Errors
/// Where the folder cannot be looked at.
pub fn folder(path: &Path) -> Result<Folder, UsageError> {
    let name = path.display();
    let stat = rustix::fs::statvfs(path).map_err(|error| UsageError::new(name, error))?;
    Ok(Folder {
        path: path.display().to_string(),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_its_lines() {
        let text =
            "MemTotal:       24683520 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\nHugePages_Total: 0\n";
        let memory = parse_memory(text).unwrap();
        assert_eq!((memory.total, memory.available_mib()), (24_683_520 << 10, 2));
        assert_eq!(parse_memory("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn this_host_says_everything() {
        let memory = memory().unwrap();
        assert!(memory.available <= memory.total && memory.total_mib() > 64);
        assert!(!cpu_model().unwrap().is_empty());
        assert!(load().unwrap().iter().all(|load| *load >= 0.0));
        let folder = folder(Path::new("/proc/..")).unwrap();
        assert!(folder.free_bytes <= folder.total_bytes);
    }

    #[test]
    fn names_and_loads_are_found() {
        assert_eq!(
            parse_cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(parse_cpu_model("processor\t: 0\n"), None);
        assert_eq!(parse_load("0.52 1.00 2.25 1/234 5678\n"), Some([0.52, 1.0, 2.25]));
        assert_eq!(parse_load("0.52 x\n"), None);
    }
}
