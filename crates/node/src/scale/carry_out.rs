//! The acts themselves: many at once, as far as the host's memory holds machines, until whoever asked has gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use mvm_model::{InstanceId, InstanceState};
use mvm_protocol::api::{ScaleAct, ScaleEvent, ScaleOutcome, Scaled, millis};

use super::Events;
use super::limits::Reserve;
use super::plan::turn;
use crate::agent::Agent;
use crate::destroy;
use crate::machine::{Asker, Machine, Outcome};
use crate::usage;

/// What acts need.
pub(super) struct Work<'a> {
    pub(super) agent: &'a Arc<Agent>,
    /// The pool's.
    pub(super) address: &'a str,
    /// What a machine that was never started will have.
    pub(super) mem_mib: u32,
    pub(super) reserve: Reserve,
    /// How many may be started at once only to be put to sleep.
    pub(super) room: usize,
    pub(super) events: &'a Events,
}

impl Work<'_> {
    /// Does all acts, those of a kind many at once, one kind after another, and notes what became of them.
    pub(super) async fn carry_out(&self, mut acts: Vec<(InstanceId, ScaleAct)>, scaled: &mut Scaled) {
        // Each keeps a core busy for most of its time, and waits for the disk or its guest for the rest.
        let at_once = 2 * std::thread::available_parallelism().map_or(2, usize::from);
        acts.sort_by_key(|(_, act)| turn(*act));
        let short = Mutex::new(None);
        for kind in acts.chunk_by(|(_, one), (_, other)| one == other) {
            let at_once = match kind.first() {
                Some((_, ScaleAct::Prepare)) => at_once.min(self.room).max(1),
                _ => at_once,
            };
            let doing = kind.iter().copied().map(|(id, act)| self.one(id, act, &short));
            let done: Vec<Result<ScaleOutcome, String>> =
                futures::stream::iter(doing).buffer_unordered(at_once).collect().await;
            for one in done {
                match one {
                    Ok(outcome) => scaled.outcomes.push(outcome),
                    Err(address) => scaled.not_begun.push(address),
                }
            }
        }
        scaled.outcomes.sort_by(|a, b| (turn(a.act), &a.instance).cmp(&(turn(b.act), &b.instance)));
        scaled.not_begun.sort();
        let short = short.into_inner().unwrap_or_else(PoisonError::into_inner);
        scaled.stopped = short.map(|why| self.advice(&why, scaled));
    }

    /// One act; the instance's address where it was not begun.
    async fn one(
        &self,
        id: InstanceId,
        act: ScaleAct,
        short: &Mutex<Option<String>>,
    ) -> Result<ScaleOutcome, String> {
        let address = format!("{}/{id}", self.address);
        let Some(machine) = self.agent.machine(id) else { return Ok(gone(address, act)) };
        if self.events.is_closed() || !self.holds(&machine, act, short) {
            return Err(address);
        }
        let _ =
            self.events.send(ScaleEvent::Begun { instance: address.clone(), doing: doing(&machine, act) });
        let begun = Instant::now();
        let acted = self.act(&machine, act).await;
        let row = machine.view().row;
        let started = matches!(acted, Ok(Outcome::Done)) && matches!(act, ScaleAct::Run | ScaleAct::Prepare);
        let outcome = ScaleOutcome {
            instance: address,
            act,
            state: row.state,
            how: row.last_start.filter(|_| started).map(|start| start.how),
            ms: millis(begun.elapsed()),
            error: acted.err(),
        };
        let _ = self.events.send(ScaleEvent::Ended(outcome.clone()));
        Ok(outcome)
    }

    /// Whether the host has memory for what is to be started. Where it has not, nothing is started after it either.
    fn holds(&self, machine: &Machine, act: ScaleAct, short: &Mutex<Option<String>>) -> bool {
        if !matches!(act, ScaleAct::Run | ScaleAct::Prepare) || machine.state().has_vmm() {
            return true;
        }
        let mut short = short.lock().unwrap_or_else(PoisonError::into_inner);
        if short.is_none() {
            let mem_mib = self.memory_of(machine);
            *short = match usage::memory() {
                Ok(memory) => self.reserve.shortage(memory, mem_mib),
                Err(error) => Some(error.to_string()),
            };
        }
        short.is_none()
    }

    /// One that sleeps wakes with what it had.
    fn memory_of(&self, machine: &Machine) -> u32 {
        let row = machine.view().row;
        let launched = row.launched.filter(|_| row.state == InstanceState::Sleeping);
        launched.map_or(self.mem_mib, |launched| launched.resources.mem_mib)
    }

    async fn act(&self, machine: &Machine, act: ScaleAct) -> Result<Outcome, String> {
        let acted = match act {
            ScaleAct::Destroy => {
                let destroyed = destroy::instance(self.agent, machine).await;
                return destroyed.map(|_| Outcome::Done).map_err(|error| error.message);
            }
            ScaleAct::Run => machine.run(Asker::Person).await,
            ScaleAct::Sleep => machine.sleep(Asker::Person).await,
            ScaleAct::Prepare => match machine.run(Asker::Person).await {
                Ok(_) => machine.sleep(Asker::Person).await,
                Err(error) => Err(error),
            },
        };
        acted.map_err(|error| error.to_string())
    }

    fn advice(&self, why: &str, scaled: &Scaled) -> String {
        let pool = self
            .agent
            .machines(|machine| format!("{}/{}", machine.place.tenant, machine.place.pool) == self.address);
        let running = pool.iter().filter(|machine| machine.state() == InstanceState::Running).count();
        format!(
            "{why}: {running} of {} run. Put machines to sleep or stop them (`mvm instance sleep`), give the pool less \
             memory, or the host more; then scale again",
            scaled.desired.running
        )
    }
}

/// Somebody else was faster.
fn gone(instance: String, act: ScaleAct) -> ScaleOutcome {
    let error = (act != ScaleAct::Destroy).then(|| "it was destroyed meanwhile".to_owned());
    ScaleOutcome { instance, act, state: InstanceState::Destroyed, how: None, ms: 0.0, error }
}

fn doing(machine: &Machine, act: ScaleAct) -> String {
    let words = match (act, machine.state()) {
        (ScaleAct::Destroy, _) => "destroying",
        (ScaleAct::Sleep, _) => "going to sleep",
        (ScaleAct::Run, InstanceState::Sleeping) => "waking",
        (ScaleAct::Run | ScaleAct::Prepare, _) => "starting",
    };
    words.to_owned()
}
