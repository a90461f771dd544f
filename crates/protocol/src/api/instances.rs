//! Instances: what is told of them, what can be done to them, and what goes on in them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mvm_model::{InstanceId, InstanceState, MacAddr, PoolId, Role, TenantId};
use serde::{Deserialize, Serialize};

use crate::control::{CopyDirection, IntegrationStatus, TerminalSize};

/// A line of `instance list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstanceSummary {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its pool.
    pub pool: PoolId,
    /// Its id.
    pub id: InstanceId,
    /// What its pool is for.
    pub role: Role,
    /// Its state.
    pub state: InstanceState,
    /// What is being done to it: `starting`, `waking`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<String>,
    /// Its address.
    pub ip: Ipv4Addr,
    /// In this state since, in seconds since 1970.
    pub since: u64,
}

/// `instance info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstanceInfo {
    /// What `instance list` says.
    #[serde(flatten)]
    pub summary: InstanceSummary,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Data disk in MiB.
    pub data_disk_mib: u64,
    /// Counts starts and wakes.
    pub generation: u64,
    /// Revision of the image it runs, or ran last.
    pub revision: Option<String>,
    /// The base that its memory is a copy of, or that its snapshot lies over.
    pub base: Option<String>,
    /// Why it is in its state: why it failed, or why a wake became a cold start.
    pub reason: Option<String>,
    /// Process of its VMM.
    pub pid: Option<u32>,
    /// How its last start or wake went.
    pub last_start: Option<StartReport>,
    /// What its snapshot takes, in bytes.
    pub snapshot_bytes: Option<u64>,
    /// Holds that keep it awake.
    pub holds: usize,
    /// When it is woken for what its workload has planned, unless something else wakes it before, in seconds since 1970.
    pub wake_at: Option<u64>,
    /// How the integrations of its workload are, by name, as its guest says; none where it has none. Not known where it does not run,
    /// or its guest does not say within two seconds.
    pub integrations: Option<BTreeMap<String, IntegrationStatus>>,
}

/// How a start or wake went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StartReport {
    /// `cold boot`, `clone`, `wake`.
    pub how: String,
    /// Why this way, where another was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Whether its VMM had been started ahead.
    #[serde(default)]
    pub spare: bool,
    /// From the request to ready, in milliseconds with microseconds behind the point.
    pub total_ms: f64,
    /// Of these, until the guest had confirmed its identity.
    pub confirmed_ms: f64,
}

/// A duration in milliseconds, with microseconds behind the point.
pub fn millis(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// What can be done to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Make it run.
    Start,
    /// Shut it down.
    Stop,
    /// Put it to sleep.
    Sleep,
    /// Wake it.
    Wake,
    /// Pause it.
    Warm,
    /// Let it go on.
    Resume,
}

impl Act {
    /// Every one there is.
    pub const ALL: [Self; 6] = [Self::Start, Self::Stop, Self::Sleep, Self::Wake, Self::Warm, Self::Resume];

    /// The word in the path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Act::Start => "start",
            Act::Stop => "stop",
            Act::Sleep => "sleep",
            Act::Wake => "wake",
            Act::Warm => "warm",
            Act::Resume => "resume",
        }
    }
}

/// What became of an act.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ActDone {
    /// The instance's whole address.
    pub instance: String,
    /// Its state now.
    pub state: InstanceState,
    /// Whether anything was done; the goal may have held already.
    pub changed: bool,
    /// One sentence for a person.
    pub message: String,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

/// Run a program in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// As this user; root where absent.
    #[serde(default)]
    pub user: Option<String>,
    /// On a terminal of its own of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// Show a log: standard output has its text, standard error what there is to say about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsRequest {
    /// Only what this service wrote.
    #[serde(default)]
    pub service: Option<String>,
    /// The console's log in place of the services'.
    #[serde(default)]
    pub console: bool,
    /// Go on with what is written from now on.
    #[serde(default)]
    pub follow: bool,
    /// Only what was written since, in milliseconds since 1970.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// Of each log at most so many last lines.
    #[serde(default)]
    pub tail: Option<u64>,
}

/// Copy files into a machine or out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRequest {
    /// A path in the machine.
    pub path: String,
    /// Which way.
    pub direction: CopyDirection,
}

/// Connect to a port of a machine's loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// The port.
    pub port: u16,
}
