//! A real guest for the tests: Debian's cloud kernel and a small init of our own.

mod files;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_model::SnapshotCompression;
use mvm_vmm::{
    AccelProbe, Detection, Engine, Expected, FileIdentity, Launcher, Machine, MachineSpec, MemoryBase,
    ProcessIdentity, QemuEngine, Refusal, Snapshot, SnapshotFacts, SnapshotInfo, SnapshotOptions, Start,
    kill_process,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// An uid that nobody has.
const UID: u32 = 61_234;
/// More than anything here takes, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine's files and the engine that runs it. Whatever it started ends with it.
pub struct World {
    pub engine: QemuEngine,
    pub spec: MachineSpec,
    /// With more private bytes than this a machine gets an own image.
    pub own_from: u64,
    /// Where it is, if not beside the others.
    pub own: Option<PathBuf>,
    folder: Arc<tempfile::TempDir>,
    started: Mutex<Vec<ProcessIdentity>>,
}

impl World {
    pub async fn new() -> Self {
        Self::with_memory(128).await
    }

    pub async fn with_memory(mem_mib: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let guest = tokio::task::spawn_blocking(files::guest).await.unwrap();
        let folder = tempfile::Builder::new().prefix("mvm-vmm-").tempdir().unwrap();
        let disk = |name: &str, mib: u64| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
            path
        };
        let spec = MachineSpec {
            name,
            vcpus: 1,
            mem_mib,
            memory: MemoryBase::Empty,
            kernel: guest.kernel,
            initrd: guest.initrd,
            kernel_arguments: Vec::new(),
            rootfs: disk("rootfs", 1),
            data: disk("data", 2),
            mac: "02:6d:00:00:00:03".parse().unwrap(),
            run_dir: folder.path().join("run"),
            uid: UID,
        };
        let engine = engine(&spec.kernel).await;
        Self {
            engine,
            spec,
            own_from: 128 << 20,
            own: None,
            folder: Arc::new(folder),
            started: Mutex::default(),
        }
    }

    /// The world of another machine with the same files but the data disk.
    pub fn another(&self, name: &str) -> Self {
        let spec = MachineSpec {
            name: format!("{}-{name}", self.spec.name),
            data: self.folder.path().join(name),
            run_dir: self.folder.path().join(format!("run-{name}")),
            uid: self.spec.uid + 1,
            ..self.spec.clone()
        };
        std::fs::copy(&self.spec.data, &spec.data).unwrap();
        let (engine, folder) = (self.engine.clone(), Arc::clone(&self.folder));
        Self { engine, spec, own_from: self.own_from, own: None, folder, started: Mutex::default() }
    }

    /// A folder for a snapshot.
    pub fn asleep(&self) -> PathBuf {
        self.spec.data.with_extension("asleep")
    }

    pub fn options(&self) -> SnapshotOptions {
        SnapshotOptions {
            compression: SnapshotCompression::None,
            own: self.own.clone().unwrap_or_else(|| self.asleep().with_extension("own")),
            own_from: self.own_from,
        }
    }

    /// Opens the snapshot.
    pub fn open(&self, info: &SnapshotInfo) -> Result<Snapshot, Refusal> {
        Snapshot::open(&self.asleep(), &self.options().own, &self.expected(info))
    }

    pub async fn launch(&self, tap: Option<OwnedFd>, start: Start) -> mvm_vmm::Result<Box<dyn Machine>> {
        let machine = self.engine.launch(&self.spec, tap, start).await?;
        self.will_end(machine.identity());
        Ok(machine)
    }

    /// Has a machine end with this at the latest.
    pub fn will_end(&self, identity: &ProcessIdentity) {
        self.started.lock().unwrap().push(identity.clone());
    }

    /// Boots a machine and waits until its guest answers.
    pub async fn boot(&self) -> (Box<dyn Machine>, Guest) {
        let machine = self.launch(None, Start::Cold).await.unwrap();
        let mut guest = Guest::connect(&*machine).await;
        machine.cont().await.unwrap();
        assert_eq!(guest.ask("hello").await, "what is \"hello\"?");
        (machine, guest)
    }

    pub fn facts() -> SnapshotFacts {
        SnapshotFacts {
            instance: "i-0000002a".into(),
            revision: "r1".into(),
            generation: 3,
            disk_epoch: 7,
            recorded_at_ms: 1_795_000_000_000,
        }
    }

    pub fn expected(&self, info: &SnapshotInfo) -> Expected {
        let facts = Self::facts();
        let data = std::fs::File::open(&self.spec.data).unwrap();
        Expected {
            digest: info.digest.clone(),
            memory: info.memory.clone(),
            instance: facts.instance,
            revision: facts.revision,
            shape: self.engine.shape(&self.spec).unwrap(),
            disk_epoch: facts.disk_epoch,
            disk: FileIdentity::of(&data).unwrap(),
        }
    }

    /// Pauses a machine, writes its snapshot, ends it.
    pub async fn sleep(&self, machine: &dyn Machine) -> SnapshotInfo {
        machine.pause().await.unwrap();
        let info = machine.snapshot(&self.asleep(), Self::facts(), &self.options()).await.unwrap();
        machine.kill().await.unwrap();
        assert!(!machine.identity().is_alive().unwrap());
        info
    }

    pub async fn wake(&self, info: &SnapshotInfo) -> (Box<dyn Machine>, Guest) {
        let snapshot = self.open(info).unwrap();
        let machine = self.launch(None, Start::Restore).await.unwrap();
        let guest = Guest::connect(&*machine).await;
        machine.restore(snapshot.restore()).await.unwrap();
        machine.cont().await.unwrap();
        mvm_vmm::remove_kept(&self.asleep()).unwrap();
        (machine, guest)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let started = std::mem::take(&mut *self.started.lock().unwrap());
        let (engine, spec) = (self.engine.clone(), self.spec.clone());
        // Not in the test's runtime, which cannot block here.
        let ending = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for identity in started {
                runtime.block_on(kill_process(&identity)).unwrap();
            }
            engine.clear(&spec).unwrap();
        });
        let _ = ending.join();
    }
}

