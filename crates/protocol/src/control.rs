//! The messages of the control channel: port 52, host to guest, and port 53, guest to host.

mod host_bound;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mvm_model::{InstanceId, MacAddr, PoolId, TenantId};
use serde::{Deserialize, Serialize};

use crate::SecretBytes;
use crate::openclaw::OpenClaw;

pub use crate::integration::IntegrationStatus;
pub use host_bound::{HostReply, HostRequest};

/// Counts a machine's starts, clones, wakes and resumes.
pub type Generation = u64;

/// How far a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Up, and nothing of its own yet.
    Booted,
    /// Has an identity; services may run.
    Personalized,
}

/// Who a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its pool.
    pub pool_id: PoolId,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Host name.
    pub hostname: String,
    /// Contents of /etc/machine-id: 32 hex digits, the same for the life of the instance.
    pub machine_id: String,
    /// Ethernet address.
    pub mac: MacAddr,
    /// Address.
    pub ip: Ipv4Addr,
    /// Bits of the subnet's prefix.
    pub prefix_len: u8,
    /// Default route and resolver.
    pub gateway: Ipv4Addr,
    /// Whether `vdb` holds /data.
    pub has_data: bool,
}

/// The host's wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub unix_nanos: u64,
}

/// How large a terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// In a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Config files by name, as in `/etc/mvm-config/<name>`.
pub type ConfigFiles = BTreeMap<String, String>;
/// Secrets by scope and key, as in `/run/secrets/<scope>/<KEY>`.
pub type SecretFiles = BTreeMap<String, BTreeMap<String, SecretBytes>>;

/// Config and secrets of one machine together, in bytes.
pub const MAX_UPDATE: usize = 128 * 1024;

/// What the host asks of a guest (port 52).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestRequest {
    /// Who are you?
    Hello {
        /// The host's [`crate::PROTOCOL_VERSION`].
        protocol: u32,
    },
    /// Run the image's prewarm, if it has one. Refused once the machine was personalized.
    Prewarm,
    /// Become this machine, now. Refused unless the generation is higher than the guest's.
    Personalize {
        /// Raised at every start, clone, wake and resume.
        generation: Generation,
        /// Who the machine is; absent on a resume.
        identity: Option<Identity>,
        /// What time it is.
        clock: Clock,
        /// Fresh entropy, 64 bytes.
        seed: SecretBytes,
    },
    /// Replace config or secrets, each as a whole.
    Update {
        /// All config files.
        config: Option<ConfigFiles>,
        /// All secrets.
        secrets: Option<SecretFiles>,
    },
    /// Go to work: start the services, or tell them that time has passed. Answered when they are ready.
    Wake {
        /// The generation of the last Personalize.
        generation: Generation,
        /// A sleep was begun and given up; nothing was lost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cancelled: Option<bool>,
    },
    /// Finish or park the work in hand, flush the disks.
    SleepPrep {
        /// How long it may take, in seconds.
        drain_timeout_secs: u32,
    },
    /// End the services, flush the disks, power off.
    Shutdown {
        /// How long services may take, in seconds.
        grace_secs: u32,
    },
    /// Set the clock straight: slowly, or at once where it is behind by more than a second.
    AdjustClock {
        /// What time it is.
        clock: Clock,
    },
    /// What are you doing?
    WorkerStatus,
    /// Which integrations are there?
    IntegrationStatus,
    /// Save the state of integrations.
    CheckpointIntegrations {
        /// Their names; all where empty.
        integrations: Vec<String>,
    },
    /// Are you there?
    Ping,
    /// Run a program. The stream goes on with records.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
        /// Added to the environment.
        #[serde(default)]
        environment: BTreeMap<String, String>,
        /// As this user; root where absent.
        #[serde(default)]
        user: Option<String>,
        /// On a terminal of its own of this size: what it reads, and all that it writes, goes through that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        terminal: Option<TerminalSize>,
    },
    /// Send what services wrote. The stream goes on with records: standard error has a [`LogPlace`] before each piece of
    /// text that does not follow the one before, standard output the text.
    Logs {
        /// One service; all where absent.
        #[serde(default)]
        service: Option<String>,
        /// Go on with what they write from now on.
        #[serde(default)]
        follow: bool,
        /// Only what was written since, in milliseconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
        /// Of each log at most so many last lines.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tail: Option<u64>,
        /// What was sent already, by service: those logs go on there.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        after: BTreeMap<String, LogPosition>,
    },
    /// Copy files. The stream goes on with records: the tar archive as standard input or output up to its `Eof`, the other
    /// way or beside it [`CopyNote`]s on standard error, and an exit code.
    Copy {
        /// A path in the machine.
        path: String,
        /// Into the machine, or out of it.
        direction: CopyDirection,
    },
    /// Connect to a port of the machine's loopback. The stream goes on with records: standard input and output, each up to
    /// its `Eof`.
    Forward {
        /// The port.
        port: u16,
    },
}

/// Where in a log something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Which log: when it was begun. Another one after a start, the same after a sleep.
    pub log: u64,
    /// How many bytes were written to it before.
    pub at: u64,
}

/// Whose text follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlace {
    /// The service.
    pub service: String,
    /// Where the text begins.
    pub position: LogPosition,
}

/// Which way files are copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyDirection {
    /// Into the machine, where the copy lands as `docker cp` decides it.
    In {
        /// What is copied.
        what: Copied,
    },
    /// Out of the machine.
    Out,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Copied {
    /// A file or a symbolic link with this name.
    File(String),
    /// A folder with this name; without one, what is in it.
    Folder(Option<String>),
    /// A tar archive of whatever there is in it.
    Archive,
}

