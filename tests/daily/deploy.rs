//! `deploy` in all its ways: what it would do, with restarts, watching; and the manifest of what there is.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use mvm_harness::{Echo, Lab, Value, assert_tidy, checkout, die_in, freeze, json, kill_at};

const WORKERS: &str = "alice/workers";

/// Small machines of a gateway and a worker pool, so many of each.
fn manifest(gateways: u32, workers: u32, sleeping: u32, keys: &str) -> String {
    let pool = |id: &str, role: &str, running: u32, sleeping: u32| {
        format!(
            r#"
[[pools]]
id = "{id}"
role = "{role}"
vcpus = 1
mem_mib = 192
data_disk_mib = 16
spares = 0
desired_running = {running}
desired_sleeping = {sleeping}
{keys}
"#
        )
    };
    // The gateways are not the first in the file.
    let pools = [pool("workers", "worker", workers, sleeping), pool("gateways", "gateway", gateways, 0)];
    format!("[tenant]\nid = \"alice\"\n{}", pools.concat())
}

/// Deploys a manifest with flags; what came of it.
fn deploy(lab: &Lab, manifest: &str, flags: &[&str]) -> Value {
    let path = lab.file("deployment.toml", manifest);
    lab.json(&[&["deploy", path.to_str().unwrap()], flags].concat())
}

fn lines(all: &Value) -> Vec<String> {
    let line =
        |line: &Value| format!("{}: {}", line["what"].as_str().unwrap(), line["how"].as_str().unwrap());
    all.as_array().unwrap().iter().map(line).collect()
}

/// Every file of the lab's agent but the store's own, with its size and time.
fn files(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let meta = entry.metadata().unwrap();
        let path = entry.path().display().to_string();
        if meta.is_dir() {
            files(&entry.path(), into);
        } else if !path.contains("mvm.db") {
            into.insert(format!("{path} {} {:?}", meta.len(), meta.modified().unwrap()));
        }
    }
}

fn world(lab: &Lab) -> (BTreeSet<String>, String, Value) {
    let mut all = BTreeSet::new();
    files(&lab.data_dir(), &mut all);
    let links = lab.host().run("ip", &["-brief", "link"]);
    (all, format!("{links}{}", lab.host().run("ss", &["-Hltn"])), lab.json(&["instance", "list"]))
}

