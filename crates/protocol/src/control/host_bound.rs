//! Port 53: guest to host.

use std::net::Ipv4Addr;

use mvm_model::{InstanceId, InstanceSelector, PoolId, TenantId};
use serde::{Deserialize, Serialize};

use super::Generation;

/// What a guest asks of the host (port 53). Only a gateway may, and only about its own tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostRequest {
    /// Make an instance run.
    WakeInstance {
        /// The asker's own tenant.
        tenant_id: TenantId,
        /// The pool.
        pool_id: PoolId,
        /// The instance.
        instance_id: InstanceId,
    },
    /// Ask how an instance is.
    QueryInstanceStatus {
        /// The asker's own tenant.
        tenant_id: TenantId,
        /// The pool.
        pool_id: PoolId,
        /// The instance.
        instance_id: InstanceId,
    },
    /// Choose an instance, make it run, and keep it running while this stream is open.
    Hold {
        /// The pool.
        pool_id: PoolId,
        /// Which of its instances.
        instance_selector: InstanceSelector,
        /// How many connections this stands for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connections: Option<u32>,
        /// Only in the run of this generation, of an instance that was held and whose stream broke: one that has slept or
        /// stopped since is not made to run for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        only_if_generation: Option<Generation>,
    },
    /// Somebody opened a one-time link: make them the user whose it is.
    ClaimUser {
        /// The link's code.
        code: String,
        /// Who they are to Telegram.
        telegram: i64,
    },
    /// On the stream of a Hold: whether its instance is to be kept running any longer. The stream stays, so that the end is
    /// told. Not answered.
    Keep {
        /// It is needed now; or nothing has gone to or from it for a while.
        running: bool,
    },
}

/// What the host answers on port 53.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostReply {
    /// To WakeInstance, when the instance is ready.
    WakeResult {
        /// It runs.
        success: bool,
        /// Why not.
        detail: String,
    },
    /// To QueryInstanceStatus.
    InstanceStatus {
        /// Its state.
        status: String,
        /// Its address.
        guest_ip: Ipv4Addr,
    },
    /// To Hold, when the instance is ready.
    Held {
        /// The one that was chosen.
        instance_id: InstanceId,
        /// Its address.
        guest_ip: Ipv4Addr,
        /// The generation in which it runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<Generation>,
    },
    /// To ClaimUser, when it is durable.
    UserClaimed {
        /// Who they are now.
        user: String,
    },
    /// Unasked, on the stream of a Hold: the instance is to be put to sleep, paused or stopped, which waits a while for
    /// those who have something in hand.
    Leaving,
    /// Unasked, the last on the stream of a Hold: the instance does not run any more.
    Gone,
    /// To anything that may not or could not be done.
    Error {
        /// What went wrong.
        message: String,
    },
}
