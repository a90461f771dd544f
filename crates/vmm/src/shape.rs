//! What a snapshot must fit exactly.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::accel::Accel;
use crate::error::{Doing, Error, Result};
use crate::sys;

/// How far two measurements of the same processor's time stamp counter may be apart, in parts per million:
/// the host's kernel calibrates it anew at every boot.
const TSC_TOLERANCE_PPM: u64 = 250;

/// The virtual hardware and the program behind it. A snapshot is resumed on exactly the shape it was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The program that runs the machine.
    pub engine: EngineVersion,
    /// How it runs the guest's code.
    pub accelerator: Accel,
    /// The host's processor, by /proc/cpuinfo.
    pub host_cpu: String,
    /// The processor the guest sees.
    pub guest_cpu: String,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// Processors of the guest.
    pub vcpus: u32,
    /// Memory of the guest in MiB.
    pub mem_mib: u32,
    /// Its devices in the order it sees them.
    pub devices: Vec<Device>,
}

/// A program that runs machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineVersion {
    /// `qemu`.
    pub name: String,
    /// As it tells itself.
    pub version: String,
    /// SHA-256 of its binary, in hex.
    pub sha256: String,
}

/// A device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What it is.
    pub kind: String,
    /// Its size, if it is a disk.
    pub bytes: Option<u64>,
}

/// The first part in which two shapes differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} was {recorded} and is {present}")]
pub struct Misfit {
    /// Which part.
    pub part: &'static str,
    /// What the snapshot has.
    pub recorded: String,
    /// What is there now.
    pub present: String,
}

impl Shape {
    /// Whether a snapshot of this shape can be resumed on `present`.
    ///
    /// # Errors
    /// The first part that differs.
    pub fn fits(&self, present: &Self) -> Result<(), Misfit> {
        same("the engine", &self.engine, &present.engine)?;
        same("the accelerator", &self.accelerator, &present.accelerator)?;
        same("the host's processor", &self.host_cpu, &present.host_cpu)?;
        same("the guest's processor", &self.guest_cpu, &present.guest_cpu)?;
        same("the number of processors", &self.vcpus, &present.vcpus)?;
        same("the memory in MiB", &self.mem_mib, &present.mem_mib)?;
        same("the list of devices", &self.devices, &present.devices)?;
        if is_near(self.tsc_khz, present.tsc_khz) {
            return Ok(());
        }
        Err(Misfit {
            part: "the time stamp counter's kHz",
            recorded: self.tsc_khz.to_string(),
            present: present.tsc_khz.to_string(),
        })
    }
}

fn same<T: PartialEq + std::fmt::Debug>(part: &'static str, recorded: &T, present: &T) -> Result<(), Misfit> {
    if recorded == present {
        return Ok(());
    }
    Err(Misfit { part, recorded: format!("{recorded:?}"), present: format!("{present:?}") })
}

fn is_near(one: u64, other: u64) -> bool {
    let apart = u128::from(one.abs_diff(other));
    apart * 1_000_000 <= u128::from(one.max(other)) * u128::from(TSC_TOLERANCE_PPM)
}

/// The host's processor model.
pub(crate) fn host_cpu() -> Result<String> {
    let path = "/proc/cpuinfo";
    let text = fs::read_to_string(path).doing(|| format!("read {path}"))?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let part = |name| field(name).unwrap_or_else(|| "?".into());
    Ok(format!("{} {}/{}/{}", part("model name"), part("cpu family"), part("model"), part("stepping")))
}

/// Measures the time stamp counter against the monotonic clock that nobody slews.
///
/// # Errors
/// If the counter stands still or goes back.
pub(crate) fn measure_tsc_khz() -> Result<u64> {
    // 50 ms give some 20 ppm; the best of three leaves out most interruptions.
    let mut measured = Vec::new();
    for _ in 0..3 {
        let (start_ticks, start) = tick_and_time();
        std::thread::sleep(Duration::from_millis(50));
        let (end_ticks, end) = tick_and_time();
        let ticks = u128::from(end_ticks.saturating_sub(start_ticks));
        let khz = ticks * 1_000_000 / end.saturating_sub(start).max(1);
        measured.push(u64::try_from(khz).unwrap_or(0));
    }
    measured.sort_unstable();
    match measured[1] {
        0 => Err(Error::Answer("the processor's time stamp counter stands still".into())),
        khz => Ok(khz),
    }
}

/// The counter and the clock in nanoseconds at nearly the same moment: the closest of some readings.
fn tick_and_time() -> (u64, u128) {
    let read = || {
        let before = sys::time_stamp();
        let time = clock_gettime(ClockId::MonotonicRaw);
        let after = sys::time_stamp();
        let nanoseconds = time.tv_sec as u128 * 1_000_000_000 + time.tv_nsec as u128;
        (after.saturating_sub(before), before.midpoint(after), nanoseconds)
    };
    let (_, ticks, time) = (0..16).map(|_| read()).min().unwrap_or_default();
    (ticks, time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape() -> Shape {
        Shape {
            engine: EngineVersion { name: "qemu".into(), version: "7.2.22".into(), sha256: "ab".into() },
            accelerator: Accel::Tcg,
            host_cpu: "x".into(),
            guest_cpu: "qemu64".into(),
            tsc_khz: 2_600_000,
            vcpus: 2,
            mem_mib: 512,
            devices: vec![Device { kind: "virtio-blk-device".into(), bytes: Some(4096) }],
        }
    }

    #[test]
    fn every_part_counts() {
        assert_eq!(shape().fits(&shape()), Ok(()));
        type Change = fn(&mut Shape);
        let changes: [(&str, Change); 8] = [
            ("the engine", |s| s.engine.sha256 = "cd".into()),
            ("the accelerator", |s| s.accelerator = Accel::Kvm),
            ("the host's processor", |s| s.host_cpu.clear()),
            ("the guest's processor", |s| s.guest_cpu.clear()),
            ("the time stamp counter's kHz", |s| s.tsc_khz = 2_600_651),
            ("the number of processors", |s| s.vcpus = 1),
            ("the memory in MiB", |s| s.mem_mib = 513),
            ("the list of devices", |s| s.devices[0].bytes = Some(8192)),
        ];
        for (part, change) in changes {
            let mut other = shape();
            change(&mut other);
            assert_eq!(shape().fits(&other).unwrap_err().part, part);
        }
    }

    #[test]
    fn a_calibration_anew_does_not_count() {
        let other = Shape { tsc_khz: 2_600_650, ..shape() };
        assert_eq!(shape().fits(&other), Ok(()));
    }

    proptest! {
        #[test]
        fn nearness_is_mutual(one in 1u64..u64::MAX, other in 1u64..u64::MAX) {
            prop_assert_eq!(is_near(one, other), is_near(other, one));
            prop_assert!(is_near(one, one));
        }
    }

    #[test]
    fn the_counter_is_measured_alike_twice() {
        let (one, other) = (measure_tsc_khz().unwrap(), measure_tsc_khz().unwrap());
        assert!(one.abs_diff(other) * 100 < one, "{one} {other}");
    }
}