#[test]
fn what_a_deployment_would_do_is_told_and_nothing_of_it_is_done() {
    let lab = Lab::new();
    // One that nobody has built before.
    lab.file("recipe/own", &lab.tag());
    lab.file(
        "recipe/image.toml",
        "[image]\nname = \"own\"\nbase = \"minimal\"\n[[files]]\nsource = \"own\"\ntarget = \"/etc/own\"\n",
    );
    let lock = std::fs::read_to_string(checkout().join("images/minimal/image.lock")).unwrap();
    lab.file("recipe/image.lock", &lock);
    lab.file("token", "hunter2");
    let of = |image: &str, more: &str| {
        let pools = manifest(0, 0, 0, "").replacen("vcpus", &format!("image = \"{image}\"\nvcpus"), 1);
        let publish = "[[publish]]\nport = 8080\npool = \"gateways\"\ntarget_port = 80\n";
        format!("{pools}{publish}[secrets]\ntoken = {{ file = \"./token\" }}\n{more}")
    };
    let own = of("./recipe", "");

    let before = world(&lab);
    let would = deploy(&lab, &own, &["--dry-run"]);
    assert_eq!((&would["dry_run"], lab.json(&["tenant", "list"])), (&json!(true), json!([])));
    assert_eq!(world(&lab), before, "no image was built either");
    let done = deploy(&lab, &own, &[]);
    assert_eq!(
        (&would["changes"], &would["changed"]),
        (&done["changes"], &done["changed"]),
        "{would} {done}"
    );
    assert!(
        lab.mvm(&["deploy", lab.file("deployment.toml", &own).to_str().unwrap(), "--dry-run"])
            .contains("nothing to do")
    );

    lab.file("token", "hunter3");
    lab.file("other", "x");
    let changed = of("minimal", "other = { file = \"./other\" }\n")
        .replace("port = 8080", "port = 8081")
        .replacen("mem_mib = 192", "mem_mib = 256", 1)
        .replacen("desired_running = 0", "desired_running = 1", 1);
    let before = (world(&lab), lab.mvm(&["tenant", "info", "alice", "-o", "toml"]));
    let path = lab.file("deployment.toml", &changed);
    let told = lab.mvm(&["deploy", path.to_str().unwrap(), "--dry-run"]);
    for line in [
        "~ alice/workers",
        "-   mem_mib = 192",
        "+   mem_mib = 256",
        "+   image = \"minimal\"",
        "+ published port 127.0.0.1:8081",
        "- published port 127.0.0.1:8080",
        "alice/workers: 1 instance created",
        "alice: secrets added: default/OTHER",
        "alice: secrets changed: default/TOKEN",
    ] {
        assert!(told.lines().any(|other| other == line), "{line} is not in\n{told}");
    }
    assert!(told.contains("changes would be made; nothing was done") && !told.contains("hunter"), "{told}");
    let would = deploy(&lab, &changed, &["--dry-run"]);
    let memory = json!({ "what": "alice/workers", "key": "mem_mib", "from": 192, "to": 256 });
    assert!(would["diff"].as_array().unwrap().contains(&memory), "{would}");
    assert_eq!((world(&lab), lab.mvm(&["tenant", "info", "alice", "-o", "toml"])), before);

    let role = changed.replace("role = \"worker\"", "role = \"builder\"");
    let path = lab.file("deployment.toml", &role);
    let refused = lab.mvm_fails(&["deploy", path.to_str().unwrap(), "--dry-run"]);
    assert!(refused.contains("pools[0].role") && refused.contains("a role does not change"), "{refused}");
}

