//! The raw side: the same QEMU with the same virtual hardware, driven by hand and unconfined. Nothing of mvm is in the way
//! but the protocol that its guest speaks.

mod arguments;
mod commits;
mod guest;
mod image;
mod memory;
mod qmp;
mod vmm;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;
use tokio::runtime::Handle;

pub use arguments::{Hardware, Launch, Memory};
pub use guest::Session;
pub use image::{Delta, Image};
pub use vmm::Vmm;

use crate::Result;
use commits::{AFTER_LAUNCH, AFTER_SLEEP, BEFORE_LAUNCH, BEFORE_RESUME, BEFORE_SLEEP, Commits};

/// Every data disk is the empty one of a machine without /data.
const DATA_BYTES: u64 = 1 << 20;
/// What a guest takes to be quiet.
const QUIET: Duration = Duration::from_millis(300);

/// The raw side.
#[derive(Debug)]
pub struct Raw {
    hardware: Hardware,
    folder: PathBuf,
    runtime: Handle,
    commits: Commits,
    names: AtomicU64,
}

/// A raw machine whose guest has confirmed who it is.
#[derive(Debug)]
pub struct Machine {
    vmm: Vmm,
    session: Session,
    /// From the request to the confirmation.
    pub ready: Duration,
    /// And to what lies on the way there.
    pub way: Way,
    /// What of it was waiting for durable writes.
    pub commits: Duration,
}

/// From the request to the steps of a start.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// QEMU's monitor answers.
    pub up: Duration,
    /// Memory and device state are in, what must be durable is.
    pub restored: Duration,
    /// The guest runs and has echoed the preamble.
    pub echo: Duration,
    /// It has answered to Hello.
    pub hello: Duration,
}

/// What a machine is restored from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// What it maps.
    pub image: &'a Image,
    /// What is written over it, if it is woken from a delta.
    pub delta: Option<&'a Delta>,
    /// Whether this is a wake: with one commit more, and of a guest that is personalized already.
    pub wake: bool,
}

/// A VMM started ahead.
#[derive(Debug)]
pub struct Spare {
    vmm: Vmm,
}

impl Raw {
    /// Works in `folder`, which exists.
    pub fn new(hardware: Hardware, folder: PathBuf, runtime: Handle) -> Result<Self> {
        let commits = Commits::open(&folder.join("raw.db"))?;
        Ok(Self { hardware, folder, runtime, commits, names: AtomicU64::new(0) })
    }

    /// What its machines have.
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// Boots a machine, stops it behind Hello and makes it a base.
    pub fn base(&self, mem_mib: u32) -> Result<Image> {
        let mut vmm = self.launch(mem_mib, Memory::Empty, false, false)?;
        vmm.monitor.greet()?;
        let control = vmm.take_control()?;
        vmm.monitor.ask("cont", json!({}))?;
        Session::begin(&self.runtime, control)?.hello()?;
        std::thread::sleep(QUIET);
        vmm.monitor.ask("stop", json!({}))?;
        let devices = vmm.save_devices()?;
        let file = self.folder.join(format!("{}.mem", self.name("base")));
        Image::of(&vmm.memory()?, mem_mib, &devices, file)
    }

    /// Restores a machine in a process that is started for it.
    pub fn on_demand(&self, source: Source<'_>) -> Result<Machine> {
        let begun = Instant::now();
        let mut commits = self.timed_commit(BEFORE_LAUNCH)?;
        let mut vmm = self.launch(source.image.mem_mib, Memory::Mapped(source.image.path()), true, false)?;
        commits += self.timed_commit(AFTER_LAUNCH)?;
        vmm.monitor.greet()?;
        self.restore(vmm, source, begun, commits)
    }

    /// Starts a process ahead.
    pub fn spare(&self, image: &Image) -> Result<Spare> {
        let mut vmm = self.launch(image.mem_mib, Memory::Mapped(image.path()), true, true)?;
        vmm.monitor.greet()?;
        std::thread::sleep(QUIET);
        Ok(Spare { vmm })
    }

    /// Restores a machine in a process that was started ahead.
    pub fn with_spare(&self, mut spare: Spare, source: Source<'_>) -> Result<Machine> {
        let data = self.data_disk(&self.name("own"))?;
        let begun = Instant::now();
        let mut commits = self.timed_commit(BEFORE_LAUNCH)?;
        exchange_disk(&mut spare.vmm, &data)?;
        commits += self.timed_commit(AFTER_LAUNCH)?;
        // QEMU holds it open.
        std::fs::remove_file(&data)?;
        self.restore(spare.vmm, source, begun, commits)
    }

