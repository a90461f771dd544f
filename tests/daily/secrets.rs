//! Secrets set to other values, one by one, and handed to machines that run, sleep or hang.

use std::io::Write as _;
use std::path::Path;

use mvm_harness::{Lab, assert_tidy, freeze, fresh, thaw};

use crate::shell::{MANIFEST, POOL};

const LIST: [&str; 4] = ["tenant", "secrets", "list", "alice"];

/// What the machine has; one that sleeps wakes for the question.
fn has(lab: &Lab) -> String {
    lab.exec(POOL, &["cat", "/run/secrets/default/API_KEY"])
}

fn set<'a>(file: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let set = ["tenant", "secrets", "set", "alice", "api_key", "--file", file.to_str().unwrap()];
    [&set, more].concat()
}

#[test]
fn secrets_reach_machines_that_run_and_that_sleep_and_rotate_out_of_their_files() {
    let mut lab = Lab::new();
    let values = [(); 5].map(|()| fresh());
    let source = lab.file("secrets/api", &values[0]);
    lab.deploy(&format!("{MANIFEST}\n[secrets]\napi_key = {{ file = \"./secrets/api\" }}\n"));
    let listed = lab.json(&LIST);
    let one = &listed.as_array().unwrap()[0];
    assert_eq!((&one["secret"], &one["name"]), (&"default/API_KEY".into(), &"api_key".into()));
    assert_eq!((&one["file"], &one["bytes"]), (&source.to_str().unwrap().into(), &values[0].len().into()));
    let rotate = ["tenant", "secrets", "rotate", "alice"];
    assert!(lab.mvm(&rotate).starts_with("nothing to do"));

    // One that runs.
    let other = lab.file("other", &format!("{}\n", values[1]));
    let said = lab.mvm(&set(&other, &[]));
    assert!(said.contains("secrets changed: default/API_KEY") && said.contains(" has taken it"), "{said}");
    assert_eq!(has(&lab), values[1]);

    // One that sleeps is not woken for it.
    lab.mvm(&["instance", "sleep", POOL]);
    let mut setting = lab.mvm_with_input(&set(Path::new("-"), &["-o", "json"]));
    setting.stdin.take().unwrap().write_all(values[2].as_bytes()).unwrap();
    let set_by_input = setting.wait_with_output().unwrap();
    assert!(set_by_input.status.success());
    let said = String::from_utf8(set_by_input.stdout).unwrap();
    assert!(said.contains("\"later\"") && !said.contains(&values[2]), "{said}");
    assert_eq!(lab.state(POOL), "sleeping");
    assert_eq!(has(&lab), values[2]);
    assert!(lab.json(&LIST)[0]["file"].is_null());
    assert!(lab.mvm_fails(&rotate).contains("no secret that came out of a file"));

    // Out of its file again, by an agent that was not there when it was named.
    lab.mvm(&set(&other, &[]));
    lab.kill_agent();
    lab.start_agent();
    lab.file("other", &values[3]);
    let said = lab.mvm(&rotate);
    assert!(said.contains("secrets changed: default/API_KEY"), "{said}");
    assert_eq!(has(&lab), values[3]);

    // A file that cannot be read changes nothing.
    let before = lab.json(&LIST);
    std::fs::remove_file(&other).unwrap();
    let said = lab.mvm_fails(&rotate);
    assert!(said.contains("api_key (default/API_KEY)") && said.contains(other.to_str().unwrap()), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!((lab.json(&LIST), has(&lab)), (before, values[3].clone()));

    // Nor does one that its service does not take, unless that is not asked.
    let bot = lab.file("bot", "no token");
    let mut set_bot =
        vec!["tenant", "secrets", "set", "alice", "telegram_token", "--file", bot.to_str().unwrap()];
    let said = lab.mvm_fails(&set_bot);
    assert!(said.contains("telegram_token: this is not a bot's token"), "{said}");
    assert_eq!(lab.json(&LIST).as_array().unwrap().len(), 1);
    set_bot.push("--offline");
    lab.mvm(&set_bot);
    assert_eq!(lab.exec(POOL, &["cat", "/run/secrets/telegram/TELEGRAM_BOT_TOKEN"]), "no token");

    // A machine that hangs is named, and takes it when it is done again.
    let pid = u32::try_from(lab.info(POOL)["pid"].as_u64().unwrap()).unwrap();
    let last = lab.file("last", &values[4]);
    freeze(pid);
    let said = lab.mvm_fails(&set(&last, &[]));
    thaw(pid);
    assert!(said.contains(&lab.instances(POOL)[0]) && said.contains("what is set stays set"), "{said}");
    lab.mvm(&[&rotate[..], &["api_key"]].concat());
    assert_eq!(has(&lab), values[4]);
    let events = format!("{:?}", lab.json(&["events", "alice"]));
    assert!(events.contains("SecretsSet") && values.iter().all(|value| !events.contains(value)));
    assert_tidy(&lab);
}
