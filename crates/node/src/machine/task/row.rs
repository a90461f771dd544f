//! What is known of a machine: its row, as it is committed and shown to others, and beside it the way to talk to its guest.

use mvm_model::{InstanceState, Operation};

use super::{Task, failed};
use crate::machine::{ActError, View};
use crate::policy;
use crate::session::Session;
use crate::store::{Audit, Intent, now_secs};

impl Task {
    /// Notes durably that an act begins.
    pub(in crate::machine) async fn begin(&mut self, intent: Intent) -> Result<(), ActError> {
        self.begin_saying(intent, Vec::new()).await
    }

    /// The same where there is something to say about it already.
    pub(in crate::machine) async fn begin_saying(
        &mut self,
        intent: Intent,
        audits: Vec<Audit>,
    ) -> Result<(), ActError> {
        self.row.intent = Some(intent);
        self.save(audits).await.inspect_err(|_| self.row.intent = None)
    }

    /// Ends an act: the new state, what is said about it, and no intent any more.
    ///
    /// The table decides; that it has the change was asked before the act began, so a refusal here is a defect, which is
    /// logged and leaves the state as it was.
    pub(in crate::machine) async fn settle(&mut self, operation: Operation, audits: Vec<Audit>) {
        match self.row.state.after(operation) {
            Ok(state) => {
                self.row.state = state;
                self.row.since = now_secs();
                self.forget_timer();
                if state != InstanceState::Failed {
                    // Whoever stopped or started it since has had the last word.
                    self.restart.at = None;
                }
            }
            Err(refused) => {
                tracing::error!(instance = %self.row.id, %refused, "an act ended outside of the table")
            }
        }
        self.row.intent = None;
        self.save_or_log(audits).await;
    }

    /// As [`save`](Self::save), where what has been done stays so whether it can be stored or not.
    pub(in crate::machine) async fn save_or_log(&mut self, audits: Vec<Audit>) {
        if let Err(error) = self.save(audits).await {
            tracing::error!(instance = %self.row.id, %error, "its row could not be stored");
        }
    }

    /// Commits the row and what is said about it, in one transaction.
    pub(in crate::machine) async fn save(&mut self, audits: Vec<Audit>) -> Result<(), ActError> {
        let minimums = policy::among(&audits);
        self.commit(audits).await?;
        self.agent.minimums.add(minimums);
        self.show();
        Ok(())
    }

    /// The same for something else to go on beside it: the row as it is now, to be shown when that is done.
    pub(in crate::machine) fn commit(
        &self,
        audits: Vec<Audit>,
    ) -> impl Future<Output = Result<(), ActError>> + Send + use<> {
        let (row, tenant, store) = (self.row.clone(), self.tenant.id.clone(), self.agent.store.clone());
        async move {
            let act = move |tx: &rusqlite::Transaction<'_>| {
                row.save(tx)?;
                audits.iter().try_for_each(|audit| audit.append(tx, &tenant))
            };
            store.write(act).await.map_err(failed)
        }
    }

    /// Shows others the row as it is.
    pub(in crate::machine) fn show(&self) {
        if self.view.borrow().row.wake_at != self.row.wake_at {
            self.agent.alarms.set(self.row.id, self.row.wake_at);
        }
        self.view.send_replace(View {
            row: self.row.clone(),
            act: self.row.intent,
            settling: self.settling,
            link: self.session().map(Session::link),
        });
    }

    /// Its control session, where one is open.
    pub(in crate::machine) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Takes another control session in place of the one it had, which is closed; others see it at once, beside the row as it was.
    pub(in crate::machine) fn set_session(&mut self, session: Option<Session>) {
        drop(self.take_session());
        if let Some(session) = session {
            self.view.send_modify(|view| view.link = Some(session.link()));
            self.session = Some(session);
        }
    }

    /// Takes its control session away from everyone else.
    pub(in crate::machine) fn take_session(&mut self) -> Option<Session> {
        let session = self.session.take()?;
        self.view.send_modify(|view| view.link = None);
        Some(session)
    }
}