    fn timed_commit(&self, times: u32) -> Result<Duration> {
        let begun = Instant::now();
        self.commits.commit(times)?;
        Ok(begun.elapsed())
    }

    fn restore(
        &self,
        mut vmm: Vmm,
        source: Source<'_>,
        begun: Instant,
        mut waited: Duration,
    ) -> Result<Machine> {
        let up = begun.elapsed();
        let devices = match source.delta {
            Some(delta) => delta.fill(&vmm.memory()?)?,
            None => image::again(&source.image.devices)?,
        };
        std::thread::scope(|scope| {
            // Only the resume waits for it.
            let commits = if source.wake { BEFORE_RESUME } else { 0 };
            let consumed = scope.spawn(move || self.commits.commit(commits));
            image::load(&mut vmm, &devices)?;
            let loaded = Instant::now();
            let consumed = consumed.join().map_err(|_| "a commit panicked")?;
            waited += loaded.elapsed();
            consumed
        })?;
        let restored = begun.elapsed();
        let control = vmm.take_control()?;
        vmm.monitor.ask("cont", json!({}))?;
        let session = Session::begin(&self.runtime, control)?;
        let echo = begun.elapsed();
        session.hello()?;
        let hello = begun.elapsed();
        session.personalize(if source.wake { 2 } else { 1 })?;
        let way = Way { up, restored, echo, hello };
        Ok(Machine { ready: begun.elapsed(), way, commits: waited, vmm, session })
    }

    /// Puts a machine to sleep as mvm does; the delta and how long it took.
    pub fn sleep(&self, machine: Machine) -> Result<(Delta, Duration)> {
        let begun = Instant::now();
        let Machine { mut vmm, session, .. } = machine;
        self.commits.commit(BEFORE_SLEEP)?;
        let devices = self.stop(&mut vmm, session)?;
        let file = self.folder.join(format!("{}.delta", self.name("asleep")));
        let delta = Delta::write(&vmm.memory()?, &devices, &file)?;
        self.commits.commit(AFTER_SLEEP)?;
        vmm.end()?;
        Ok((delta, begun.elapsed()))
    }

    /// Puts a machine to sleep in an image of its own.
    pub fn sleep_in_own_image(&self, machine: Machine, base: &Image) -> Result<Image> {
        let Machine { mut vmm, session, .. } = machine;
        let devices = self.stop(&mut vmm, session)?;
        base.with(&vmm.memory()?, &devices, self.folder.join(format!("{}.mem", self.name("own-image"))))
    }

    fn stop(&self, vmm: &mut Vmm, session: Session) -> Result<Vec<u8>> {
        session.prepare_sleep()?;
        drop(session);
        vmm.monitor.ask("stop", json!({}))?;
        vmm.sync_data()?;
        vmm.save_devices()
    }

    fn launch(&self, mem_mib: u32, memory: Memory<'_>, incoming: bool, exchangeable: bool) -> Result<Vmm> {
        let name = self.name("vm");
        let data = self.data_disk(&name)?;
        let console = self.folder.join(format!("{name}.console"));
        let launch =
            Launch { name: &name, mem_mib, memory, incoming, data: &data, exchangeable, console: &console };
        Vmm::spawn(&self.hardware, &launch)
    }

    fn data_disk(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{name}.data"));
        File::create(&path)?.set_len(DATA_BYTES)?;
        Ok(path)
    }

    /// Names carry this process's, so that what a killed run left is known.
    fn name(&self, what: &str) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        format!("{}-{what}-{number}", crate::leftovers::name_of(std::process::id()))
    }
}

impl Machine {
    /// Its guest.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its VMM's process.
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }
}

/// Puts another file behind the data disk of a process that was started ahead.
fn exchange_disk(vmm: &mut Vmm, data: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(data)?;
    let answer = vmm.monitor.ask_with("add-fd", json!({}), file.as_fd())?;
    let path = format!("/dev/fdset/{}", answer["fdset-id"]);
    let file =
        json!({ "driver": "file", "filename": path, "locking": "off", "discard": "unmap", "aio": "threads" });
    vmm.monitor.ask(
        "blockdev-add",
        json!({ "driver": "raw", "node-name": "data-own", "discard": "unmap", "file": file }),
    )?;
    let filter =
        json!({ "driver": "throttle", "node-name": "data", "throttle-group": "limits", "file": "data-own" });
    vmm.monitor.ask("blockdev-reopen", json!({ "options": [filter] })).map(drop)
}

/// A file in memory, to be read from its start.
fn memory_file(content: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create("mvm-bench", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Everything in a file, whatever its position.
fn content(file: &File) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Another descriptor of a file in memory, for writing.
fn reopen(file: &File) -> Result<File> {
    use std::os::fd::AsRawFd;
    Ok(File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}
