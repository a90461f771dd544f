//! The echo deployment, which most tests begin with.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::checkout;

/// The recipe of the echo worker.
pub fn echo_image() -> PathBuf {
    checkout().join("examples/echo/worker").canonicalize().unwrap()
}

/// A gateway that sends everything to a worker, published on port 8080 of the lab's host.
pub fn echo(tenant: &str) -> String {
    Echo { tenant, ..Echo::default() }.manifest()
}

/// What may be said about the echo deployment.
#[derive(Debug)]
pub struct Echo<'a> {
    /// The tenant's name.
    pub tenant: &'a str,
    /// The host's port.
    pub port: u16,
    /// How many workers.
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

/// The deployment of [`echo`] with a second pool of workers, behind port 8081, and a third that nobody asks.
pub fn echo_with(second: &str, third: &str) -> String {
    let image = echo_image();
    let pool = |id: &str| {
        format!(
            "[[pools]]\nid = \"{id}\"\nimage = \"{}\"\nvcpus = 1\nmem_mib = 256\ndata_disk_mib = 64\n\
             desired_running = 1\nspares = 0\n",
            image.display()
        )
    };
    let route = format!(
        "[[publish]]\nport = 8081\npool = \"gateways\"\ntarget_port = 8081\n\
         [[routes]]\nname = \"{second}\"\nmatch_rule = {{ port = 8081, path_prefix = \"/\" }}\n\
         target = {{ pool_id = \"{second}\", instance_selector = \"any\", target_port = 8080 }}\n"
    );
    Echo { more: &[pool(second), pool(third), route].concat(), ..Echo::default() }.manifest()
}

impl Echo<'_> {
    /// As text.
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

/// The wall clock, in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