/// The host's end of a machine's control port: a line there, a line back.
pub struct Guest {
    stream: BufReader<UnixStream>,
}

impl Guest {
    pub async fn connect(machine: &dyn Machine) -> Self {
        Self { stream: BufReader::new(UnixStream::connect(machine.control_socket()).await.unwrap()) }
    }

    pub async fn ask(&mut self, question: &str) -> String {
        self.try_ask(question).await.unwrap()
    }

    /// Asks until that is the answer: the guest takes a moment to notice what is done to its devices.
    pub async fn expect(&mut self, question: &str, wanted: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(question).await;
            if answer == wanted {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{answer} instead of {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn try_ask(&mut self, question: &str) -> std::io::Result<String> {
        let mut line = String::new();
        self.stream.write_all(format!("{question}\n").as_bytes()).await?;
        tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line)).await??;
        Ok(line.trim_end().to_owned())
    }
}

/// Detecting takes a while, so what was found out is kept.
pub async fn engine(kernel: &Path) -> QemuEngine {
    let kept = files::cache().join("detected.json");
    let known: Option<(Detection, AccelProbe)> =
        std::fs::read(&kept).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let (detection, probe) = known.unzip();
    let detection = Detection::run(Path::new(QEMU), detection).await.unwrap();
    let probe = match probe.filter(|probe| probe.is_current(&detection.sha256)) {
        Some(probe) => probe,
        None => AccelProbe::run(Path::new(QEMU), &detection.sha256, kernel).await.unwrap(),
    };
    let text = serde_json::to_vec(&(&detection, &probe)).unwrap();
    files::replace(&kept, &text);
    QemuEngine::new(detection, &probe, Launcher::default())
}
