//! A running QEMU.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::arguments::{CONTROL_ID, DATA_LIMITS, DATA_NODE, NETWORK_ID, TAP_ID};
use super::open_data;
use super::start::{CONSOLE, CONTROL, MONITOR};
use crate::cgroup::Cgroup;
use crate::ended::{Ended, Exit, Shutdown};
use crate::engine::{Machine, MachineSpec, MemoryBase, MemoryUsage};
use crate::error::{Doing, Error, Result, blocking};
use crate::memory::GuestMemory;
use crate::process::{ProcessIdentity, kill, wait_for_exit};
use crate::qmp::{Event, PATIENCE, Qmp, QmpError};
use crate::shape::Shape;
use crate::snapshot::{
    self, BaseFacts, BaseInfo, FileIdentity, Paused, Restore, SnapshotFacts, SnapshotInfo, SnapshotOptions,
};

/// How long the control socket may take to be seen connected; it was connected before.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How long device state may take; it takes milliseconds.
const STATE_PATIENCE: Duration = Duration::from_secs(30);
/// For so long it is looked at without a pause.
const EAGER: Duration = Duration::from_millis(10);
/// Between two looks at something that takes longer.
const SOON: Duration = Duration::from_millis(1);
/// The largest device state that is believed.
const LARGEST_STATE: u64 = 64 << 20;
/// How often a machine's failing disk is logged.
const TOLD_FAILURES: u32 = 10;
/// Name of a descriptor in the monitor.
const STATE: &str = "state";
/// The data disk of a machine that was a spare: its descriptor's set, and its node below the filter.
const DATA_SET: u32 = 1;
const DATA_DISK: &str = "data-disk-own";

/// What a machine is made of, beside its monitor.
pub(super) struct Parts {
    pub(super) identity: ProcessIdentity,
    pub(super) process: OwnedFd,
    pub(super) data: File,
    pub(super) cgroup: Cgroup,
    pub(super) with_tap: bool,
}

/// A machine with a QEMU.
pub(super) struct QemuMachine {
    identity: ProcessIdentity,
    process: OwnedFd,
    data: Arc<File>,
    monitor: Qmp,
    shape: Shape,
    base: MemoryBase,
    control: PathBuf,
    console: PathBuf,
    missing_limits: Vec<String>,
    /// Of two ends the tap's: device state that is loaded brings the guest's end back as it was, and leaves this.
    link: &'static str,
    ended: watch::Receiver<Option<Ended>>,
}

impl QemuMachine {
    /// Connects to a process's monitor and watches for its end.
    pub(super) async fn attach(parts: Parts, spec: &MachineSpec, shape: Shape) -> Result<Self> {
        let Parts { identity, process, data, cgroup, with_tap } = parts;
        let (monitor, events) = Qmp::connect(&spec.run_dir.join(MONITOR)).await?;
        let watched = process.try_clone().doing(|| "duplicate a descriptor".into())?;
        let (sender, ended) = watch::channel(None);
        let missing_limits = cgroup.missing().to_vec();
        tokio::spawn(watch_end(watched, events, cgroup, sender));
        Ok(Self {
            identity,
            process,
            data: Arc::new(data),
            monitor,
            shape,
            base: spec.memory.clone(),
            control: spec.run_dir.join(CONTROL),
            console: spec.run_dir.join(CONSOLE),
            missing_limits,
            link: if with_tap { TAP_ID } else { NETWORK_ID },
            ended,
        })
    }

    pub(super) async fn set_link_down(&self) -> Result<()> {
        self.set_link(false).await
    }

    async fn ask(&self, command: &str, arguments: Value) -> Result<Value> {
        self.ask_with(command, arguments, None, PATIENCE).await
    }

