//! Which VMM there is, and how it runs guests on this host: found out once per boot and kept, and again when it is replaced.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use mvm_vmm::{Accel, AccelProbe, Detection, Launcher, QemuEngine};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OnceCell, mpsc};

use crate::{HostError, HostEvent};

/// Overrides where QEMU is.
const QEMU_VARIABLE: &str = "MVM_QEMU";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// The engine, as it was found last: QEMU's version is known from the start, how it runs guests from the first launch, as
/// only a test boot of a real kernel tells.
#[derive(Debug)]
pub(crate) struct Engines {
    kept: PathBuf,
    found: RwLock<Arc<Found>>,
    /// Whoever looks whether it was replaced; others wait meanwhile and take what was found.
    looking: Mutex<()>,
    /// Is told when it was.
    events: Option<mpsc::UnboundedSender<HostEvent>>,
}

/// One QEMU binary.
#[derive(Debug)]
struct Found {
    detection: Detection,
    /// The test boot that was done before and that holds yet.
    probe: Option<AccelProbe>,
    engine: OnceCell<(QemuEngine, AccelProbe)>,
}

impl Found {
    fn new(detection: Detection, probe: Option<AccelProbe>) -> Arc<Self> {
        let probe = probe.filter(|probe| probe.is_current(&detection.sha256));
        Arc::new(Self { detection, probe, engine: OnceCell::new() })
    }

    fn probe(&self) -> Option<AccelProbe> {
        self.engine.get().map(|(_, probe)| probe).or(self.probe.as_ref()).cloned()
    }
}

/// `engine.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    detection: Detection,
    probe: Option<AccelProbe>,
}

impl Engines {
    /// Examines QEMU; names what it lacks.
    pub(crate) async fn detect(kept: PathBuf) -> Result<Self, HostError> {
        let known: Option<Kept> =
            std::fs::read(&kept).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let (known, probe) = known.map_or((None, None), |kept| (Some(kept.detection), kept.probe));
        let binary = std::env::var_os(QEMU_VARIABLE).map_or_else(|| PathBuf::from(QEMU), PathBuf::from);
        let detection = Detection::run(&binary, known).await?;
        let found = RwLock::new(Found::new(detection, probe));
        Ok(Self { kept, found, looking: Mutex::default(), events: None })
    }

    /// Has it told when the binary is another.
    pub(crate) fn telling(self, events: mpsc::UnboundedSender<HostEvent>) -> Self {
        Self { events: Some(events), ..self }
    }

    fn found(&self) -> Arc<Found> {
        Arc::clone(&self.found.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The engine that was found last, by a test boot of this kernel if none is known: for what was launched already.
    pub(crate) async fn engine(&self, kernel: &Path) -> Result<QemuEngine, HostError> {
        self.run(&self.found(), kernel).await
    }

    async fn run(&self, found: &Found, kernel: &Path) -> Result<QemuEngine, HostError> {
        let engine = found.engine.get_or_try_init(|| async {
            let Found { detection, probe, .. } = found;
            let probe = match probe {
                Some(probe) => probe.clone(),
                None => AccelProbe::run(&detection.binary, &detection.sha256, kernel).await?,
            };
            tracing::info!(accelerator = ?probe.accel, reason = probe.reason, "the engine is known");
            self.keep(detection, &probe);
            let engine = QemuEngine::new(detection.clone(), &probe, Launcher::default());
            Ok::<_, HostError>((engine, probe))
        });
        engine.await.map(|(engine, _)| engine.clone())
    }

    /// The engine for what is launched now. A binary that was replaced is examined first, like one that an agent finds when
    /// it starts: what was made with the earlier one does not fit it (rule S4), and machines that run go on with theirs.
    pub(crate) async fn current(&self, kernel: &Path) -> Result<QemuEngine, HostError> {
        let found = self.look().await?;
        self.run(&found, kernel).await
    }

    async fn look(&self) -> Result<Arc<Found>, HostError> {
        let _one_at_a_time = self.looking.lock().await;
        let known = self.found();
        let detection = Detection::run(&known.detection.binary, Some(known.detection.clone())).await?;
        if detection == known.detection {
            return Ok(known);
        }
        // The same program may only have been installed anew: what a test boot showed holds for it.
        let is_another = detection.sha256 != known.detection.sha256;
        let (was, is) = (&known.detection.version, &detection.version);
        tracing::warn!(was, is, is_another, "QEMU was replaced");
        let found = Found::new(detection, known.probe());
        *self.found.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&found);
        if is_another && let Some(events) = &self.events {
            // Without a receiver the agent is ending.
            let _ = events.send(HostEvent::EngineReplaced);
        }
        Ok(found)
    }

    /// SHA-256 of the binary that a launch would use now.
    pub(crate) async fn sha256(&self) -> Result<String, HostError> {
        Ok(self.look().await?.detection.sha256.clone())
    }

    /// Saves the next agent the test boot. Without it, it does one.
    fn keep(&self, detection: &Detection, probe: &AccelProbe) {
        let kept = Kept { detection: detection.clone(), probe: Some(probe.clone()) };
        let written = serde_json::to_vec(&kept).map_err(std::io::Error::other);
        let temporary = self.kept.with_extension("tmp");
        let written = written
            .and_then(|text| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, &self.kept));
        if let Err(error) = written {
            tracing::warn!(%error, "what was found out about the engine could not be kept");
        }
    }

    /// What was found out about the binary.
    pub(crate) fn detection(&self) -> Detection {
        self.found().detection.clone()
    }

    /// The test boot that was done, or that an earlier agent did and that holds yet.
    pub(crate) fn probe(&self) -> Option<AccelProbe> {
        self.found().probe()
    }

    /// How guests run, once that is known: from the first launch, or from an earlier agent.
    pub(crate) fn accel(&self) -> Option<Accel> {
        self.probe().map(|probe| probe.accel)
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        let how = match self.accel() {
            Some(Accel::Kvm) => "KVM",
            Some(Accel::Tcg) => "emulation",
            None => "KVM or emulation, decided at the first start",
        };
        format!("qemu {} ({how})", self.found().detection.version)
    }
}
