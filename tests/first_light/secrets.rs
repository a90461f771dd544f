//! Secrets are in the machines whose pools name them, and nowhere else in clear.

use std::path::PathBuf;

use mvm_harness::{Echo, Lab, NOWHERE, Value, forms, fresh, holders};

const GATEWAY: &str = "alice/gateways";
const WORKER: &str = "alice/workers";
const PLAIN: &str = "alice/plain";

/// Two secrets for workers, one for gateways; the third pool is given none.
const SECRETS: &str = r#"
[[pools]]
id = "plain"
image = "python"
secret_scopes = []
vcpus = 1
mem_mib = 192
desired_running = 1

[secrets]
first = { file = "./secrets/first" }
second = { file = "./secrets/second" }
telegram_token = { file = "./secrets/telegram" }
"#;

fn manifest(more: &str) -> String {
    let gateway_keys = "secret_scopes = [{ integration = \"telegram\", keys = [\"TELEGRAM_BOT_TOKEN\"] }]";
    let worker_keys = "secret_scopes = [{ integration = \"default\", keys = [\"FIRST\", \"SECOND\"] }]";
    Echo { gateway_keys, worker_keys, more, ..Echo::default() }.manifest()
}

const NO_FILES: [&str; 0] = [];

/// Everything that mvm made, open files elsewhere or without a name included.
fn made_by_mvm(lab: &Lab) -> Vec<PathBuf> {
    let mut places = vec![lab.data_dir(), lab.run_dir(), lab.log()];
    let agent = lab.json(&["agent", "status"])["pid"].as_u64().unwrap();
    for pid in lab.vmms().into_iter().map(u64::from).chain([agent]) {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let is_file = std::fs::metadata(entry.path()).is_ok_and(|file| file.is_file());
            let known = places[..3].iter().any(|place| target.starts_with(place)) && target.exists();
            let of_kernel = !target.is_absolute()
                || ["/dev", "/proc", "/run/netns", "/sys"].iter().any(|place| target.starts_with(place));
            if is_file && !known && !of_kernel {
                places.push(entry.path());
            }
        }
    }
    places
}

/// Processes that have a text in their arguments or environment.
fn processes_with(texts: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"].map(|name| process.path().join(name)) {
            let content = std::fs::read(&file).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            if texts.iter().any(|text| content.contains(text)) {
                found.push(file);
            }
        }
    }
    found
}