    /// Runs a command; if the VMM ended meanwhile, tells that instead of the broken connection.
    async fn ask_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<&OwnedFd>,
        patience: Duration,
    ) -> Result<Value> {
        let descriptor = descriptor.map(AsFd::as_fd);
        match self.monitor.execute_with(command, arguments, descriptor, patience).await {
            Err(QmpError::Closed) => match timeout(CONNECT_PATIENCE, self.wait()).await {
                Ok(ended) => Err(Error::Ended(ended)),
                Err(_) => Err(QmpError::Closed.into()),
            },
            other => Ok(other?),
        }
    }

    /// The guest's memory in the VMM, found by asking where its first page is.
    async fn memory(&self) -> Result<GuestMemory> {
        let answer = self.ask("human-monitor-command", json!({ "command-line": "gpa2hva 0" })).await?;
        let text = answer.as_str().unwrap_or_default();
        let address = parse_address(text).ok_or_else(|| Error::Answer(text.to_owned()))?;
        let (pid, bytes) = (self.identity.pid, u64::from(self.shape.mem_mib) << 20);
        let of_file = self.base != MemoryBase::Empty;
        blocking(move || GuestMemory::new(pid, address, bytes, of_file)).await
    }

    async fn status(&self) -> Result<String> {
        let answer = self.ask("query-status", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    async fn require_status(&self, allowed: &[&str], needed: &'static str) -> Result<()> {
        let found = self.status().await?;
        if allowed.contains(&found.as_str()) { Ok(()) } else { Err(Error::WrongStatus { found, needed }) }
    }

    /// Until QEMU has noticed the connection that the caller made.
    async fn require_control(&self) -> Result<()> {
        let deadline = Instant::now() + CONNECT_PATIENCE;
        while Instant::now() < deadline {
            let answer = self.ask("query-chardev", json!({})).await?;
            let control = answer.as_array().into_iter().flatten().find(|dev| dev["label"] == CONTROL_ID);
            let socket = control.and_then(|control| control["filename"].as_str());
            if socket.is_some_and(|name| !name.starts_with("disconnected:")) {
                return Ok(());
            }
            sleep(SOON).await;
        }
        Err(Error::ControlNotConnected)
    }

    /// Has QEMU save everything but memory. It gets a descriptor of memory of ours, never one of the snapshot's files.
    async fn save_devices(&self) -> Result<Vec<u8>> {
        let state = memory_file(&[])?;
        let for_writing = reopen_for_writing(&state)?;
        let answer = self.ask_with("add-fd", json!({}), Some(&for_writing), PATIENCE).await?;
        let set = answer["fdset-id"].as_u64().ok_or_else(|| Error::Answer(format!("add-fd: {answer}")))?;
        // `live: false`, or the disks would be given up, and the machine could not go on.
        let save = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
        let saved = self.ask_with("xen-save-devices-state", save, None, STATE_PATIENCE).await;
        self.ask("remove-fd", json!({ "fdset-id": set })).await?;
        saved?;
        blocking(move || {
            let mut content = Vec::new();
            state.take(LARGEST_STATE).read_to_end(&mut content).doing(|| "read the device state".into())?;
            Ok(content)
        })
        .await
    }

    async fn load_devices(&self, state: &[u8]) -> Result<()> {
        // What was checked is what is loaded.
        let state = OwnedFd::from(memory_file(state)?);
        let (named, quiet, begun) = tokio::join!(
            self.ask_with("getfd", json!({ "fdname": STATE }), Some(&state), PATIENCE),
            // Without this the guest announces an address that may not be its own any more.
            self.ask("migrate-set-parameters", json!({ "announce-rounds": 0 })),
            self.ask("migrate-incoming", json!({ "uri": format!("fd:{STATE}") })),
        );
        named.and(quiet).and(begun)?;
        let begun = Instant::now();
        while begun.elapsed() < STATE_PATIENCE {
            let answer = self.ask("query-migrate", json!({})).await?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(Error::Answer(format!("device state: {answer}"))),
                // It takes less than a timer's granularity.
                _ if begun.elapsed() < EAGER => tokio::task::yield_now().await,
                _ => sleep(SOON).await,
            }
        }
        Err(Error::Answer("loading the device state takes too long".into()))
    }

    /// Puts a spare's data disk on this file in place of its stand-in.
    async fn take_disk(&self, data: &File) -> Result<()> {
        let descriptor = data.try_clone().map(OwnedFd::from).doing(|| "duplicate a descriptor".into())?;
        let path = format!("/dev/fdset/{DATA_SET}");
        // Locks are for files that others may open; this was opened for this machine alone.
        let file = json!({
            "driver": "file", "filename": path, "locking": "off", "discard": "unmap", "aio": "threads",
        });
        let disk = json!({ "driver": "raw", "node-name": DATA_DISK, "file": file, "discard": "unmap" });
        let filter = json!({
            "driver": "throttle", "node-name": DATA_NODE, "throttle-group": DATA_LIMITS, "file": DATA_DISK,
            // A filter that is not told passes no discards on.
            "discard": "unmap",
        });
        let (given, added, below) = tokio::join!(
            self.ask_with("add-fd", json!({ "fdset-id": DATA_SET }), Some(&descriptor), PATIENCE),
            self.ask("blockdev-add", disk),
            self.ask("blockdev-reopen", json!({ "options": [filter] })),
        );
        given.and(added).and(below).map(drop)
    }

    /// A paused machine's device state and memory, its disk flushed.
    async fn stand_still(&self) -> Result<(Vec<u8>, GuestMemory)> {
        self.require_status(&["paused"], "paused").await?;
        // With the time of its last write, by which a wake knows it.
        let data = Arc::clone(&self.data);
        let flush = blocking(move || data.sync_all().doing(|| "flush the data disk".into()));
        let (flushed, device, memory) = tokio::join!(flush, self.save_devices(), self.memory());
        flushed?;
        Ok((device?, memory?))
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    fn control_socket(&self) -> &Path {
        &self.control
    }

    fn console(&self) -> &Path {
        &self.console
    }

    fn missing_limits(&self) -> &[String] {
        &self.missing_limits
    }

    async fn assign(self: Box<Self>, spec: &MachineSpec, shape: Shape) -> Result<Box<dyn Machine>> {
        let data = open_data(spec)?;
        self.take_disk(&data).await?;
        let (control, console) = (spec.run_dir.join(CONTROL), spec.run_dir.join(CONSOLE));
        Ok(Box::new(Self { data: Arc::new(data), shape, control, console, ..*self }))
    }

    async fn restore(&self, restore: Restore) -> Result<()> {
        let (status, control, memory) = tokio::join!(
            self.require_status(&["inmigrate"], "launched for a restore"),
            self.require_control(),
            self.memory(),
        );
        status.and(control)?;
        let (memory, base) = (memory?, self.base.clone());
        let restore = blocking(move || restore.fill(&memory, &base).map(|()| restore)).await?;
        // What comes in says how the guest's end of the link is; the tap's is down since the launch, and nothing passes.
        self.load_devices(restore.device()).await?;
        self.require_status(&["paused", "prelaunch"], "paused after the restore").await
    }

    async fn set_link(&self, up: bool) -> Result<()> {
        self.ask("set_link", json!({ "name": self.link, "up": up })).await.map(drop)
    }

    async fn pause(&self) -> Result<()> {
        self.ask("stop", json!({})).await.map(drop)
    }

    async fn cont(&self) -> Result<()> {
        self.require_status(&["paused", "prelaunch", "running"], "paused").await?;
        self.ask("cont", json!({})).await.map(drop)
    }

    async fn is_running(&self) -> Result<bool> {
        Ok(self.status().await? == "running")
    }

    async fn snapshot(
        &self,
        folder: &Path,
        facts: SnapshotFacts,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo> {
        let (device, memory) = self.stand_still().await?;
        let disk = FileIdentity::of(&self.data).doing(|| "examine the data disk".into())?;
        let (folder, shape, base) = (folder.to_owned(), self.shape.clone(), self.base.clone());
        let options = options.clone();
        blocking(move || {
            let paused = Paused { memory: &memory, base: &base, device: &device, shape, disk };
            snapshot::write(&folder, paused, facts, &options)
        })
        .await
    }

    async fn make_base(&self, bases: &Path, facts: BaseFacts) -> Result<BaseInfo> {
        let (device, memory) = self.stand_still().await?;
        let (bases, shape, pid) = (bases.to_owned(), self.shape.clone(), self.identity.pid);
        blocking(move || snapshot::write_base(&bases, pid, &memory, &device, (facts, shape))).await
    }

    async fn quit(&self, patience: Duration) -> Result<Ended> {
        // That the connection ends before the answer is fine: it is what was asked for.
        let asked = self.monitor.execute("quit", json!({}));
        if timeout(patience, async { tokio::join!(asked, self.wait()) }).await.is_err() {
            tracing::warn!(pid = self.identity.pid, "the VMM does not quit and is killed");
        }
        self.kill().await
    }

    async fn kill(&self) -> Result<Ended> {
        kill(&self.process)?;
        Ok(self.wait().await)
    }

    fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.clone()
    }

    async fn memory_usage(&self) -> Result<MemoryUsage> {
        let pid = self.identity.pid;
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = blocking(move || std::fs::read_to_string(&path).doing(|| format!("read {path}"))).await?;
        let kib = |name: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name))?
                .split_ascii_whitespace()
                .next()?
                .parse()
                .ok()
        };
        match (kib("Rss:"), kib("Pss:")) {
            (Some(resident), Some(proportional)) => {
                Ok(MemoryUsage { resident: resident << 10, proportional: proportional << 10 })
            }
            _ => Err(Error::Gone { pid }),
        }
    }
}

