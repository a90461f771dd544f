//! Bounds on time that are promised. Alone on the machine, best of five.

use std::time::{Duration, Instant};

use mvm_harness::{Lab, echo};

#[test]
fn a_message_to_a_sleeping_worker_is_answered_within_a_second_and_a_half() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    let took = (0..5).map(|_| {
        lab.mvm(&["instance", "sleep", "alice/workers"]);
        let begun = Instant::now();
        assert_eq!(lab.get(8080, "/hello").status, 200);
        begun.elapsed()
    });
    let best = took.min().unwrap_or(Duration::MAX);
    assert!(best < Duration::from_millis(1500), "the best of five took {best:?}");
}
