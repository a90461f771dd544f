//! What VMMs need of this host, each tried.

use std::path::Path;
use std::time::{Duration, SystemTime};

use mvm_model::Requirement;

use crate::accel::{Accel, AccelProbe, KVM};
use crate::cgroup::{Cgroup, Limits};
use crate::{BlockDevice, Detection, Error, sys};

/// What [`cgroups`] is about.
pub const CGROUPS: &str = "cgroups";
/// What [`shared_memory`] is about.
pub const BASES: &str = "shared memory";
const CLOCK: &str = "clock";
/// When this was written: no clock is right that says an earlier time. 2026-01-01.
const WRITTEN: Duration = Duration::from_secs(1_767_225_600);

/// The engine that was looked for.
pub fn engine(examined: Result<&Detection, &Error>) -> Requirement {
    let name = "qemu";
    match examined {
        Ok(found) => {
            Requirement::ok(name, format!("{} is version {}", found.binary.display(), found.version))
        }
        Err(Error::NoBinary { binary, reason }) => {
            let found = format!("cannot run {}: {reason}", binary.display());
            let remedy = "install the package qemu-system-x86, or set MVM_QEMU to the binary";
            Requirement::missing(name, found, remedy).by_package("qemu-system-x86")
        }
        Err(error @ Error::Unfit { .. }) => Requirement::missing(
            name,
            error,
            "install QEMU 7.2 or newer, and set MVM_QEMU where it is another binary",
        ),
        Err(error) => Requirement::unknown(name, error),
    }
}

/// Whether machines run on the processor itself; a warning where they are emulated.
pub fn acceleration(probe: &AccelProbe) -> Requirement {
    let name = "kvm";
    if probe.accel == Accel::Kvm {
        return Requirement::ok(name, &probe.reason);
    }
    let found = format!("{}; machines are many times slower so", probe.reason);
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
    let module = if has("vmx") { Some("kvm_intel") } else { has("svm").then_some("kvm_amd") };
    match module.filter(|_| !Path::new(KVM).exists()) {
        Some(module) => Requirement::warning(name, found, format!("load the kernel module {module}"))
            .by_command(&["modprobe", module]),
        None => Requirement::warning(
            name,
            found,
            "turn on virtualization in the firmware, or nested virtualization in the hypervisor that this host runs in",
        ),
    }
}

/// Makes a group with every limit, and removes it.
pub fn cgroups() -> Requirement {
    let limits = Limits { memory_bytes: 64 << 20, threads: 8, processors: 1 };
    let remedy =
        "mount the cgroup hierarchies writable: in a container that is a matter of how it is started";
    match Cgroup::create(&format!("doctor-{}", std::process::id()), limits) {
        Err(error) => Requirement::missing(CGROUPS, error, remedy),
        Ok(group) => {
            group.remove();
            match group.missing() {
                [] => Requirement::ok(CGROUPS, "memory, threads and processors of machines can be limited"),
                missing => Requirement::warning(
                    CGROUPS,
                    format!("no controller for {}: VMMs are not limited in it", missing.join(", ")),
                    "boot the kernel with these controllers (`cgroup_enable=memory`, for one)",
                ),
            }
        }
    }
}

/// Whether machines can be clones that share memory: by a loop device that nobody can write.
pub fn shared_memory(accel: Option<Accel>) -> Requirement {
    let cold = "machines start cold, without a base";
    // Any file does: it is only read.
    let tried =
        std::env::current_exe().map_err(|source| Error::Io { doing: "find this program".to_owned(), source });
    match tried.and_then(|file| BlockDevice::attach(&file)).and_then(|device| device.is_protected()) {
        Ok(true) => Requirement::ok(BASES, "read-only loop devices cannot be written"),
        Ok(false) if accel == Some(Accel::Tcg) => {
            Requirement::ok(BASES, "the filter of emulated VMMs keeps them from writing loop devices")
        }
        Ok(false) => Requirement::warning(
            BASES,
            format!("this kernel lets a read-only device be mapped for writing: on KVM {cold}"),
            "use Linux 6.6 or newer",
        ),
        Err(error) => Requirement::warning(BASES, format!("{error}: {cold}"), "load the kernel module loop")
            .by_command(&["modprobe", "loop"]),
    }
}

/// Whether the host's clock is right, as far as the host knows: machines take it, and so do certificates.
pub fn clock() -> Requirement {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let keep = |found: Requirement| match Path::new("/run/systemd/system").exists() {
        true => found.by_package("systemd-timesyncd").by_command(&["timedatectl", "set-ntp", "true"]),
        false => found.by_package("chrony"),
    };
    if since < WRITTEN {
        return keep(Requirement::missing(
            CLOCK,
            "it says a time before 2026",
            "have it set by time servers",
        ));
    }
    if sys::clock_is_kept() {
        return Requirement::ok(CLOCK, "time servers keep it right");
    }
    keep(Requirement::warning(CLOCK, "nothing on this host keeps it right", "have it kept by time servers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emulated() -> AccelProbe {
        AccelProbe {
            accel: Accel::Tcg,
            reason: "emulated: it stayed silent".to_owned(),
            boot_id: String::new(),
            engine_sha256: String::new(),
        }
    }

    #[test]
    fn emulation_is_a_warning_with_its_reason() {
        let found = acceleration(&emulated());
        assert_eq!(found.status, mvm_model::requirement::Status::Warning);
        assert!(found.found.contains("it stayed silent") && found.remedy.is_some(), "{found:?}");
        let kvm = AccelProbe { accel: Accel::Kvm, ..emulated() };
        assert_eq!(acceleration(&kvm).status, mvm_model::requirement::Status::Ok);
    }

    #[test]
    fn an_engine_that_is_not_there_is_installed_and_one_that_is_too_old_is_not() {
        let binary = "/usr/bin/qemu-system-x86_64".into();
        let absent = Error::NoBinary { binary, reason: "No such file".to_owned() };
        let found = engine(Err(&absent));
        assert_eq!(
            found.commands,
            [["apt-get", "install", "-y", "--no-install-recommends", "qemu-system-x86"]]
        );
        let unfit = Error::Unfit { binary: "/q".into(), missing: vec!["the command cont".to_owned()] };
        let found = engine(Err(&unfit));
        assert!(found.is_missing() && found.commands.is_empty() && found.found.contains("the command cont"));
    }
}
