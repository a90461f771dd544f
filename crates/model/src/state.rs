//! The states of an instance, and the one table that decides every change between them.
//!
//! ```text
//!              ┌────────── start ──────────┐  ┌── pause ──▶ warm ──┐
//! created ─▶ ready ──▶ start ──▶ running ◀─┴──┴── resume ──────────┤
//!                                  │  ▲ ▲                          │ sleep
//!                        stop      │  │ └───── wake ── sleeping ◀──┤
//! stopped ◀────────────────────────┤  └─ start                     │
//! failed  ◀── the VMM ended, or a start, resume or wake failed ────┘
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an instance is, between acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Known, but its pool has no image yet.
    Created,
    /// Can be started.
    Ready,
    /// Its VMM runs and its workload is ready.
    Running,
    /// Its VMM holds its memory, its vCPUs stand still.
    Warm,
    /// A snapshot on disk; no process.
    Sleeping,
    /// Stopped in order; no snapshot.
    Stopped,
    /// Ended or did not start; the reason is kept beside the state.
    Failed,
    /// Gone for good.
    Destroyed,
}

/// What changes an instance's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// The pool got a revision.
    Prepare,
    /// A cold boot or clone reached ready.
    Start,
    /// The vCPUs were paused.
    Warm,
    /// The vCPUs go on.
    Resume,
    /// A snapshot was committed.
    Sleep,
    /// A snapshot, or the cold start in its place, reached ready.
    Wake,
    /// Shut down; a snapshot is discarded.
    Stop,
    /// The VMM ended by itself.
    VmmEnded,
    /// A start, resume or wake did not reach ready.
    Fail,
    /// Destroyed.
    Destroy,
}

/// A change that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {from} instance cannot {operation}{}", hint(*.from, *.operation))]
pub struct Refused {
    /// The state it is in.
    pub from: InstanceState,
    /// What was asked.
    pub operation: Operation,
}

impl Refused {
    /// The state that was asked for.
    pub const fn to(&self) -> InstanceState {
        self.operation.target()
    }
}

fn hint(from: InstanceState, operation: Operation) -> String {
    let from_states: Vec<&str> = InstanceState::ALL
        .into_iter()
        .filter(|state| state.after(operation).is_ok())
        .map(InstanceState::as_str)
        .collect();
    let target = operation.target();
    if from == InstanceState::Destroyed {
        return format!(" and become {target}: it is gone");
    }
    format!(": only {} becomes {target} by it", from_states.join(", "))
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 10] = [
        Operation::Prepare,
        Operation::Start,
        Operation::Warm,
        Operation::Resume,
        Operation::Sleep,
        Operation::Wake,
        Operation::Stop,
        Operation::VmmEnded,
        Operation::Fail,
        Operation::Destroy,
    ];

    /// The state an instance is in afterwards.
    pub const fn target(self) -> InstanceState {
        match self {
            Operation::Prepare => InstanceState::Ready,
            Operation::Start | Operation::Resume | Operation::Wake => InstanceState::Running,
            Operation::Warm => InstanceState::Warm,
            Operation::Sleep => InstanceState::Sleeping,
            Operation::Stop => InstanceState::Stopped,
            Operation::VmmEnded | Operation::Fail => InstanceState::Failed,
            Operation::Destroy => InstanceState::Destroyed,
        }
    }
}

impl InstanceState {
    /// Every state.
    pub const ALL: [InstanceState; 8] = [
        InstanceState::Created,
        InstanceState::Ready,
        InstanceState::Running,
        InstanceState::Warm,
        InstanceState::Sleeping,
        InstanceState::Stopped,
        InstanceState::Failed,
        InstanceState::Destroyed,
    ];

    /// The state after an operation.
    ///
    /// # Errors
    /// [`Refused`], naming both states, where the table has no such change.
    pub fn after(self, operation: Operation) -> Result<InstanceState, Refused> {
        use InstanceState::{Created, Destroyed, Failed, Ready, Running, Sleeping, Stopped, Warm};
        let allowed = match operation {
            Operation::Prepare => self == Created,
            Operation::Start => matches!(self, Ready | Stopped | Failed),
            Operation::Warm => self == Running,
            Operation::Resume => self == Warm,
            Operation::Sleep => matches!(self, Running | Warm),
            Operation::Wake => self == Sleeping,
            Operation::Stop => matches!(self, Running | Warm | Sleeping | Failed),
            Operation::VmmEnded => matches!(self, Running | Warm),
            Operation::Fail => matches!(self, Ready | Stopped | Failed | Sleeping | Warm),
            Operation::Destroy => self != Destroyed,
        };
        if allowed { Ok(operation.target()) } else { Err(Refused { from: self, operation }) }
    }

