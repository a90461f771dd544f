//! From what is wanted of a tenant, by a manifest or by a command, to what is there.
//!
//! Everything that can be refused is refused before anything is made; what is made first (images, disks) is found by
//! its content or removed by the next agent, and what is wanted becomes true in one transaction. Machines follow.
//!
//! | module | holds |
//! |---|---|
//! | `wish` | what is wanted: as a manifest says it, or what there is with a command's change |
//! | `naming` | what is wrong with it, where a command said it |
//! | `plan` | what that changes: a pure comparison |
//! | `images`, `secrets` | revisions of pools' images; secrets compared and sealed |
//! | `set_secrets` | some secrets set to other values, and handed to machines |
//! | `apply`, `basis` | the commit, of what was compared with what is still there |
//! | `begin`, `restart` | what follows it: network, ports, machines; machines that need a cold start |

mod apply;
mod basis;
mod begin;
mod images;
mod naming;
mod plan;
mod restart;
mod secrets;
mod set_secrets;
mod wish;

pub use begin::refresh;
pub use images::mend_image;
pub use set_secrets::set_secrets;
pub use wish::{Request, deployment};

pub use crate::create::GivenDisk;

use std::sync::Arc;

use mvm_model::manifest::Problem;
use mvm_protocol::api::{ApiError, DeployEvent, ErrorCode};
use tokio::sync::mpsc;

use crate::agent::Agent;

/// Where a deployment's progress goes. Whoever listened may go: before anything is committed that is the end of the
/// deployment (Ctrl-C leaves nothing behind), afterwards it goes on.
#[derive(Debug, Clone)]
pub struct Events(mpsc::UnboundedSender<DeployEvent>);

impl Events {
    /// Progress goes to the other end of this.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<DeployEvent>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Tells something.
    pub fn send(&self, event: DeployEvent) {
        let _ = self.0.send(event);
    }

    /// Whether whoever wanted the deployment has gone.
    fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// A step begins of which nobody knows how long it takes.
    pub fn step(&self, what: impl Into<String>, doing: impl Into<String>) {
        self.progress(what, doing, 0, 0);
    }

    fn progress(&self, what: impl Into<String>, doing: impl Into<String>, done: u64, total: u64) {
        self.send(DeployEvent::Step { what: what.into(), doing: doing.into(), done, total });
    }
}

/// Makes a tenant as it is wanted. The last event is `Done` or `Failed`.
pub async fn deploy(agent: Arc<Agent>, request: Request, events: Events) {
    deploy_with(agent, request, None, events).await;
}

/// The same; where an instance is made, the first has the data disk that is given.
pub async fn deploy_with(agent: Arc<Agent>, request: Request, given: Option<GivenDisk>, events: Events) {
    let last = match apply::apply(&agent, request, given, &events).await {
        Ok(changes) => DeployEvent::Done { changes },
        Err(error) => DeployEvent::Failed { error },
    };
    events.send(last);
}

fn at_key(problem: Problem) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message: problem.message, key: Some(problem.key) }
}

fn invalid(key: impl Into<String>, message: impl ToString) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message: message.to_string(), key: Some(key.into()) }
}

fn failed(message: impl ToString) -> ApiError {
    ApiError { code: ErrorCode::Failed, message: message.to_string(), key: None }
}
