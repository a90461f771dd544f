//! Destroying: what is lost is listed, the name has to be typed, and what was begun is finished.

use mvm_harness::{Echo, Lab, Terminal, assert_tidy, die_in, json, kill_at};

use crate::shell::{MANIFEST, POOL};

/// Types a name at the question of a command; what the question said, and the exit code.
pub fn answer(lab: &Lab, command: &[&str], losses: &[&str], name: &str) -> i32 {
    let mut terminal = Terminal::open(lab, command, (160, 40));
    for loss in losses {
        terminal.wait_for(loss);
    }
    terminal.wait_for("to go on:");
    terminal.type_in(&format!("{name}\r"));
    terminal.end()
}

#[test]
fn what_is_lost_is_listed_and_the_name_is_typed() {
    let lab = Lab::new();
    lab.file("key", "hunter2");
    let ways = "[[publish]]\nport = 8080\npool = \"workers\"\ntarget_port = 80\n[[routes]]\nname = \"all\"\n\
        match_rule = { port = 80 }\ntarget = { pool_id = \"workers\", instance_selector = \"any\", target_port = 80 }\n\
        [secrets]\napi_key = { file = \"./key\" }\n";
    lab.deploy(&format!("{MANIFEST}{ways}"));
    let instance = lab.instances(POOL)[0].clone();
    let id = instance.rsplit('/').next().unwrap();
    lab.mvm(&["instance", "sleep", POOL]);

    let machine = format!("{instance} (sleeping): data disk ");
    let of_pool = [
        "This destroys alice/workers:",
        &machine,
        "snapshot ",
        "published ports: 127.0.0.1:8080",
        "routes: all",
    ];
    let of_tenant =
        [&["This destroys alice:", "pools: workers"], &of_pool[1..], &["secrets: default/API_KEY"]].concat();
    let of_instance = ["This destroys ", &machine, "snapshot "];
    for (command, losses, name) in [
        (["instance", "destroy", POOL], of_instance.as_slice(), "alice"),
        (["pool", "destroy", POOL], of_pool.as_slice(), "workers"),
        (["tenant", "destroy", "alice"], of_tenant.as_slice(), POOL),
    ] {
        assert_eq!(answer(&lab, &command, losses, name), 1, "{command:?}");
        assert_eq!(lab.state(POOL), "sleeping");
    }
    assert_eq!(answer(&lab, &["instance", "destroy", POOL], &of_instance, id), 0);
    assert_eq!(lab.instances(POOL).len(), 0);
    assert_eq!(answer(&lab, &["pool", "destroy", POOL], &["0 instances"], POOL), 0);
    let info = lab.json(&["tenant", "info", "alice"]);
    assert_eq!(info["pool_ids"].as_array().unwrap().len(), 0);
    assert_eq!(answer(&lab, &["tenant", "destroy", "alice"], &["secrets: default/API_KEY"], "alice"), 0);
    assert_tidy(&lab);
}

#[test]
fn a_pool_goes_with_what_leads_to_it_and_its_gateways_are_told() {
    let mut lab = Lab::new();
    let manifest = Echo::default().manifest();
    lab.deploy(&manifest);
    assert_eq!(lab.get(8080, "/hello").status, 200);
    let gone = lab.json(&["pool", "destroy", "alice/workers", "--force"]);
    assert_eq!(gone["destroyed"].as_array().unwrap().len(), 2, "{gone}");
    lab.wait_for("the gateway has no route any more", || lab.try_get(8080, "/hello").is_none());
    assert_eq!(lab.events("alice", "PoolDestroyed").len(), 1);
    assert_eq!(lab.vmms().len(), 1, "its base and its spares are gone, too");
    assert!(lab.deploy(&lab.mvm(&["tenant", "info", "alice", "-o", "toml"])).contains("nothing to do"));
    assert_tidy(&lab);

    // Whenever the agent dies in the middle of it, the next one goes on.
    for point in ["pool-destroy:marked", "pool-destroy:machines-gone"] {
        lab.deploy(&manifest);
        kill_at(&mut lab, point, &["pool", "destroy", "alice/gateways", "--force"]);
        let pools = || lab.json(&["pool", "list", "alice"]).as_array().unwrap().len();
        lab.wait_for("the pool is gone", || pools() == 1);
        assert!(lab.try_get(8080, "/hello").is_none(), "its port is closed");
        assert_tidy(&lab);
    }
    assert!(lab.deploy(&manifest).contains("alice/gateways: created"));
}

#[test]
fn nothing_of_a_pool_that_is_being_destroyed_is_begun_by_the_next_agent() {
    let mut lab = Lab::new();
    lab.deploy(MANIFEST);
    lab.mvm(&["instance", "stop", POOL]);
    let point = "pool-destroy:marked";
    lab.restart_agent_with(&[("MVM_KILL_AT", point)]);
    let mut starting = lab.mvm_beside(&["instance", "start", POOL]);
    lab.wait_for("it starts", || lab.json(&["instance", "list"])[0]["act"] == "starting");
    die_in(&mut lab, point, &["pool", "destroy", POOL, "--force"]);
    starting.wait().unwrap();
    lab.start_agent();
    assert!(!lab.mvm(&["tenant", "info", "alice", "-o", "toml"]).contains("[[pools]]"));
    lab.wait_for("the pool is gone", || lab.json(&["pool", "list", "alice"]) == json!([]));
    assert_eq!(lab.events("alice", "InstanceStarted").len(), 1);
    assert_tidy(&lab);
}

#[test]
fn instances_that_are_destroyed_at_once_are_not_wanted_any_more() {
    let lab = Lab::new();
    // None of them may run: they are there all the same.
    lab.mvm(&["tenant", "create", "alice", "--max-vcpus", "0"]);
    lab.mvm(&["pool", "create", POOL, "--mem-mib", "192", "--data-disk-mib", "16", "--spares", "0"]);
    let refused = lab.mvm_fails(&["pool", "update", POOL, "--sleeping", "6"]);
    assert!(refused.contains("max_vcpus = 0 is too small"), "{refused}");
    let wanted = || lab.json(&["pool", "info", POOL])["spec"]["desired"]["sleeping"].clone();
    let all = lab.instances(POOL);
    assert_eq!((all.len(), wanted()), (6, json!(6)));
    let destroying = all.iter().map(|one| lab.mvm_beside(&["instance", "destroy", one, "--force"]));
    for mut one in destroying.collect::<Vec<_>>() {
        assert!(one.wait().unwrap().success());
    }
    assert_eq!((lab.instances(POOL).len(), wanted()), (0, json!(0)));
    lab.mvm(&["pool", "update", POOL, "--mem-mib", "200"]);
    assert_eq!(lab.instances(POOL).len(), 0, "none is made again");
}