/// What is in a machine's /run/secrets: mode, owner, path.
fn secret_files(lab: &Lab, machine: &str) -> Vec<String> {
    let listed = lab.exec(
        machine,
        &["find", "-L", "/run/secrets", "-type", "f", "-exec", "stat", "-c", "%a %u:%g %n", "{}", ";"],
    );
    let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn snapshot_of(lab: &Lab, machine: &str) -> PathBuf {
    let id = lab.info(machine)["id"].as_str().unwrap().to_owned();
    lab.data_dir().join("instances").join(id).join("snapshot")
}

#[test]
fn secrets_are_in_the_machines_that_are_given_them_and_nowhere_else() {
    let lab = Lab::new();
    let values = ["first", "second", "telegram"].map(|name| (name, fresh()));
    for (name, value) in &values {
        lab.file(&format!("secrets/{name}"), &format!("{value}\n"));
    }
    let all: Vec<String> = values.iter().flat_map(|(_, value)| forms(value)).collect();
    let source = lab.file("deployment.toml", &manifest(SECRETS));

    let mut deploy = lab.mvm_beside(&["deploy", source.to_str().unwrap()]);
    while deploy.try_wait().unwrap().is_none() {
        assert_eq!(processes_with(&all), NOWHERE);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let deployed = deploy.wait_with_output().unwrap();
    let mut said = String::from_utf8_lossy(&[deployed.stdout, deployed.stderr].concat()).into_owned();
    assert!(deployed.status.success(), "{said}");

    let owner = "400 1000:1000";
    let worker = ["FIRST", "SECOND"].map(|key| format!("{owner} /run/secrets/default/{key}"));
    assert_eq!(secret_files(&lab, WORKER), worker);
    assert_eq!(secret_files(&lab, GATEWAY), ["400 0:0 /run/secrets/telegram/TELEGRAM_BOT_TOKEN"]);
    assert_eq!(secret_files(&lab, PLAIN), NO_FILES);
    let paths =
        [(WORKER, "default/FIRST"), (WORKER, "default/SECOND"), (GATEWAY, "telegram/TELEGRAM_BOT_TOKEN")];
    for ((machine, path), (_, value)) in paths.iter().zip(&values) {
        assert_eq!(lab.exec(machine, &["cat", &format!("/run/secrets/{path}")]), *value);
    }
    let mounts = lab.exec(WORKER, &["sh", "-c", "df /run/secrets/ | tail -n 1; cat /proc/mounts"]);
    let place = mounts.lines().next().unwrap().split_whitespace().last().unwrap();
    let mount = mounts.lines().skip(1).find(|line| line.split(' ').nth(1) == Some(place)).unwrap();
    for option in ["noexec", "nodev", "nosuid"] {
        assert!(mount.contains(option), "{mount}");
    }

    // While they run, nothing has them in clear; while they sleep, their own images only.
    let sources = holders(&lab, &all, &[lab.data_dir().with_file_name("files").join("secrets")]);
    assert_eq!(sources.len(), 3, "the search finds what is there: {sources:?}");
    assert_eq!(holders(&lab, &all, &made_by_mvm(&lab)), NOWHERE);
    assert_eq!(processes_with(&all), NOWHERE);
    for machine in [WORKER, PLAIN, GATEWAY] {
        lab.mvm(&["instance", "sleep", machine]);
        for ((given, _), (name, value)) in paths.iter().zip(&values) {
            let own = snapshot_of(&lab, given);
            let mut found = holders(&lab, &forms(value), &made_by_mvm(&lab));
            found.retain(|path| !path.starts_with(&own));
            assert_eq!(found, NOWHERE, "`{name}` with {machine} asleep");
        }
    }
    for shown in [
        &["tenant", "info", "alice", "-o", "json"][..],
        &["pool", "info", WORKER, "-o", "json"],
        &["instance", "info", WORKER, "-o", "json"],
        &["events", "alice", "-o", "json"],
    ] {
        said += &lab.mvm(shown);
    }
    assert!(said.contains("default/FIRST"), "that there are secrets is shown");
    assert!(!all.iter().any(|form| said.contains(form.as_str())), "what they are is not");

    lab.mvm(&["tenant", "destroy", "alice", "--force"]);
    assert_eq!(holders(&lab, &all, &made_by_mvm(&lab)), NOWHERE);
    // What was sealed is gone as well: nothing of the tenant's rows is left, in the journal neither.
    let names = ["TELEGRAM_BOT_TOKEN".to_owned()];
    let mut found = holders(&lab, &names, &[lab.data_dir()]);
    // Whatever the tenant, the guest in every image knows that there may be such a secret.
    found.retain(|path| !path.starts_with(lab.data_dir().join("images")));
    assert_eq!(found, NOWHERE);
}

/// Reads both secrets over and over, each time from one folder, and says every pair that it has not seen before.
const READER: &str = r#"
import json, os
def read(folder, key):
    with open(os.open("default/" + key, os.O_RDONLY, dir_fd=folder)) as file:
        return file.read()
seen, missed = None, 0
while seen is None or seen[0] != "end":
    folder = None
    try:
        folder = os.open("/run/secrets", os.O_RDONLY | os.O_DIRECTORY)
        pair = [read(folder, key) for key in ("FIRST", "SECOND")]
        missed = 0
    except FileNotFoundError:
        # The folder was replaced just now; the next one is there already.
        missed += 1
        if missed == 3:
            print(json.dumps("missing"), flush=True)
        continue
    finally:
        if folder is not None:
            os.close(folder)
    if pair != seen:
        print(json.dumps(pair), flush=True)
        seen = pair
"#;

#[test]
fn changed_secrets_reach_running_machines_at_once_and_sleeping_ones_with_their_wake() {
    let lab = Lab::new();
    let set = |first: &str, second: &str| {
        lab.file("secrets/first", first);
        lab.file("secrets/second", second);
        lab.file("secrets/telegram", "unchanged");
        lab.deploy(&manifest(SECRETS))
    };
    set("0", "0");
    let life = |machine: &str| {
        let info = lab.info(machine);
        ["state", "pid", "generation"].map(|key| info[key].clone())
    };
    let before = life(WORKER);
    let reader = lab.mvm_beside(&["instance", "exec", WORKER, "--", "python3", "-S", "-c", READER]);
    for round in 1..=8 {
        let said = set(&round.to_string(), &round.to_string());
        assert!(said.contains("secrets changed"), "{said}");
    }
    set("end", "end");
    let read = reader.wait_with_output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let pairs: Vec<Value> =
        String::from_utf8(read.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert!(pairs.len() > 1, "{pairs:?}");
    assert!(pairs.iter().all(|pair| pair.is_array() && pair[0] == pair[1]), "both change at once: {pairs:?}");
    assert_eq!(life(WORKER), before, "nothing was started again for it");

    lab.mvm(&["instance", "sleep", WORKER]);
    set("rotated", "rotated too");
    assert_eq!(lab.state(WORKER), "sleeping");
    assert_eq!(lab.get(8080, "/hello").json()["count"], 1);
    assert_eq!(lab.info(WORKER)["last_start"]["how"], "wake");
    assert_eq!(lab.exec(WORKER, &["cat", "/run/secrets/default/FIRST"]), "rotated");
    assert_eq!(lab.exec(WORKER, &["cat", "/run/secrets/default/SECOND"]), "rotated too");

    // One that is taken out of the manifest is taken away.
    let fewer = manifest(&SECRETS.replace("second = { file = \"./secrets/second\" }\n", ""));
    lab.deploy(&fewer.replace("\"FIRST\", \"SECOND\"", "\"FIRST\""));
    assert_eq!(secret_files(&lab, WORKER), ["400 1000:1000 /run/secrets/default/FIRST"]);
    let everywhere = lab.exec(WORKER, &["find", "/run", "-name", "SECOND"]);
    assert_eq!(everywhere, "", "no older tree is left");
}

#[test]
fn a_search_finds_a_secret_in_every_form() {
    let lab = Lab::without_agent();
    let value = fresh();
    for (number, form) in forms(&value).iter().enumerate() {
        let file = lab.file(&format!("form/{number}"), &format!("before\0{form}after"));
        assert_eq!(holders(&lab, &forms(&value), std::slice::from_ref(&file)), [file.as_path()]);
    }
}
