//! What machines and the node take: of memory, processors and disks.
//!
//! | module | holds |
//! |---|---|
//! | `machines` | what each instance takes, and all VMMs together |
//! | `node` | the host and the agent |
//! | `processor` | CPU times, and their rise over a moment |
//! | `host` | what /proc says about the host |
//! | `disk` | blocks that files take |

mod disk;
mod host;
mod machines;
mod node;
mod processor;

use std::collections::BTreeMap;

pub use host::{Memory, folder, memory};
pub use machines::stats;
pub use node::{disk, info, node_stats};

use crate::machine::Machine;

/// How many machines are in which state.
pub fn count_states(machines: &[Machine]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for machine in machines {
        *counts.entry(machine.state().to_string()).or_default() += 1;
    }
    counts
}

/// What was not measured: /proc or a folder could not be read, or made no sense.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}: {why}")]
pub struct UsageError {
    what: String,
    why: String,
}

impl UsageError {
    fn new(what: impl ToString, why: impl ToString) -> Self {
        Self { what: what.to_string(), why: why.to_string() }
    }
}

impl From<UsageError> for mvm_protocol::api::ApiError {
    fn from(error: UsageError) -> Self {
        Self::new(mvm_protocol::api::ErrorCode::Failed, error)
    }
}

/// Reads files on a thread that may wait for them.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(read).await;
    // A panic inside would be a defect here; it is passed on, not hidden as something that could not be read.
    done.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
}
