//! The manifests that the tests begin with.

use std::path::PathBuf;

use mvm_harness::checkout;

/// The recipe of the echo worker.
pub fn echo_image() -> PathBuf {
    checkout().join("examples/echo/worker").canonicalize().unwrap()
}

/// A gateway that sends everything to a worker, published on port 8080 of the lab's host.
pub fn echo(tenant: &str) -> String {
    Echo { tenant, ..Echo::default() }.manifest()
}

/// What may be said about the echo deployment.
pub struct Echo<'a> {
    pub tenant: &'a str,
    pub port: u16,
    pub workers: u32,
    /// More keys of the workers' pool.
    pub worker_keys: &'a str,
    /// More keys of the gateways' pool.
    pub gateway_keys: &'a str,
    /// More sections.
    pub more: &'a str,
}

impl Default for Echo<'_> {
    fn default() -> Self {
        Self { tenant: "alice", port: 8080, workers: 1, worker_keys: "", gateway_keys: "", more: "" }
    }
}

impl Echo<'_> {
    pub fn manifest(&self) -> String {
        let image = echo_image();
        let (image, Self { tenant, port, workers, worker_keys, gateway_keys, more }) =
            (image.display(), self);
        format!(
            r#"
[tenant]
id = "{tenant}"

[[pools]]
id = "gateways"
role = "gateway"
vcpus = 1
mem_mib = 192
data_disk_mib = 16
desired_running = 1
spares = 0
{gateway_keys}

[[pools]]
id = "workers"
role = "worker"
image = "{image}"
vcpus = 1
mem_mib = 256
data_disk_mib = 64
desired_running = {workers}
spares = 0
{worker_keys}

[[publish]]
port = {port}
pool = "gateways"
target_port = 8080

[[routes]]
name = "echo"
match_rule = {{ port = 8080, path_prefix = "/" }}
target = {{ pool_id = "workers", instance_selector = "any", target_port = 8080 }}
{more}
"#
        )
    }
}
