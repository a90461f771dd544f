//! A worker sleeps, a message comes, it wakes: with its memory, its disk, its address, and the right time.

use mvm_harness::{Lab, echo, now};

const WORKER: &str = "alice/workers";

#[test]
fn a_sleeping_worker_is_woken_by_a_message_as_it_was() {
    let lab = Lab::new();
    lab.deploy(&echo("alice"));
    assert_eq!(lab.state("alice/gateways"), "running");
    assert_eq!(lab.state(WORKER), "running");
    assert_eq!(lab.get(8080, "/hello").json()["hello"], "alice");
    let address = lab.info(WORKER)["ip"].clone();
    let gateway = lab.info("alice/gateways")["pid"].clone();
    for cycle in 0..20u64 {
        lab.mvm(&["instance", "sleep", WORKER]);
        let asleep = lab.info(WORKER);
        assert_eq!(asleep["state"], "sleeping");
        assert_eq!(
            lab.vmms(),
            [u32::try_from(gateway.as_u64().unwrap()).unwrap()],
            "the worker's VMM has ended"
        );

        assert_eq!(lab.get(8080, "/hello").json()["count"], cycle + 2, "the counter in memory goes on");
        let state = lab.get(8080, "/state").json();
        assert_eq!(state["lines"], state["count"], "the file has a line for every message");
        assert!((state["time"].as_f64().unwrap() - now()).abs() < 1.0, "the wall clock is right: {state}");
        let awake = lab.info(WORKER);
        assert_eq!((&awake["state"], &awake["ip"]), (&"running".into(), &address));
        assert_eq!(awake["generation"], cycle + 2);
        assert!(awake["last_start"]["how"] == "wake", "{awake}");
        let snapshot = lab.data_dir().join("instances").join(awake["id"].as_str().unwrap()).join("snapshot");
        assert!(!snapshot.exists(), "a consumed snapshot is removed, with all that it holds");
    }
    assert_eq!(lab.events("alice", "InstanceWoken").len(), 20);
}
