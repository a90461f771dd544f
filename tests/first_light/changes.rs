//! `deploy` again: nothing where nothing changed, in place what can be, and what cannot is listed.

use mvm_harness::{Echo, Lab, Value};

/// What must not change about machines that nobody restarts.
fn lives(lab: &Lab) -> Vec<[Value; 4]> {
    let list = lab.json(&["instance", "list"]);
    let life = |instance: &Value| {
        let parts = ["tenant", "pool", "id"].map(|key| instance[key].as_str().unwrap());
        let info = lab.info(&parts.join("/"));
        ["id", "pid", "generation", "ip"].map(|key| info[key].clone())
    };
    list.as_array().unwrap().iter().map(life).collect()
}

fn workers_of(base: &Echo<'_>, workers: u32) -> String {
    Echo { workers, ..*base }.manifest()
}

/// The part of the manifest that is replaced has to be there.
#[track_caller]
fn with(manifest: &str, old: &str, new: &str) -> String {
    assert!(manifest.contains(old), "{old}");
    manifest.replace(old, new)
}

#[test]
fn deployed_again_what_can_be_is_changed_in_place_and_the_rest_is_listed() {
    let lab = Lab::new();
    let base = Echo::default();
    let manifest = base.manifest();
    lab.deploy(&manifest);
    let first = lives(&lab);
    let counted = lab.get(8080, "/hello").json();
    assert_eq!(counted["count"], 1);

    // The same again.
    let again = lab.deploy(&manifest);
    assert!(again.contains("nothing to do: alice is as"), "{again}");
    assert_eq!(again.lines().count(), 1, "{again}");
    assert_eq!(lives(&lab), first);
    assert_eq!(lab.events("alice", "InstanceStarted").len(), 2);

    more_and_fewer(&lab, &base, &first);
    // Everything else goes on as it was: nobody was restarted.
    assert_eq!(lab.get(8080, "/hello").json()["hello"], "alice");
    other_resources(&lab);
}

/// More are made; fewer are listed, and none of them is touched.
fn more_and_fewer(lab: &Lab, base: &Echo<'_>, first: &[[Value; 4]]) {
    let more = lab.deploy(&workers_of(base, 2));
    assert!(more.contains("alice/workers: 1 instance created"), "{more}");
    let two = lives(lab);
    assert_eq!(two.len(), 3);
    assert!(first.iter().all(|life| two.contains(life)), "{first:?} {two:?}");
    assert!(lab.instances("alice/workers").iter().all(|worker| lab.state(worker) == "running"));

    for _ in 0..2 {
        let fewer = lab.deploy(&base.manifest());
        assert!(fewer.contains("differs: alice/workers: has 2 instances, 1 wanted"), "{fewer}");
        assert_eq!(lives(lab), two);
    }
    // A removed pool is listed too, and stays.
    let whole = base.manifest();
    let start = whole.find("[[pools]]\nid = \"workers\"").unwrap();
    let end = whole.find("[[publish]]").unwrap();
    let routes = whole.find("[[routes]]").unwrap();
    let without = [&whole[..start], &whole[end..routes]].concat();
    for _ in 0..2 {
        let removed = lab.deploy(&without);
        assert!(removed.contains("differs: alice/workers: not in the manifest any more"), "{removed}");
        assert_eq!(lives(lab), two);
    }
    // Brought back, it is the pool it was.
    let back = lab.deploy(&workers_of(base, 2));
    assert!(!back.contains("created") && !back.contains("differs"), "{back}");
    assert_eq!(lives(lab), two);
}

