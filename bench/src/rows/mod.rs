//! What is measured. Both sides of a row take turns, round by round.

mod compression;
mod density;
mod first_byte;
mod parallel;
mod scale;
mod speed;
mod worker;

use std::cell::OnceCell;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use mvm_harness::checkout;
use mvm_image::{ImageSource, ImageStore};
use mvm_protocol::api::StartReport;
use mvm_vmm::{AccelProbe, Detection};
use tokio::runtime::Handle;

use crate::Result;
use crate::mvm::Mvm;
use crate::raw::{Hardware, Image, Launch, Memory, Raw};
use crate::report::{Report, Sides};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// The guest of most rows.
pub(crate) const MEM_MIB: u32 = 512;
/// The guest with 1 GiB of its own pages.
pub(crate) const BIG_MEM_MIB: u32 = 2048;
/// Until a machine, and whatever an agent does behind it, is quiet.
const SETTLE: Duration = Duration::from_millis(300);
/// A row begins no further round after this.
const ROW_TIME: Duration = Duration::from_secs(30);
/// What every row has, however long they take.
const LEAST_ROUNDS: usize = 2;
/// Until a spare is there.
const SPARE: Duration = Duration::from_millis(700);

/// A row, or some that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Clones.
    Clone,
    /// Wakes with 8 MiB of private pages, and sleeps.
    #[value(name = "wake-8")]
    Wake8,
    /// Wakes with 64 MiB.
    #[value(name = "wake-64")]
    Wake64,
    /// Wakes with 1 GiB.
    #[value(name = "wake-1024")]
    Wake1024,
    /// A message to a sleeping machine, and what services take to start.
    FirstByte,
    /// 10 and 50 wakes at once.
    Parallel,
    /// What a sleeping machine takes of the disk.
    Disk,
    /// What compression of snapshots saves and costs.
    Compression,
    /// What clones take of memory.
    Pss,
    /// The agent with up to 10,000 instances.
    Scale,
}

impl Row {
    /// All of them.
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// As it is given on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Measures it.
    pub fn measure(self, bench: &Bench, report: &mut Report) -> Result<()> {
        match self {
            Row::Clone => speed::clones(bench, report),
            Row::Wake8 => speed::wakes(bench, report, 8),
            Row::Wake64 => speed::wakes(bench, report, 64),
            Row::Wake1024 => speed::wakes(bench, report, 1024),
            Row::FirstByte => first_byte::measure(bench, report),
            Row::Parallel => parallel::measure(bench, report),
            Row::Disk => density::disk(bench, report),
            Row::Compression => compression::measure(bench, report),
            Row::Pss => density::pss(bench, report),
            Row::Scale => scale::measure(bench, report),
        }
    }
}

/// What rows share.
#[derive(Debug)]
pub struct Bench {
    rounds: usize,
    /// The engine by hand.
    pub raw: Raw,
    /// An agent with machines.
    pub mvm: Mvm,
    runtime: Handle,
    folders: [PathBuf; 2],
    base: OnceCell<Image>,
    big_base: OnceCell<Image>,
}

impl Bench {
    /// Builds images, starts an agent, and makes sure that both sides are the same machine.
    pub fn new(rounds: usize, runtime: &Handle, report: &mut Report) -> Result<Self> {
        let folders = crate::leftovers::folders()?;
        eprintln!("images");
        let hardware = hardware(runtime)?;
        let raw_folder = folders[0].join("raw");
        std::fs::create_dir(&raw_folder)?;
        let raw = Raw::new(hardware, raw_folder, runtime.clone())?;
        let mut mvm = Mvm::new("a", &folders[0], &folders[1], runtime)?;
        mvm.lab.start_agent();
        let (base, big_base) = Default::default();
        let bench = Self { rounds, raw, mvm, runtime: runtime.clone(), folders, base, big_base };
        bench.compare(report)?;
        Ok(bench)
    }

    /// Another agent, which does not run yet.
    pub fn another_agent(&self, name: &str) -> Result<Mvm> {
        Mvm::new(name, &self.folders[0], &self.folders[1], &self.runtime)
    }

    /// A base of the raw side's.
    pub fn base(&self, mem_mib: u32) -> Result<&Image> {
        let cell = if mem_mib == BIG_MEM_MIB { &self.big_base } else { &self.base };
        match cell.get() {
            Some(base) => Ok(base),
            None => {
                let base = self.raw.base(mem_mib)?;
                Ok(cell.get_or_init(|| base))
            }
        }
    }

