//! The mvm side: the release binary as a user runs it, with folders and a network namespace of its own.

mod client;

use std::path::{Path, PathBuf};

use hyper::Method;
use mvm_harness::Lab;
use mvm_protocol::api::{Act, ActDone, InstanceInfo, InstanceSummary, StartReport};
use tokio::runtime::Handle;

use crate::Result;
use client::Client;

/// An agent and its machines.
#[derive(Debug)]
pub struct Mvm {
    /// The agent's folders and namespace.
    pub lab: Lab,
    runtime: Handle,
    client: Client,
    folder: PathBuf,
}

impl Mvm {
    /// With everything below these folders; the agent does not run yet.
    pub fn new(name: &str, folder: &Path, run: &Path, runtime: &Handle) -> Result<Self> {
        let binary = binary()?;
        let folder = folder.join(format!("{}-{name}", crate::leftovers::name_of(std::process::id())));
        let run = run.join(name);
        let client = Client::new(run.join("agent.sock"));
        let lab = Lab::in_folders(binary, folder.clone(), run);
        Ok(Self { lab, runtime: runtime.clone(), client, folder })
    }

    /// The agent's lasting state.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Deploys a manifest. One whose `spares` this version does not know is deployed without; whether it has them.
    pub fn deploy(&self, manifest: &str) -> Result<bool> {
        let try_deploy = |text: &str| {
            let path = self.lab.file("deployment.toml", text);
            let output = self.lab.try_mvm(&["deploy", &path.display().to_string()]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(()) } else { Err(said) }
        };
        match try_deploy(manifest) {
            Ok(()) => Ok(true),
            Err(said) if said.contains("spares") => {
                let without: Vec<&str> =
                    manifest.lines().filter(|line| !line.starts_with("spares")).collect();
                try_deploy(&without.join("\n"))?;
                Ok(false)
            }
            Err(said) => Err(format!("deploy: {said}").into()),
        }
    }

    /// Destroys a tenant.
    pub fn destroy(&self, tenant: &str) {
        self.lab.mvm(&["tenant", "destroy", tenant, "--force"]);
    }

    /// The instances of a pool.
    pub fn instances(&self, tenant: &str, pool: &str) -> Result<Vec<String>> {
        let path = format!("/v1/instances?tenant={tenant}&pool={pool}");
        let list: Vec<InstanceSummary> = self.runtime.block_on(self.client.ask(Method::GET, &path))?;
        Ok(list.iter().map(|instance| format!("{tenant}/{pool}/{}", instance.id)).collect())
    }

    /// What there is to know about an instance.
    pub fn info(&self, instance: &str) -> Result<InstanceInfo> {
        self.runtime.block_on(self.client.ask(Method::GET, &format!("/v1/instances/{instance}")))
    }

    /// Has something done to an instance.
    pub fn act(&self, instance: &str, act: Act) -> Result<ActDone> {
        let path = format!("/v1/instances/{instance}/{}", act.as_str());
        self.runtime.block_on(self.client.ask(Method::POST, &path))
    }

    /// Has the same done to many instances at once.
    pub fn act_on_all(&self, instances: &[String], act: Act) -> Result<Vec<ActDone>> {
        let acts = instances.iter().map(|instance| {
            let (client, path) = (self.client.clone(), format!("/v1/instances/{instance}/{}", act.as_str()));
            self.runtime.spawn(async move { client.ask::<ActDone>(Method::POST, &path).await })
        });
        let acts: Vec<_> = acts.collect();
        acts.into_iter().map(|act| self.runtime.block_on(act)?).collect()
    }

    /// Makes an instance run; how that went.
    pub fn run(&self, instance: &str, act: Act) -> Result<StartReport> {
        self.act(instance, act)?;
        let report = self.info(instance)?.last_start;
        Ok(report.ok_or_else(|| format!("{instance} runs without ever having been started"))?)
    }

    /// MiB on disk of an instance.
    pub fn disk_mib(&self, instance: &str) -> Result<f64> {
        let id = instance.rsplit('/').next().unwrap_or_default();
        let bytes = allocated(&self.data_dir().join("instances").join(id))?;
        Ok(bytes as f64 / f64::from(1 << 20))
    }
}

/// `mvm` beside this program.
pub fn binary() -> Result<PathBuf> {
    let binary = std::env::current_exe()?.with_file_name("mvm");
    if binary.is_file() {
        Ok(binary)
    } else {
        Err(format!("{} is not there: run scripts/bench", binary.display()).into())
    }
}

/// Bytes that everything below a folder takes of the disk.
fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Ok(found.blocks() * 512);
    }
    std::fs::read_dir(path)?.map(|entry| allocated(&entry?.path())).sum()
}