#[test]
fn machines_that_differ_are_restarted_one_after_another_gateways_first() {
    let lab = Lab::new();
    lab.deploy(&manifest(1, 1, 1, ""));
    let larger = manifest(1, 1, 1, "").replace("mem_mib = 192", "mem_mib = 208");
    let gateway = lab.instances("alice/gateways");
    let workers = lab.instances("alice/workers");
    let states = || [&gateway[0], &workers[0], &workers[1]].map(|instance| lab.state(instance));
    let before = states();
    assert_eq!(before.iter().filter(|state| *state == "sleeping").count(), 1, "{before:?}");
    lab.exec(&gateway[0], &["sh", "-c", "echo kept > /data/kept"]);

    let listed = deploy(&lab, &larger, &[]);
    assert_eq!((&listed["changes"], listed["differs"].as_array().unwrap().len()), (&json!(2), 3), "{listed}");
    let order: Vec<String> = gateway.iter().chain(&workers).cloned().collect();
    let would = deploy(&lab, &larger, &["--dry-run", "--restart"]);
    let restarts: Vec<String> = order.iter().map(|instance| format!("{instance}: restarted")).collect();
    assert_eq!((lines(&would["changed"]), &would["differs"]), (restarts, &json!([])), "{would}");
    assert_eq!(lab.info(&gateway[0])["mem_mib"], 192);

    // One pool by command, and only that one.
    let one = lab.json(&["pool", "update", "alice/gateways", "--restart"]);
    assert_eq!((&one["changes"], &one["differs"]), (&json!(1), &json!([])), "{one}");
    assert_eq!(
        (lab.info(&gateway[0])["mem_mib"].clone(), lab.info(&workers[0])["mem_mib"].clone()),
        (json!(208), json!(192))
    );
    assert_eq!(lab.exec(&gateway[0], &["cat", "/data/kept"]), "kept\n");

    let image = larger.replace("role = \"gateway\"", "role = \"gateway\"\nimage = \"python\"");
    let path = lab.file("deployment.toml", &image);
    let output = lab.try_mvm(&["deploy", path.to_str().unwrap(), "--restart", "-o", "json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    let restarted: Vec<String> =
        lines(&done["changed"]).into_iter().filter(|line| line.contains("restarted")).collect();
    let parts = ["image", "resources", "resources"];
    assert_eq!(restarted.len(), 3, "{done}");
    for ((line, instance), parts) in restarted.iter().zip(&order).zip(parts) {
        assert!(line.starts_with(&format!("{instance}: restarted with the new {parts} (")), "{restarted:?}");
        assert!(said.contains(&format!("{instance}: restarting (")), "{said}");
    }
    assert_eq!(states(), before, "each is as it was");
    assert!(order.iter().all(|instance| lab.info(instance)["mem_mib"] == 208));
    let lives = || order.iter().map(|instance| lab.info(instance)["generation"].clone()).collect::<Vec<_>>();
    let generations = lives();
    let again = deploy(&lab, &image, &["--restart"]);
    assert_eq!((&again["changes"], &again["differs"]), (&json!(0), &json!([])), "{again}");
    assert_eq!(lives(), generations);
}

#[test]
fn a_paused_machine_is_shut_down_in_order() {
    let lab = Lab::new();
    lab.deploy(&manifest(0, 1, 0, ""));
    let write = |what: &str| {
        lab.exec(WORKERS, &["sh", "-c", &format!("echo {what} > /data/{what}")]);
        lab.mvm(&["instance", "warm", WORKERS]);
    };
    write("first");
    lab.mvm(&["instance", "stop", WORKERS]);
    let stopped = lab.events("alice", "InstanceStopped");
    assert_eq!(stopped[0]["detail"], "in order");
    lab.mvm(&["instance", "start", WORKERS]);
    write("second");
    lab.mvm(&["pool", "update", WORKERS, "--mem-mib", "208", "--restart"]);
    assert_eq!(lab.state(WORKERS), "warm");
    lab.mvm(&["instance", "resume", WORKERS]);
    assert_eq!(lab.exec(WORKERS, &["cat", "/data/first", "/data/second"]), "first\nsecond\n");
}

#[test]
fn a_machine_that_hangs_keeps_nothing_else_from_being_done() {
    let lab = Lab::new();
    lab.deploy(&manifest(0, 1, 0, ""));
    let hangs = lab.instances(WORKERS)[0].clone();
    freeze(u32::try_from(lab.info(&hangs)["pid"].as_u64().unwrap()).unwrap());

    let output = lab.try_mvm(&["instance", "create", WORKERS]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains(&format!("{hangs} goes on with what it had")),
        "{said}"
    );
    let created = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lab.state(created.trim()), "running", "it was begun, and is named");
    assert_eq!(lab.instances(WORKERS).len(), 2);

    // What cures it is not skipped.
    let restarted = lab.json(&["pool", "update", WORKERS, "--mem-mib", "208", "--restart"]);
    assert_eq!((&restarted["changes"], &restarted["differs"]), (&json!(3), &json!([])), "{restarted}");
    assert_eq!((lab.state(&hangs).as_str(), &lab.info(&hangs)["mem_mib"]), ("running", &json!(208)));
    assert_tidy(&lab);
}

#[test]
fn others_go_on_while_machines_are_restarted() {
    let lab = Lab::new();
    let patient = "runtime_policy = { drain_timeout_seconds = 60 }";
    lab.deploy(&manifest(0, 1, 0, patient));
    // Work in hand is waited for.
    let mut work = lab.mvm_beside(&["instance", "exec", WORKERS, "--", "sleep", "600"]);
    lab.wait_for("it works", || lab.info(WORKERS)["holds"] == 1);
    let mut restarting = lab.mvm_beside(&["pool", "update", WORKERS, "--mem-mib", "208", "--restart"]);
    let acts = || lab.json(&["instance", "list"])[0]["act"].clone();
    lab.wait_for("it waits for the work", || acts() == "stopping");
    lab.mvm(&["tenant", "create", "bob"]);
    assert_eq!((acts(), restarting.try_wait().unwrap()), (json!("stopping"), None));
    lab.host().run("kill", &["-INT", &work.id().to_string()]);
    work.wait().unwrap();
    assert!(restarting.wait().unwrap().success());
    assert_eq!(lab.info(WORKERS)["mem_mib"], 208);
}

#[test]
fn a_restart_that_the_next_agent_could_not_finish_can_be_given_up() {
    let mut lab = Lab::new();
    let manifest = manifest(0, 1, 0, "").replace("id = \"alice\"", "id = \"alice\"\nquotas.max_running = 1");
    let publish = "[[publish]]\nport = 8080\npool = \"workers\"\ntarget_port = 80\n";
    lab.deploy(&format!("{manifest}{publish}"));
    let point = "stop:begun";
    lab.restart_agent_with(&[("MVM_KILL_AT", point)]);
    lab.settle();
    // One that is to begin, as soon as nothing else runs.
    let refused = lab.mvm_fails(&["pool", "update", "alice/gateways", "--sleeping", "1"]);
    assert!(refused.contains("max_running = 1 is too small"), "{refused}");
    die_in(&mut lab, point, &["pool", "update", WORKERS, "--mem-mib", "208", "--restart"]);
    lab.start_agent();
    lab.settle();
    assert_eq!((lab.state("alice/gateways"), lab.state(WORKERS)), ("sleeping".into(), "stopped".into()));

    assert!(lab.info(WORKERS)["reason"].as_str().unwrap().contains("max_running"));
    let stopped = lab.json(&["instance", "stop", WORKERS]);
    assert_eq!((&stopped["changed"], &lab.info(WORKERS)["reason"]), (&json!(true), &json!(null)));
    assert!(lab.try_get(8080, "/").is_none());
    assert_eq!(lab.state(WORKERS), "stopped", "no message starts it");
    assert_eq!(lab.json(&["instance", "stop", WORKERS])["changed"], json!(false));
}

#[test]
fn messages_wait_for_a_restart_and_the_next_agent_finishes_one() {
    let mut lab = Lab::new();
    let of =
        |worker: u32| Echo::default().manifest().replace("mem_mib = 256", &format!("mem_mib = {worker}"));
    lab.deploy(&of(256));
    let path = lab.file("deployment.toml", &of(272));
    let mut restarting = lab.mvm_beside(&["deploy", path.to_str().unwrap(), "--restart"]);
    while restarting.try_wait().unwrap().is_none() {
        let answer = lab.get(8080, "/hello");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert!(restarting.wait().unwrap().success());
    assert_eq!(lab.info("alice/workers")["mem_mib"], 272);

    for (memory, point) in [(256, "stop:begun"), (272, "stop:ended"), (256, "start:begun")] {
        lab.file("deployment.toml", &of(memory));
        kill_at(&mut lab, point, &["deploy", path.to_str().unwrap(), "--restart"]);
        lab.settle();
        let info = lab.info("alice/workers");
        assert_eq!((&info["state"], &info["mem_mib"]), (&json!("running"), &json!(memory)), "{point}");
        assert_tidy(&lab);
    }
}

#[test]
fn a_watched_manifest_is_applied_when_it_changes_and_at_the_interval() {
    let lab = Lab::new();
    let of = |quota: u32| {
        manifest(0, 0, 0, "")
            .replace("id = \"alice\"", &format!("id = \"alice\"\nquotas.max_running = {quota}"))
    };
    let path = lab.file("deployment.toml", &of(1));
    let mut watching =
        lab.mvm_beside(&["deploy", path.to_str().unwrap(), "--watch", "--interval", "1", "-o", "json"]);
    let mut told = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut errors = BufReader::new(watching.stderr.take().unwrap()).lines();
    let mut next = || -> Value { told.next().unwrap().unwrap().parse().unwrap() };
    let mut error = |part: &str| {
        let said = errors.find(|line| line.as_ref().unwrap().contains(part));
        assert!(said.is_some(), "{part} was not said");
    };
    let quota = || lab.json(&["tenant", "info", "alice"])["quotas"]["max_running"].clone();
    assert_eq!(next()["changes"], 3);

    // As editors write: another file in its place.
    let replace = |content: &str| {
        let other = lab.file("other", content);
        std::fs::rename(other, &path).unwrap();
    };
    replace(&of(2));
    assert_eq!(lines(&next()["changed"]), ["alice: quotas changed"]);
    assert_eq!(quota(), 2);

    replace("[tenant");
    error("deployment.toml:1:");
    error("waiting for");
    replace(&of(2).replace("role = \"worker\"", "role = \"builder\""));
    error("a role does not change");
    std::fs::remove_file(&path).unwrap();
    error("cannot read");
    lab.file("deployment.toml", &of(3));
    while next()["changes"] == 0 {}
    assert_eq!(quota(), 3);

    // Without a change of the file, what somebody else changed is changed back.
    lab.mvm(&["tenant", "update", "alice", "--max-running", "9"]);
    assert_eq!(lines(&next()["changed"]), ["alice: quotas changed"]);
    assert_eq!(quota(), 3);

    lab.host().run("kill", &["-INT", &watching.id().to_string()]);
    assert!(watching.wait().unwrap().success(), "Ctrl-C is its regular end");
}

#[test]
fn the_manifest_of_what_there_is_asks_for_nothing_more() {
    let lab = Lab::new();
    let example = checkout().join("examples/echo/deployment.toml");
    lab.mvm(&["deploy", example.to_str().unwrap()]);
    let written = |tenant: &str| lab.mvm(&["tenant", "info", tenant, "-o", "toml"]);
    let holds = |tenant: &str| {
        let text = written(tenant);
        let said = lab.deploy(&text);
        assert!(said.contains(&format!("nothing to do: {tenant} is as ")), "{said}{text}");
        assert_eq!(written(tenant), text);
        text
    };
    holds("echo");
    // Also after commands: what a person destroyed is not wanted any more.
    lab.mvm(&["instance", "destroy", "echo/workers", "--force"]);
    holds("echo");
    lab.mvm(&["tenant", "destroy", "echo", "--force"]);

    let every = include_str!("every_key.toml");
    lab.file("secrets/api.key", "sk-hunter2");
    lab.file("secrets/telegram", "hunter3");
    lab.deploy(every);
    let text = holds("alice");
    assert!(!text.contains("hunter"), "{text}");
    let secrets = || lab.json(&["tenant", "info", "alice"])["secrets"].clone();
    assert_eq!(
        secrets(),
        json!(["default/API_KEY", "telegram/TELEGRAM_BOT_TOKEN"]),
        "they stayed as they are"
    );
    for key in ["default/API_KEY", "# api_key = { file = \"…\" }", "# telegram_token = { file = \"…\" }"]
    {
        assert!(text.contains(key), "{key} is not in\n{text}");
    }
    // A pool cannot name a secret that nobody gave; a section is the whole list.
    let more = text.replace("keys = [\"API_KEY\"]", "keys = [\"API_KEY\", \"NONE\"]");
    assert!(lab.deploy_fails(&more).contains("[secrets] does not give `default/NONE`"));
    let fewer = format!("{text}\n[secrets]\napi_key = {{ file = \"secrets/api.key\" }}\n");
    assert!(lab.deploy(&fewer).contains("alice: secrets removed: telegram/TELEGRAM_BOT_TOKEN"));
    assert_eq!(secrets(), json!(["default/API_KEY"]));
}