/// Publishes the end of a process once it has ended, with what its monitor said before.
async fn watch_end(
    process: OwnedFd,
    events: mpsc::Receiver<Event>,
    cgroup: Cgroup,
    ended: watch::Sender<Option<Ended>>,
) {
    let told = tokio::spawn(listen(events));
    let exit = wait_for_exit(process).await.unwrap_or_else(|error| {
        tracing::error!(%error, "lost sight of a VMM");
        Exit::StatusUnknown
    });
    // The events end with the process, if not before.
    let shutdown = timeout(CONNECT_PATIENCE, told).await.ok().and_then(std::result::Result::ok).flatten();
    let _ = tokio::task::spawn_blocking(move || cgroup.remove()).await;
    ended.send_replace(Some(Ended { exit, shutdown }));
}

/// Takes every event, so that none piles up, and returns why the machine was shut down, if it says.
async fn listen(mut events: mpsc::Receiver<Event>) -> Option<Shutdown> {
    let (mut shutdown, mut failures) = (None, 0);
    while let Some(Event { name, data }) = events.recv().await {
        match name.as_str() {
            "SHUTDOWN" => shutdown = data["reason"].as_str().map(Shutdown::from_reason),
            "BLOCK_IO_ERROR" if failures < TOLD_FAILURES => {
                failures += 1;
                let (device, reason) = (data["device"].as_str(), data["reason"].as_str());
                tracing::warn!(device, reason, "a machine's disk fails");
            }
            _ => tracing::trace!(name, "event"),
        }
    }
    shutdown
}

