//! VMMs that are started ahead: used where they fit, replaced where they died, and never waited for.

use std::collections::BTreeSet;

use mvm_harness::{Lab, assert_tidy, freeze, kill};

use crate::workers::{POOL, Workers, count, own_image, spare, waiting_spares};

fn pid(lab: &Lab) -> u32 {
    u32::try_from(lab.info(POOL)["pid"].as_u64().unwrap()).unwrap()
}

/// Sleeps and wakes; whether it woke in a VMM that had been started ahead.
fn woke_in_spare(lab: &Lab) -> bool {
    lab.mvm(&["instance", "sleep", POOL]);
    lab.mvm(&["instance", "wake", POOL]);
    let start = lab.info(POOL)["last_start"].clone();
    assert_eq!(start["how"], "wake", "{start}");
    start["spare"] == true
}

#[test]
fn a_spare_is_used_by_wake_and_clone_replaced_when_it_died_and_never_waited_for() {
    let lab = Workers { spares: 1, ..Workers::default() }.in_lab();
    let (mut expected, _) = count(&lab);
    // The machine itself made the demand.
    let ahead = spare(&lab);
    assert!(woke_in_spare(&lab));
    assert_eq!(pid(&lab), ahead);
    expected += 1;
    assert_eq!(count(&lab).0, expected, "with its memory");
    assert_tidy(&lab);

    let ahead = spare(&lab);
    assert_ne!(ahead, pid(&lab), "another waits");
    kill(ahead);
    lab.wait_for("it is replaced", || waiting_spares(&lab).iter().any(|pid| *pid != ahead));

    // At the moment of a wake: it is not seen to be dead, or it dies in use.
    lab.mvm(&["instance", "sleep", POOL]);
    for spare in lab.spares() {
        kill(spare);
    }
    lab.mvm(&["instance", "wake", POOL]);
    expected += 1;
    assert_eq!(count(&lab).0, expected, "with its memory, though no spare was there");
    assert_eq!(lab.info(POOL)["last_start"]["how"], "wake");
    assert_eq!(lab.info(POOL)["last_start"]["spare"], false);

    // One that lives and does not answer is not waited for as long as a VMM is that somebody needs (20 s).
    let frozen = spare(&lab);
    freeze(frozen);
    assert!(!woke_in_spare(&lab));
    assert!(lab.info(POOL)["last_start"]["total_ms"].as_f64().unwrap() < 10_000.0, "{}", lab.info(POOL));
    expected += 1;
    assert_eq!(count(&lab).0, expected);
    lab.wait_for("it is replaced", || !lab.vmms().contains(&frozen) && !waiting_spares(&lab).is_empty());

    lab.mvm(&["instance", "stop", POOL]);
    let ahead = spare(&lab);
    lab.mvm(&["instance", "start", POOL]);
    let start = lab.info(POOL)["last_start"].clone();
    assert_eq!((&start["how"], &start["spare"]), (&"clone".into(), &true.into()), "{start}");
    assert_eq!(pid(&lab), ahead);
    assert_tidy(&lab);
    lab.mvm(&["tenant", "destroy", "alice", "--force"]);
    lab.wait_for("spares go with their tenant", || lab.vmms().is_empty());
}

#[test]
fn a_spare_of_another_revision_is_not_used_and_goes() {
    let lab = Lab::new();
    let image = own_image(&lab);
    Workers { image: image.clone(), spares: 1, ..Workers::default() }.deploy(&lab);
    let old = spare(&lab);
    lab.file("worker/worker.py", &(std::fs::read_to_string(image.join("worker.py")).unwrap() + "# new\n"));
    lab.mvm(&["instance", "stop", POOL]);
    lab.mvm(&["pool", "build", POOL]);
    lab.mvm(&["instance", "start", POOL]);
    let start = lab.info(POOL)["last_start"].clone();
    assert_eq!((&start["how"], &start["spare"]), (&"clone".into(), &false.into()), "{start}");
    lab.wait_for("the old one goes, a new one comes", || {
        let spares = waiting_spares(&lab);
        !lab.vmms().contains(&old) && spares.len() == 1 && !spares.contains(&old)
    });
    assert!(woke_in_spare(&lab));
}

#[test]
fn spares_go_where_the_pools_new_revision_gets_no_base() {
    let lab = Lab::new();
    let image = own_image(&lab);
    Workers { image, spares: 1, ..Workers::default() }.deploy(&lab);
    let old = spare(&lab);
    lab.file("worker/seeded.py", "raise SystemExit(1)\n");
    let said = lab.mvm_fails(&["pool", "build", POOL]);
    assert!(said.contains("its prewarm failed"), "{said}");
    lab.wait_for("no machine would use it any more", || !lab.vmms().contains(&old));
    assert!(lab.spares().is_empty());
}

#[test]
fn a_pool_that_wants_no_spares_has_none_and_they_end_with_the_agent() {
    let mut lab = Workers { spares: 2, ..Workers::default() }.in_lab();
    let other = "[[pools]]\nid = \"others\"\nvcpus = 1\nmem_mib = 192\ndesired_running = 1\nspares = 0\n";
    lab.mvm(&["pool", "scale", POOL, "--running", "3"]);
    lab.wait_for("as many as were in demand, and no more than wanted", || waiting_spares(&lab).len() == 2);
    lab.deploy(&Workers { running: 3, spares: 0, more: other, ..Workers::default() }.manifest());
    let one = lab.instances(POOL).remove(0);
    // The next machine that begins has the pool looked at.
    lab.mvm(&["instance", "sleep", &one]);
    lab.mvm(&["instance", "wake", &one]);
    lab.wait_for("they go", || lab.spares().is_empty());
    lab.mvm(&["instance", "sleep", "alice/others"]);
    lab.mvm(&["instance", "wake", "alice/others"]);
    lab.mvm(&["instance", "sleep", &one]);
    lab.mvm(&["instance", "wake", &one]);
    assert_eq!(lab.info(&one)["last_start"]["spare"], false);
    assert_tidy(&lab);
    assert!(lab.spares().is_empty());

    lab.deploy(&Workers { running: 3, spares: 1, more: other, ..Workers::default() }.manifest());
    lab.mvm(&["instance", "sleep", &one]);
    lab.mvm(&["instance", "wake", &one]);
    spare(&lab);
    lab.kill_agent();
    lab.start_agent();
    lab.settle();
    lab.wait_for("nobody would use it any more", || lab.spares().is_empty());
    assert_tidy(&lab);
}

#[test]
fn pools_that_are_deployed_together_have_a_base_each() {
    let lab = Lab::new();
    let pools: String = ["one", "two", "three"]
        .map(|id| {
            format!("[[pools]]\nid = \"{id}\"\nvcpus = 1\nmem_mib = 128\ndesired_running = 1\nspares = 0\n")
        })
        .concat();
    lab.deploy(&format!("[tenant]\nid = \"alice\"\n{pools}"));
    let bases: BTreeSet<String> = ["one", "two", "three"]
        .map(|pool| {
            let info = lab.info(&format!("alice/{pool}"));
            assert_eq!(info["last_start"]["how"], "clone", "{info}");
            info["base"].as_str().unwrap().to_owned()
        })
        .into();
    assert_eq!(bases.len(), 3);
}
