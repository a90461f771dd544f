//! What brings a pool to its counts: pure decisions.

use std::cmp::Reverse;

use mvm_model::{DesiredCounts, InstanceId, InstanceState};
use mvm_protocol::api::ScaleAct;

/// What is decided by about an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: InstanceId,
    /// Its state.
    pub state: InstanceState,
    /// Holds that keep it awake.
    pub holds: usize,
}

/// Those that are too many, in the order in which they go: what never ran, what is stopped or failed, what sleeps, what
/// runs and has the fewest Holds; the highest id first.
pub fn surplus(have: &[Candidate], wanted: u32) -> Vec<InstanceId> {
    let too_many = have.len().saturating_sub(wanted as usize);
    let mut order = have.to_vec();
    order.sort_by_key(|candidate| (loss(candidate.state), candidate.holds, Reverse(candidate.id)));
    order.truncate(too_many);
    order.into_iter().map(|candidate| candidate.id).collect()
}

/// How much goes with an instance in this state.
fn loss(state: InstanceState) -> u8 {
    match state {
        InstanceState::Destroyed | InstanceState::Created | InstanceState::Ready => 0,
        InstanceState::Stopped | InstanceState::Failed => 1,
        InstanceState::Sleeping => 2,
        InstanceState::Warm => 3,
        InstanceState::Running => 4,
    }
}

/// What is to be done to instances, as many as are wanted, so that enough run and the rest sleeps. What runs goes on
/// running as far as it may; what is nearest to running is brought to it first; the lowest id first.
pub fn acts(have: &[Candidate], desired: &DesiredCounts) -> Vec<(InstanceId, ScaleAct)> {
    let mut order = have.to_vec();
    order.sort_by_key(|candidate| (way_to_running(candidate.state), Reverse(candidate.holds), candidate.id));
    let running = order.len().min(desired.running as usize);
    let mut warm_left = desired.warm;
    let mut acts = Vec::new();
    for (place, candidate) in order.iter().enumerate() {
        let act = match candidate.state {
            InstanceState::Running if place < running => None,
            _ if place < running => Some(ScaleAct::Run),
            InstanceState::Sleeping => None,
            InstanceState::Warm if warm_left > 0 => {
                warm_left -= 1;
                None
            }
            InstanceState::Running | InstanceState::Warm => Some(ScaleAct::Sleep),
            _ => Some(ScaleAct::Prepare),
        };
        acts.extend(act.map(|act| (candidate.id, act)));
    }
    acts.sort_by_key(|(id, act)| (turn(*act), *id));
    acts
}

/// How far an instance in this state is from running. One that a person stopped is the last before one that failed.
fn way_to_running(state: InstanceState) -> u8 {
    match state {
        InstanceState::Running => 0,
        InstanceState::Warm => 1,
        InstanceState::Sleeping => 2,
        InstanceState::Ready | InstanceState::Created => 3,
        InstanceState::Stopped => 4,
        InstanceState::Failed | InstanceState::Destroyed => 5,
    }
}

