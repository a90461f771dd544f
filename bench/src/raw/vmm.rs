//! A QEMU that this program started. It ends when dropped.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::arguments::{Hardware, Launch};
use super::memory::GuestMemory;
use super::qmp::Monitor;
use crate::Result;

/// A VMM's process with its two sockets.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    /// Its monitor.
    pub monitor: Monitor,
    control: Option<UnixStream>,
    mem_mib: u32,
    /// Its data disk, which goes with it.
    data: PathBuf,
    console: PathBuf,
}

impl Vmm {
    /// Starts the process; it is not up yet.
    pub fn spawn(hardware: &Hardware, launch: &Launch<'_>) -> Result<Self> {
        // Sockets that are connected from the start need neither a path nor a wait.
        let (monitor, their_monitor) = UnixStream::pair()?;
        let (control, their_control) = UnixStream::pair()?;
        let log = File::options().append(true).create(true).open(launch.console.with_extension("log"))?;
        let mut command = Command::new(&hardware.qemu);
        command.args(hardware.arguments(launch));
        command.stdin(Stdio::from(OwnedFd::from(their_monitor)));
        command.stdout(Stdio::from(OwnedFd::from(their_control)));
        let child = crate::leftovers::spawning(|| command.stderr(log).spawn())?;
        Ok(Self {
            child,
            monitor: Monitor::new(monitor)?,
            control: Some(control),
            mem_mib: launch.mem_mib,
            data: launch.data.to_owned(),
            console: launch.console.to_owned(),
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The host's end of the control channel, once.
    pub fn take_control(&mut self) -> Result<UnixStream> {
        Ok(self.control.take().ok_or("the control channel is taken")?)
    }

    /// Where the guest's memory is in the process.
    pub fn memory(&mut self) -> Result<GuestMemory> {
        let answer = self.monitor.ask("human-monitor-command", json!({ "command-line": "gpa2hva 0" }))?;
        let text = answer.as_str().unwrap_or_default().trim();
        let address = text.rsplit_once(" is 0x").and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok());
        let address = address.ok_or_else(|| format!("gpa2hva: {text}"))?;
        Ok(GuestMemory::new(self.pid(), address, u64::from(self.mem_mib) << 20))
    }

    /// Has QEMU save everything but memory.
    pub fn save_devices(&mut self) -> Result<Vec<u8>> {
        let state = super::memory_file(&[])?;
        let for_writing = super::reopen(&state)?;
        let answer = self.monitor.ask_with("add-fd", json!({}), std::os::fd::AsFd::as_fd(&for_writing))?;
        let file = format!("/dev/fdset/{}", answer["fdset-id"]);
        self.monitor.ask("xen-save-devices-state", json!({ "filename": file, "live": false }))?;
        super::content(&state)
    }

    /// Flushes its data disk.
    pub fn sync_data(&self) -> Result<()> {
        // One that was exchanged is gone from its folder and has nothing in it.
        match File::open(&self.data) {
            Ok(file) => Ok(file.sync_data()?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills it and waits for its end.
    pub fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.end();
        let _ = std::fs::remove_file(&self.data);
        let _ = std::fs::remove_file(&self.console);
        let _ = std::fs::remove_file(self.console.with_extension("log"));
    }
}
