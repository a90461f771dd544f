//! Which VMM there is, and how it runs guests on this host: found out once per boot and kept.

use std::path::{Path, PathBuf};

use mvm_vmm::{Accel, AccelProbe, Detection, Launcher, QemuEngine};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::HostError;

/// Overrides where QEMU is.
const QEMU_VARIABLE: &str = "MVM_QEMU";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// The engine: QEMU's version is known from the start, how it runs guests from the first launch, as only a test boot
/// of a real kernel tells.
#[derive(Debug)]
pub(crate) struct Engines {
    detection: Detection,
    kept: PathBuf,
    probe: Option<AccelProbe>,
    engine: OnceCell<QemuEngine>,
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
        let probe = probe.filter(|probe| probe.is_current(&detection.sha256));
        Ok(Self { detection, kept, probe, engine: OnceCell::new() })
    }

    /// The engine, by a test boot of this kernel if none is known.
    pub(crate) async fn engine(&self, kernel: &Path) -> Result<&QemuEngine, HostError> {
        self.engine
            .get_or_try_init(|| async {
                let probe = match &self.probe {
                    Some(probe) => probe.clone(),
                    None => AccelProbe::run(&self.detection.binary, &self.detection.sha256, kernel).await?,
                };
                tracing::info!(accelerator = ?probe.accel, reason = probe.reason, "the engine is known");
                self.keep(&probe);
                Ok(QemuEngine::new(self.detection.clone(), &probe, Launcher::default()))
            })
            .await
    }

    /// The engine, if it is still the one that was examined: another would be given snapshots that do not fit it.
    pub(crate) async fn current(&self, kernel: &Path) -> Result<&QemuEngine, HostError> {
        let found = Detection::run(&self.detection.binary, Some(self.detection.clone())).await?;
        if found.sha256 != self.detection.sha256 {
            return Err(HostError::EngineReplaced(self.detection.binary.clone()));
        }
        self.engine(kernel).await
    }

    /// Saves the next agent the test boot. Without it, it does one.
    fn keep(&self, probe: &AccelProbe) {
        let kept = Kept { detection: self.detection.clone(), probe: Some(probe.clone()) };
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
    pub(crate) fn detection(&self) -> &Detection {
        &self.detection
    }

    /// The test boot that an earlier agent did and that holds yet.
    pub(crate) fn probe(&self) -> Option<&AccelProbe> {
        self.probe.as_ref()
    }

    /// How guests run, once that is known: from the first launch, or from an earlier agent.
    pub(crate) fn accel(&self) -> Option<Accel> {
        self.engine.get().map(QemuEngine::accel).or(self.probe.as_ref().map(|probe| probe.accel))
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        let how = match self.accel() {
            Some(Accel::Kvm) => "KVM",
            Some(Accel::Tcg) => "emulation",
            None => "KVM or emulation, decided at the first start",
        };
        format!("qemu {} ({how})", self.detection.version)
    }
}