/// Acts come in this order: what frees memory and quota first, what takes it for good last.
pub fn turn(act: ScaleAct) -> u8 {
    match act {
        ScaleAct::Destroy => 0,
        ScaleAct::Sleep => 1,
        ScaleAct::Prepare => 2,
        ScaleAct::Run => 3,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const STATES: [InstanceState; 6] = [
        InstanceState::Ready,
        InstanceState::Running,
        InstanceState::Warm,
        InstanceState::Sleeping,
        InstanceState::Stopped,
        InstanceState::Failed,
    ];

    fn pool() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0..STATES.len(), 0usize..3);
        prop::collection::vec(one, 0..12).prop_map(|all| {
            let candidate = |(number, (state, holds)): (usize, (usize, usize))| Candidate {
                id: InstanceId::new(u32::try_from(number).unwrap()),
                state: STATES[state],
                holds: if STATES[state] == InstanceState::Running { holds } else { 0 },
            };
            all.into_iter().enumerate().map(candidate).collect()
        })
    }

    fn desired() -> impl Strategy<Value = DesiredCounts> {
        (0u32..8, 0u32..3, 0u32..8).prop_map(|(running, warm, sleeping)| DesiredCounts {
            running,
            warm,
            sleeping,
        })
    }

    /// The pool when what is too many has gone, what is missing was created, and every act was done.
    fn done(have: &[Candidate], desired: &DesiredCounts) -> Vec<Candidate> {
        let gone = surplus(have, desired.total());
        let mut left: Vec<Candidate> = have.iter().filter(|c| !gone.contains(&c.id)).copied().collect();
        for number in left.len()..desired.total() as usize {
            let id = InstanceId::new(1000 + u32::try_from(number).unwrap());
            left.push(Candidate { id, state: InstanceState::Ready, holds: 0 });
        }
        for (id, act) in acts(&left, desired) {
            let one = left.iter_mut().find(|candidate| candidate.id == id).unwrap();
            one.state = match act {
                ScaleAct::Run => InstanceState::Running,
                _ => InstanceState::Sleeping,
            };
        }
        left
    }

    fn count(pool: &[Candidate], state: InstanceState) -> usize {
        pool.iter().filter(|candidate| candidate.state == state).count()
    }

    proptest! {
        #[test]
        fn afterwards_the_counts_hold_and_nothing_is_left_to_do(have in pool(), desired in desired()) {
            let after = done(&have, &desired);
            prop_assert_eq!(after.len(), desired.total() as usize);
            prop_assert_eq!(count(&after, InstanceState::Running), desired.running as usize);
            prop_assert!(count(&after, InstanceState::Warm) <= desired.warm as usize);
            let rest = count(&after, InstanceState::Warm) + count(&after, InstanceState::Sleeping);
            prop_assert_eq!(rest, (desired.warm + desired.sleeping) as usize);
            prop_assert_eq!(surplus(&after, desired.total()), []);
            prop_assert_eq!(acts(&after, &desired), []);
        }

        #[test]
        fn only_what_is_too_many_goes_and_what_is_kept_is_worth_no_less(have in pool(), wanted in 0u32..12) {
            let gone = surplus(&have, wanted);
            prop_assert_eq!(gone.len(), have.len().saturating_sub(wanted as usize));
            prop_assert_eq!(gone.iter().collect::<BTreeSet<_>>().len(), gone.len());
            let (goes, stays): (Vec<&Candidate>, _) = have.iter().partition(|c| gone.contains(&c.id));
            for (lost, kept) in goes.iter().flat_map(|lost| stays.iter().map(move |kept| (lost, kept))) {
                let worth = |c: &Candidate| (loss(c.state), c.holds, Reverse(c.id));
                prop_assert!(worth(lost) < worth(kept), "{:?} goes before {:?}", lost, kept);
            }
        }

        #[test]
        fn nothing_is_woken_while_another_is_put_to_sleep(have in pool(), desired in desired()) {
            let acts = acts(&have, &desired);
            let sleeps = |id: &InstanceId| {
                have.iter().any(|c| c.id == *id && c.state == InstanceState::Running)
            };
            let put_to_sleep = acts.iter().any(|(id, act)| *act == ScaleAct::Sleep && sleeps(id));
            let started = acts.iter().any(|(_, act)| *act == ScaleAct::Run);
            prop_assert!(!(put_to_sleep && started), "{:?}", acts);
            prop_assert!(acts.is_sorted_by_key(|(id, act)| (turn(*act), *id)));
        }
    }

    fn one(id: u32, state: InstanceState, holds: usize) -> Candidate {
        Candidate { id: InstanceId::new(id), state, holds }
    }

    #[test]
    fn what_goes_is_what_would_be_missed_least() {
        let have = [
            one(1, InstanceState::Running, 2),
            one(2, InstanceState::Running, 0),
            one(3, InstanceState::Running, 0),
            one(4, InstanceState::Sleeping, 0),
            one(5, InstanceState::Sleeping, 0),
            one(6, InstanceState::Failed, 0),
            one(7, InstanceState::Stopped, 0),
            one(8, InstanceState::Ready, 0),
        ];
        let order = [8, 7, 6, 5, 4, 3, 2, 1].map(InstanceId::new);
        for wanted in 0..=8u32 {
            assert_eq!(surplus(&have, wanted), order[..8 - wanted as usize]);
        }
    }

    #[test]
    fn what_is_asleep_is_woken_before_anything_is_started() {
        let have = [
            one(1, InstanceState::Failed, 0),
            one(2, InstanceState::Stopped, 0),
            one(3, InstanceState::Sleeping, 0),
            one(4, InstanceState::Running, 0),
        ];
        let desired = DesiredCounts { running: 2, warm: 0, sleeping: 2 };
        let acts = acts(&have, &desired);
        let expected = [(1, ScaleAct::Prepare), (2, ScaleAct::Prepare), (3, ScaleAct::Run)];
        assert_eq!(acts, expected.map(|(id, act)| (InstanceId::new(id), act)));
    }
}
