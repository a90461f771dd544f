//! What one machine was given is in no other that begins from the same base, nor in the base.

use std::path::PathBuf;

use mvm_harness::{Lab, NOWHERE, forms, fresh, has_in_memory, holders};

use crate::workers::{POOL, Workers, ask, bases, folder_of, spare};

fn pid(lab: &Lab, instance: &str) -> u32 {
    u32::try_from(lab.info(instance)["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn what_one_clone_was_given_is_not_in_the_base_or_in_another_machine() {
    let (secret, told) = (fresh(), fresh());
    let lab = Lab::new();
    lab.file("secrets/first", &secret);
    let more = "[secrets]\nfirst = { file = \"./secrets/first\" }\n";
    let keys = "snapshot_compression = \"none\"\n\
        secret_scopes = [{ integration = \"default\", keys = [\"FIRST\"] }]";
    Workers { spares: 1, keys, more, ..Workers::default() }.deploy(&lab);
    let holder = lab.instances(POOL).remove(0);
    // One more that only this instance has: it is put together in its memory, so that no request carries it.
    let (head, tail) = told.rsplit_once('-').unwrap();
    ask(&lab, &holder, &format!("memory.update(told='-'.join(['{head}', '{tail}'])) or 1"));
    let texts = [forms(&secret), vec![told.clone()]].concat();
    let (secret, told) = (std::slice::from_ref(&secret), std::slice::from_ref(&told));
    for given in [secret, told] {
        assert!(has_in_memory(&lab, pid(&lab, &holder), given), "the search finds what is there");
    }

    lab.mvm(&["instance", "sleep", &holder]);
    let own = folder_of(&lab, &holder);
    let found = holders(&lab, told, &[own.join("snapshot")]);
    assert_eq!(found, [own.join("snapshot/memory")], "asleep it is in its own snapshot");
    let base = bases(&lab);
    assert_eq!(base.len(), 1);
    lab.mvm(&["instance", "wake", &holder]);
    let spare = spare(&lab);
    assert!(!has_in_memory(&lab, spare, &texts), "a spare");
    lab.deploy(
        &Workers {
            running: 2,
            spares: 1,
            keys: &keys.replace("[{ integration = \"default\", keys = [\"FIRST\"] }]", "[]"),
            more,
            ..Workers::default()
        }
        .manifest(),
    );
    let other = lab.instances(POOL).into_iter().find(|one| *one != holder).unwrap();
    assert_eq!(lab.info(&other)["last_start"]["how"], "clone");
    assert!(!has_in_memory(&lab, pid(&lab, &other), &texts), "another clone");
    assert!(has_in_memory(&lab, pid(&lab, &holder), told), "which the one has still");
    lab.mvm(&["instance", "sleep", &other]);
    let places: Vec<PathBuf> = vec![lab.data_dir(), lab.run_dir(), lab.log()];
    assert_eq!(holders(&lab, &texts, &places), NOWHERE, "files");
    assert_eq!(holders(&lab, &texts, &base), NOWHERE, "the base");
}