/// Reads `Host virtual address for 0x0 (mem) is 0x7fa84fe00000`.
fn parse_address(text: &str) -> Option<u64> {
    let (region, address) = text.trim().strip_prefix("Host virtual address for ")?.rsplit_once(" is 0x")?;
    if region.ends_with("(mem)") { u64::from_str_radix(address, 16).ok() } else { None }
}

/// A file in memory with this content, to be read from its start.
fn memory_file(content: &[u8]) -> Result<File> {
    use std::io::{Seek, Write};
    let doing = || "make a file in memory".to_owned();
    let mut file = File::from(memfd_create("mvm-device-state", MemfdFlags::CLOEXEC).doing(doing)?);
    file.write_all(content).and_then(|()| file.rewind()).doing(doing)?;
    Ok(file)
}

/// QEMU takes from a set only a descriptor that was opened just as it wants to use it.
fn reopen_for_writing(file: &File) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = File::options().write(true).open(&path).doing(|| format!("open {path}"))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_own_memory_has_the_address() {
        let answer = "Host virtual address for 0x0 (mem) is 0x7fa84fe00000\r\n";
        assert_eq!(parse_address(answer), Some(0x7fa8_4fe0_0000));
        assert_eq!(parse_address("Host virtual address for 0x0 (pc.bios) is 0x7fa84fe00000"), None);
        assert_eq!(parse_address("No memory is mapped at address 0x0"), None);
    }
}
