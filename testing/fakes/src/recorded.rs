//! What a fake was asked, and what is to go wrong next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Something that goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered, but only after so long.
    Slow(Duration),
    /// 429, with the seconds after which to try again.
    TooManyRequests {
        /// These seconds.
        retry_after: u64,
    },
    /// 500.
    ServerError,
    /// 529 of the model API, 502 of the Bot API.
    Overloaded,
    /// The connection ends before the call is recorded or does anything.
    DropBefore,
    /// The call is recorded and does what it does, and the connection ends without an answer.
    DropAfter,
}

/// Calls in their order, and the faults that are ordered by method.
#[derive(Debug)]
pub(crate) struct Recorded<C> {
    calls: Mutex<Vec<C>>,
    grown: Condvar,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
}

impl<C: Clone> Recorded<C> {
    pub(crate) fn new() -> Recorded<C> {
        Recorded { calls: Mutex::default(), grown: Condvar::new(), faults: Mutex::default() }
    }

    pub(crate) fn add(&self, call: C) {
        lock(&self.calls).push(call);
        self.grown.notify_all();
    }

    pub(crate) fn all(&self) -> Vec<C> {
        lock(&self.calls).clone()
    }

    /// Blocks until the calls are as wanted.
    ///
    /// # Errors
    /// The calls that came in this time, which are not.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&[C]) -> bool, limit: Duration) -> Result<Vec<C>, Vec<C>> {
        let deadline = Instant::now() + limit;
        let mut calls = lock(&self.calls);
        while !wanted(&calls) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(calls.clone());
            }
            let waited = self.grown.wait_timeout(calls, left);
            calls = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(calls.clone())
    }

    pub(crate) fn order(&self, method: &str, fault: Fault, times: usize) {
        let mut faults = lock(&self.faults);
        faults.entry(method.to_owned()).or_default().extend(std::iter::repeat_n(fault, times));
    }

    pub(crate) fn next_fault(&self, method: &str) -> Option<Fault> {
        lock(&self.faults).get_mut(method)?.pop_front()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