/// What a guest says about a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyNote {
    /// Out of the machine, first of all: what it is.
    Begins {
        /// A folder; else a file or a symbolic link.
        is_folder: bool,
        /// How long the archive is, about.
        bytes: u64,
    },
    /// Something is neither file nor folder nor symbolic link, and is not copied.
    LeftOut {
        /// What and where: `socket /run/x`.
        what: String,
    },
    /// It is not, or not whole.
    Failed {
        /// Why.
        message: String,
    },
    /// Into the machine: all is written.
    Done {
        /// Where.
        path: String,
        /// Files.
        files: u64,
        /// Folders.
        folders: u64,
        /// Symbolic links.
        links: u64,
        /// Bytes in files.
        bytes: u64,
    },
}

/// What a guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestReply {
    /// To Hello.
    Hello {
        /// The guest's [`crate::PROTOCOL_VERSION`].
        protocol: u32,
        /// Version of mvm-guest.
        guest_version: String,
        /// How far it is.
        phase: Phase,
        /// Who it was last told to be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance_id: Option<InstanceId>,
        /// The last generation it took; 0 before the first.
        generation: Generation,
    },
    /// To Prewarm, when it has ended and what it is not to leave running is gone.
    Prewarmed {
        /// It succeeded, or the image has none.
        success: bool,
        /// Why not, with the end of its output.
        detail: String,
    },
    /// To Personalize.
    Personalized {
        /// The generation it took.
        generation: Generation,
        /// The seed was credited and the kernel's generator reseeded.
        seed_credited: bool,
        /// Identity, address and /data are in place.
        identity_applied: bool,
    },
    /// To Update.
    Updated,
    /// To Wake.
    WakeAck {
        /// Services are ready.
        success: bool,
        /// Why not.
        #[serde(default)]
        detail: String,
    },
    /// To SleepPrep.
    SleepPrepAck {
        /// Drained and flushed.
        success: bool,
        /// Why not.
        detail: String,
        /// When the workload wants to be woken, in seconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wake_at: Option<u64>,
    },
    /// To Shutdown: it begins.
    ShuttingDown,
    /// To AdjustClock.
    ClockAdjusted {
        /// How far off the guest's clock was, in microseconds.
        offset_micros: i64,
    },
    /// To WorkerStatus.
    WorkerStatus {
        /// Whether it has work.
        status: WorkerStatus,
        /// When it last had, in seconds since 1970.
        last_busy_at: u64,
    },
    /// To IntegrationStatus.
    IntegrationStatusReport {
        /// By name.
        integrations: BTreeMap<String, IntegrationStatus>,
    },
    /// To CheckpointIntegrations.
    CheckpointResult {
        /// All of them.
        success: bool,
        /// Those that did not.
        failed: Vec<String>,
        /// Why.
        detail: String,
    },
    /// To Ping.
    Pong,
    /// To Exec, Logs, Copy and Forward: records follow.
    Started,
    /// To anything that could not be done or is not known.
    Error {
        /// What went wrong.
        message: String,
    },
}

/// Whether a guest has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerStatus {
    /// Its services are not ready.
    Starting,
    /// It works.
    Busy,
    /// It has nothing to do.
    Idle,
}

/// `/etc/mvm-config/config.json`: what a machine's workload may know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its pool.
    pub pool_id: PoolId,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// What its pool is for.
    pub role: mvm_model::Role,
    /// Its address.
    pub guest_ip: Ipv4Addr,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// The pool's runtime policy.
    pub min_runtime_policy: mvm_model::RuntimePolicy,
    /// Names of its integrations.
    pub integrations: Vec<String>,
    /// Of a machine of an OpenClaw tenant: what it needs to know of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openclaw: Option<OpenClaw>,
}

#[cfg(test)]
mod tests {
    use mvm_model::InstanceSelector;

    use super::*;

    fn wire<T: Serialize>(message: &T) -> String {
        serde_json::to_string(message).unwrap()
    }

    #[test]
    fn messages_are_written_as_the_contract_says() {
        assert_eq!(wire(&GuestRequest::Hello { protocol: 1 }), r#"{"Hello":{"protocol":1}}"#);
        assert_eq!(wire(&GuestRequest::Prewarm), r#""Prewarm""#);
        assert_eq!(
            wire(&GuestReply::Prewarmed { success: true, detail: String::new() }),
            r#"{"Prewarmed":{"success":true,"detail":""}}"#
        );
        assert_eq!(
            wire(&GuestRequest::Wake { generation: 4, cancelled: None }),
            r#"{"Wake":{"generation":4}}"#
        );
        assert_eq!(
            wire(&HostRequest::Hold {
                pool_id: "workers".parse().unwrap(),
                instance_selector: InstanceSelector::Any,
                connections: None,
                only_if_generation: None
            }),
            r#"{"Hold":{"pool_id":"workers","instance_selector":"any"}}"#
        );
        assert_eq!(wire(&HostRequest::Keep { running: false }), r#"{"Keep":{"running":false}}"#);
        assert_eq!(wire(&HostReply::Leaving), r#""Leaving""#);
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_variants_are_not_taken() {
        let hello = serde_json::from_str::<GuestRequest>(r#"{"Hello":{"protocol":1,"new":true}}"#);
        assert!(hello.is_ok());
        assert!(serde_json::from_str::<GuestRequest>(r#"{"Dance":{}}"#).is_err());
    }
}