/// Memory is taken at the next cold start, and differs until then, however often one deploys.
fn other_resources(lab: &Lab) {
    let base = Echo { workers: 2, ..Echo::default() };
    let larger = with(&base.manifest(), "mem_mib = 256", "mem_mib = 320");
    let workers = lab.instances("alice/workers");
    let before = lives(lab);
    let first = lab.deploy(&larger);
    assert!(first.contains("alice/workers: resources changed"), "{first}");
    let differs = |told: &str, worker: &str| {
        told.contains(&format!("differs: {worker}: takes the new resources at its next cold start"))
    };
    lab.mvm(&["instance", "sleep", &workers[1]]);
    let second = lab.deploy(&larger);
    assert!(second.contains("nothing to do: what differs"), "{second}");
    for told in [&first, &second] {
        assert!(workers.iter().all(|worker| differs(told, worker)), "{told}");
    }
    lab.mvm(&["instance", "wake", &workers[1]]);
    assert_eq!(lab.info(&workers[1])["mem_mib"], 256, "a wake is no cold start");
    assert_eq!(lives(lab)[0], before[0]);

    lab.mvm(&["instance", "stop", &workers[0]]);
    assert!(!differs(&lab.deploy(&larger), &workers[0]), "one that is down takes it at its next start");
    lab.mvm(&["instance", "start", &workers[0]]);
    assert_eq!(lab.info(&workers[0])["mem_mib"], 320);
    let told = lab.exec(&workers[0], &["cat", "/etc/mvm-config/config.json"]);
    assert!(told.contains("\"mem_mib\": 320"), "{told}");
    let third = lab.deploy(&larger);
    assert!(!differs(&third, &workers[0]) && differs(&third, &workers[1]), "{third}");
    lab.mvm(&["instance", "stop", &workers[1]]);
    lab.mvm(&["instance", "start", &workers[1]]);
    let last = lab.deploy(&larger);
    assert!(last.contains("nothing to do: alice is as"), "{last}");
}

#[test]
fn changed_ports_routes_and_secrets_reach_machines_that_run() {
    let lab = Lab::new();
    lab.file("token", "one");
    let more = "[secrets]\ntoken = { file = \"./token\" }\n";
    let manifest = Echo { more, ..Echo::default() }.manifest();
    lab.deploy(&manifest);
    let before = lives(&lab);
    let listening = || lab.host().run("ss", &["-Hltn"]);
    assert_eq!(lab.get(8080, "/hello").status, 200);

    // Routes: the running gateway reads them again.
    let narrow = with(&manifest, "path_prefix = \"/\"", "path_prefix = \"/only\"");
    let told = lab.deploy(&narrow);
    assert!(told.contains("alice: routes changed"), "{told}");
    lab.wait_for("the gateway has the new routes", || lab.get(8080, "/hello").status == 404);
    assert_eq!(lab.get(8080, "/only").status, 200);

    // Another port, then another address of the same one, then another port of the machines behind it.
    let moved = with(&narrow, "port = 8080\npool", "port = 8081\npool");
    let told = lab.deploy(&moved);
    assert!(told.contains("alice: published ports changed"), "{told}");
    assert_eq!(lab.get(8081, "/only").status, 200);
    assert!(!listening().contains(":8080 "), "{}", listening());
    let everywhere = with(&moved, "port = 8081\npool", "bind = \"0.0.0.0\"\nport = 8081\npool");
    lab.deploy(&everywhere);
    assert_eq!(lab.get(8081, "/only").status, 200);
    assert!(
        listening().contains("0.0.0.0:8081 ") && !listening().contains("127.0.0.1:8081 "),
        "{}",
        listening()
    );
    let direct = with(&everywhere, "pool = \"gateways\"", "pool = \"workers\"");
    for _ in 0..5 {
        lab.deploy(&direct);
        assert_eq!(lab.get(8081, "/state").json()["hello"], Value::Null, "past the gateway");
        lab.deploy(&everywhere);
        assert_eq!(lab.get(8081, "/state").status, 404, "by the gateway");
    }

    // A secret's new value is told as a change once, and is in the machines; nobody was restarted for any of it.
    lab.file("token", "two");
    let told = lab.deploy(&everywhere);
    assert!(told.contains("alice: secrets changed") && !told.contains("two"), "{told}");
    assert_eq!(lab.exec("alice/workers", &["cat", "/run/secrets/default/TOKEN"]), "two");
    assert!(lab.deploy(&everywhere).contains("nothing to do"));
    assert_eq!(lives(&lab), before);
}
