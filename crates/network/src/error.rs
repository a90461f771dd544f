//! What can go wrong, and what to do about it.

use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mvm_model::NetId;

use crate::Uplink;

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a network could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried, as "create bridge br-tenant-5".
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A tool could not be started.
    #[error("cannot run `{tool}`: {source}; install the package `{package}`")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// The distribution package that has it.
        package: &'static str,
        /// Why it did not start.
        source: io::Error,
    },
    /// A tool ended with an error.
    #[error("`{command}` failed: {stderr}")]
    Tool {
        /// The command line.
        command: String,
        /// What it wrote to its standard error.
        stderr: String,
    },
    /// A tool's output was not understood.
    #[error("`{command}` answered with something else than expected: {detail}")]
    ToolOutput {
        /// The command line.
        command: String,
        /// What is wrong with it.
        detail: String,
    },
    /// All of 169.254.64.0/18 is in use.
    #[error(
        "no free pair of addresses in 169.254.64.0/18 for a tenant's uplink: the host's addresses or routes cover \
         all of it (`ip -4 route show table all`)"
    )]
    NoFreeUplink,
    /// The recorded uplink now belongs to someone else.
    #[error(
        "uplink {uplink} overlaps {net} of the host ({what}): choose another for this tenant, or remove that"
    )]
    UplinkTaken {
        /// The tenant's recorded uplink.
        uplink: Uplink,
        /// What it overlaps.
        net: Ipv4Net,
        /// Where that comes from, as "route on eth1".
        what: String,
    },
    /// A network that is not an uplink.
    #[error("{0} is not an uplink: it must be an aligned /31 of 169.254.64.0/18")]
    NotAnUplink(Ipv4Net),
    /// The tenant has no namespace.
    #[error("the network of tenant {net_id} does not exist (namespace {namespace}): make it first")]
    NoNetwork {
        /// The tenant's number.
        net_id: NetId,
        /// The namespace that should be there.
        namespace: String,
    },
    /// The tap of a machine that runs.
    #[error("tap {tap} in {namespace} is in use: a machine with this address still runs; stop it first")]
    TapBusy {
        /// The tap.
        tap: String,
        /// Its namespace.
        namespace: String,
    },
    /// A machine's tap that should be there.
    #[error("tap {tap} in {namespace} does not exist: the machine that held it has ended")]
    NoTap {
        /// The tap.
        tap: String,
        /// Its namespace.
        namespace: String,
    },
    /// An address outside of the tenant's subnet.
    #[error("{ip} is not a machine's address in {subnet}")]
    NotInSubnet {
        /// The address.
        ip: Ipv4Addr,
        /// The tenant's subnet.
        subnet: Ipv4Net,
    },
    /// A tag that is not six hexadecimal digits.
    #[error("`{0}` is not a node tag: six lower-case hexadecimal digits")]
    Tag(String),
}

impl Error {
    /// Wraps the kernel's answer to `action`.
    pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }
}