    /// Whether the goal of an operation holds already, so that a command for it has nothing to do.
    pub const fn already(self, operation: Operation) -> bool {
        matches!(
            (self, operation),
            (InstanceState::Running, Operation::Start | Operation::Wake | Operation::Resume)
                | (InstanceState::Warm, Operation::Warm)
                | (InstanceState::Sleeping, Operation::Sleep)
                | (InstanceState::Stopped | InstanceState::Ready | InstanceState::Created, Operation::Stop)
        )
    }

    /// Whether a VMM belongs to the state.
    pub const fn has_vmm(self) -> bool {
        matches!(self, InstanceState::Running | InstanceState::Warm)
    }

    /// The name on the wire and in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            InstanceState::Created => "created",
            InstanceState::Ready => "ready",
            InstanceState::Running => "running",
            InstanceState::Warm => "warm",
            InstanceState::Sleeping => "sleeping",
            InstanceState::Stopped => "stopped",
            InstanceState::Failed => "failed",
            InstanceState::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for InstanceState {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        InstanceState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// Not the name of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an instance state")]
pub struct UnknownState(pub String);

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operation::Prepare => "be prepared",
            Operation::Start => "be started",
            Operation::Warm => "be paused",
            Operation::Resume => "be resumed",
            Operation::Sleep => "be put to sleep",
            Operation::Wake => "be woken",
            Operation::Stop => "be stopped",
            Operation::VmmEnded => "end by itself",
            Operation::Fail => "fail",
            Operation::Destroy => "be destroyed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::InstanceState::*;
    use super::*;
    use proptest::prelude::*;

    /// The table of words.md, written out once more so that a change of one is noticed by the other.
    const TABLE: &[(InstanceState, InstanceState, &[Operation])] = &[
        (Created, Ready, &[Operation::Prepare]),
        (Ready, Running, &[Operation::Start]),
        (Stopped, Running, &[Operation::Start]),
        (Failed, Running, &[Operation::Start]),
        (Running, Warm, &[Operation::Warm]),
        (Warm, Running, &[Operation::Resume]),
        (Running, Sleeping, &[Operation::Sleep]),
        (Warm, Sleeping, &[Operation::Sleep]),
        (Sleeping, Running, &[Operation::Wake]),
        (Running, Stopped, &[Operation::Stop]),
        (Warm, Stopped, &[Operation::Stop]),
        (Sleeping, Stopped, &[Operation::Stop]),
        (Failed, Stopped, &[Operation::Stop]),
        (Running, Failed, &[Operation::VmmEnded]),
        (Warm, Failed, &[Operation::VmmEnded, Operation::Fail]),
        (Ready, Failed, &[Operation::Fail]),
        (Stopped, Failed, &[Operation::Fail]),
        (Failed, Failed, &[Operation::Fail]),
        (Sleeping, Failed, &[Operation::Fail]),
    ];

    fn in_table(from: InstanceState, to: InstanceState, by: Operation) -> bool {
        (by == Operation::Destroy && from != Destroyed && to == Destroyed)
            || TABLE.iter().any(|(f, t, ops)| *f == from && *t == to && ops.contains(&by))
    }

    #[test]
    fn the_table_is_exactly_the_contract() {
        for from in InstanceState::ALL {
            for operation in Operation::ALL {
                let expected = InstanceState::ALL.into_iter().find(|to| in_table(from, *to, operation));
                assert_eq!(from.after(operation).ok(), expected, "{from} by {operation:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_both_states() {
        for from in InstanceState::ALL {
            for operation in Operation::ALL {
                if let Err(refused) = from.after(operation) {
                    let text = refused.to_string();
                    assert!(text.contains(from.as_str()), "{text}");
                    assert!(text.contains(refused.to().as_str()), "{text}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_sequence_of_operations_leaves_the_table(
            operations in prop::collection::vec(prop::sample::select(Operation::ALL.to_vec()), 0..200)
        ) {
            let mut state = Created;
            for operation in operations {
                match state.after(operation) {
                    Ok(next) => {
                        prop_assert!(in_table(state, next, operation));
                        state = next;
                    }
                    Err(refused) => prop_assert_eq!(refused.from, state),
                }
            }
        }
    }

    #[test]
    fn where_a_goal_holds_the_state_is_the_goal_or_has_nothing_to_stop() {
        for state in InstanceState::ALL {
            for operation in Operation::ALL {
                if state.already(operation) {
                    assert!(state.after(operation).is_err(), "{state} by {operation:?} is both");
                }
            }
        }
    }

    #[test]
    fn names_are_the_same_in_text_and_on_the_wire() {
        for state in InstanceState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