    /// The rounds of a row of which one takes so many times as long as others. On a busy host there are fewer: the whole run is
    /// to end in time.
    pub fn rounds(&self, times: usize) -> impl Iterator<Item = usize> {
        let most = (self.rounds / times).max(LEAST_ROUNDS).min(self.rounds);
        let begun = Instant::now();
        (0..most).take_while(move |round| *round < LEAST_ROUNDS || begun.elapsed() < ROW_TIME)
    }

    /// Compares the command lines of a machine on each side.
    fn compare(&self, report: &mut Report) -> Result<()> {
        self.mvm.deploy(&manifest("compare", &[Pool { name: "one", ..Pool::default() }]))?;
        let instances = self.mvm.instances("compare", "one")?;
        let pid = self.mvm.info(&instances[0])?.pid.ok_or("a machine that runs has a process")?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let theirs: Vec<String> = command.split('\0').map(str::to_owned).collect();
        let path = std::path::Path::new("");
        let (memory, incoming) = (Memory::Empty, false);
        let launch = Launch {
            name: "",
            mem_mib: MEM_MIB,
            memory,
            incoming,
            data: path,
            exchangeable: false,
            console: path,
        };
        for difference in self.raw.hardware().differences(&theirs, &launch) {
            report.note(format!("the virtual hardware differs, {difference}"));
        }
        self.mvm.destroy("compare");
        Ok(())
    }
}

/// Builds what agents will build, where there is a way to the archives; the raw side's hardware, with `minimal`.
fn hardware(runtime: &Handle) -> Result<Hardware> {
    let target = checkout().join("target");
    let store = ImageStore::open(&target.join("image-store"), &target.join("image-cache"))?;
    let minimal = store.build(&ImageSource::BuiltIn("minimal".to_owned()), &|_| ())?;
    store.build(&ImageSource::Path(worker::recipe()?), &|_| ())?;
    let (detection, probe) = runtime.block_on(async {
        let detection = Detection::run(QEMU.as_ref(), None).await?;
        let probe = AccelProbe::run(QEMU.as_ref(), &detection.sha256, &minimal.kernel).await?;
        Ok::<_, mvm_vmm::Error>((detection, probe))
    })?;
    Ok(Hardware {
        qemu: QEMU.into(),
        accel: probe.accel,
        tsc_khz: detection.tsc_khz,
        kernel: minimal.kernel,
        initrd: minimal.initrd,
        rootfs: minimal.rootfs,
    })
}

/// A pool of a manifest.
#[derive(Debug, Clone, Copy)]
struct Pool<'a> {
    name: &'a str,
    image: &'a str,
    mem_mib: u32,
    spares: u32,
    instances: u32,
    /// `running` or `sleeping`.
    begin: &'a str,
}

impl Default for Pool<'_> {
    fn default() -> Self {
        Self { name: "demand", image: "minimal", mem_mib: MEM_MIB, spares: 0, instances: 1, begin: "running" }
    }
}

fn manifest(tenant: &str, pools: &[Pool<'_>]) -> String {
    let mut text = format!("[tenant]\nid = \"{tenant}\"\n");
    for Pool { name, image, mem_mib, spares, instances, begin } in pools {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[pools]]\nid = \"{name}\"\nrole = \"worker\"\nimage = \"{image}\"\nvcpus = 1\nmem_mib = {mem_mib}\n\
             data_disk_mib = 0\nspares = {spares}\ndesired_{begin} = {instances}\n"
        );
    }
    text
}

/// Pauses until both sides are quiet.
fn settle() {
    std::thread::sleep(SETTLE);
}

impl Sides {
    /// Takes a start of mvm's if it went as the row wants it.
    fn take(&mut self, start: &StartReport, how: &str, spare: bool) {
        self.take_if(start, how, spare, start.confirmed_ms);
    }

    /// Takes how long something took that a start of mvm's was part of, if that start went as the row wants it.
    fn take_if(&mut self, start: &StartReport, how: &str, spare: bool, took_ms: f64) {
        if start.how == how && start.spare == spare {
            self.mvm.push(took_ms);
        } else {
            let with = if start.spare { "with" } else { "without" };
            let why = start.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            self.missing = Some(format!("mvm's was a {} {with} a spare{why}", start.how));
        }
    }
}
