//! When a machine that failed is started again, where its pool wants it back.

use std::time::{Duration, Instant};

use mvm_model::{InstanceState, RestartPolicy};

use super::Task;
use crate::machine::ActError;

/// A machine that ran for so long has recovered: its next restart comes at once again.
const STEADY: Duration = Duration::from_secs(60);

/// When a failed machine is started again.
#[derive(Debug, Default)]
pub(super) struct Restart {
    pub(super) at: Option<Instant>,
    pub(super) attempts: u32,
    running_since: Option<Instant>,
}

impl Task {
    /// For the restart policy: how an attempt to run went.
    pub(in crate::machine) async fn keep_books(&mut self, attempt: &Result<(), ActError>) {
        match attempt {
            Ok(()) => self.restart.running_since = Some(Instant::now()),
            Err(_) if self.row.state == InstanceState::Failed => self.schedule_restart().await,
            Err(_) => {}
        }
    }

    /// Where its pool wants failed machines back.
    pub(in crate::machine) async fn schedule_restart(&mut self) {
        let on_failure = matches!(self.pool().await, Ok(pool) if pool.restart == RestartPolicy::OnFailure);
        if !on_failure {
            return;
        }
        if self.restart.running_since.take().is_some_and(|since| since.elapsed() >= STEADY) {
            self.restart.attempts = 0;
        }
        let wait = RestartPolicy::backoff(self.restart.attempts);
        self.restart.at = Some(Instant::now() + wait);
    }
}
