//! What an agent needs of this host, each tried as the agent would: before there is one, too. Nothing is made that stays.

use std::path::{Path, PathBuf};

use mvm_image::{ImageStore, cache_folder};
use mvm_model::Requirement;
use mvm_network::{Networks, NodeTag};
use mvm_vmm::{AccelProbe, requirements as vmm};

use crate::engine::Engines;
use crate::paths::Paths;
use crate::{HostConfig, HostError};

const KVM: &str = "kvm";

/// Everything that can be tried here; what only root can try is unknown to others.
pub async fn requirements(config: &HostConfig) -> Vec<Requirement> {
    let is_root = rustix::process::geteuid().is_root();
    // The agent's names carry its data folder's real path; where that is not there yet, nothing has a name of it.
    let data = config.data_dir.canonicalize().unwrap_or_else(|_| config.data_dir.clone());
    let paths = Paths { data, run: config.run_dir.clone() };
    let mut found = Vec::new();
    let engines = match Engines::detect(paths.engine()).await {
        Ok(engines) => {
            found.push(vmm::engine(Ok(&engines.detection())));
            Some(engines)
        }
        Err(HostError::Vmm(error)) => {
            found.push(vmm::engine(Err(&error)));
            None
        }
        Err(error) => {
            found.push(Requirement::unknown("qemu", error));
            None
        }
    };
    if is_root {
        let (kvm, accel) = match &engines {
            Some(engines) => acceleration(engines, &paths).await,
            None => (Requirement::unknown(KVM, "only tried where there is an engine"), None),
        };
        found.push(kvm);
        found.extend(blocking(move || vec![vmm::cgroups(), vmm::shared_memory(accel)]).await);
    } else {
        found.extend(
            [KVM, vmm::CGROUPS, vmm::BASES].map(|name| Requirement::unknown(name, "only root can try it")),
        );
    }
    found.extend(blocking(move || networks(&paths.data)).await);
    found.extend(blocking(|| mvm_image::requirements::requirements().to_vec()).await);
    found.push(vmm::clock());
    found
}

/// How machines run: as an agent found in this boot, else by a test boot.
async fn acceleration(engines: &Engines, paths: &Paths) -> (Requirement, Option<mvm_vmm::Accel>) {
    let probe = match (engines.probe(), kernel(paths)) {
        (Some(probe), _) => probe,
        (None, None) if Path::new("/dev/kvm").exists() => {
            let why = "/dev/kvm is there; the first start of a machine shows whether machines run on it";
            return (Requirement::unknown(KVM, why), None);
        }
        (None, kernel) => {
            let detection = engines.detection();
            match AccelProbe::run(&detection.binary, &detection.sha256, &kernel.unwrap_or_default()).await {
                Ok(probe) => probe,
                Err(error) => return (Requirement::unknown(KVM, error), None),
            }
        }
    };
    (vmm::acceleration(&probe), Some(probe.accel))
}

/// A kernel for a test boot: of an image that was built, else this host's own.
fn kernel(paths: &Paths) -> Option<PathBuf> {
    let images = paths.images();
    let built = || {
        let store = images.is_dir().then(|| ImageStore::open(&images, &cache_folder(&images)))?.ok()?;
        let revisions = store.list().ok()?;
        revisions.iter().find_map(|id| Some(store.revision(id).ok()?.kernel))
    };
    built().or_else(|| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let own = Path::new("/boot").join(format!("vmlinuz-{release}"));
        own.is_file().then_some(own)
    })
}

fn networks(data: &Path) -> Vec<Requirement> {
    match Networks::open(NodeTag::of_data_folder(data)) {
        Ok(networks) => networks.preflight(),
        Err(error) => vec![Requirement::unknown("namespaces", error)],
    }
}

async fn blocking(look: impl FnOnce() -> Vec<Requirement> + Send + 'static) -> Vec<Requirement> {
    let done = tokio::task::spawn_blocking(look).await;
    // A panic inside would be a defect here; it is passed on, not hidden as something that could not be tried.
    done.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
}
