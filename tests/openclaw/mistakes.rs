//! What `mvm new openclaw` refuses, before anything is made.

use std::path::PathBuf;

use mvm_harness::{Lab, assert_tidy};

use crate::alice::{OUTSIDE, Outside, standin};

struct Try<'a> {
    lab: &'a Lab,
    text: String,
}

impl Try<'_> {
    #[track_caller]
    fn fails(&self, from: &str, to: &str, more: &[&str], expected: &[&str]) {
        assert!(self.text.contains(from), "{from}");
        let file = self.lab.file("deploy.toml", &self.text.replacen(from, to, 1));
        let new = ["new", "openclaw", "alice", "--config", file.to_str().unwrap()];
        let error = self.lab.mvm_fails(&[new.as_slice(), more].concat());
        for part in expected {
            assert!(error.contains(part), "{part:?} is not said: {error}");
        }
        assert_eq!(self.lab.json(&["tenant", "list"]), serde_json::json!([]), "nothing half-made");
    }
}

#[test]
fn every_mistake_is_one_clear_error_and_nothing_is_made() {
    let lab = Lab::new();
    let outside = Outside::new(&lab);
    let config = outside.config(&lab, "");
    let text = std::fs::read_to_string(config).unwrap();
    let folder = lab.data_dir().parent().unwrap().join("files");
    let path = |name: &str| folder.join(name).display().to_string();
    let (key, token) = (path("anthropic.key"), path("telegram.token"));
    let attempt = Try { lab: &lab, text };

    attempt.fails(
        &key,
        &path("nowhere.key"),
        &[],
        &["deploy.toml:2", "secrets.anthropic_key.file", "nowhere.key"],
    );
    attempt.fails(
        &key,
        &folder.display().to_string(),
        &[],
        &["deploy.toml:2", "cannot read the secret's file"],
    );
    lab.file("empty", "");
    attempt.fails(&key, &path("empty"), &[], &["deploy.toml:2", "is empty"]);
    lab.file("wrong.key", "sk-ant-wrong");
    attempt.fails(&key, &path("wrong.key"), &[], &["deploy.toml:2", "does not take this key"]);
    lab.file("wrong.token", "123:wrong");
    attempt.fails(&token, &path("wrong.token"), &[], &["deploy.toml:3", "does not know this bot"]);
    lab.file("no.token", "hello");
    attempt.fails(&token, &path("no.token"), &[], &["deploy.toml:3", "not a bot's token"]);
    attempt.fails(
        &format!("telegram_token = {{ file = {token:?} }}"),
        "",
        &[],
        &["deploy.toml:1", "telegram_token"],
    );
    let nobody = format!("{OUTSIDE}:9");
    attempt.fails(
        outside.bot.url().trim_start_matches("http://"),
        &nobody,
        &[],
        &["deploy.toml:5:1: endpoints.telegram", "could not be reached", "--offline"],
    );
    attempt.fails("vcpus = 1", "cpus = 1", &[], &["overrides.gateways.cpus", "vcpus"]);
    attempt.fails("vcpus = 1", "vcpus = 1", &["--image", "/nowhere"], &["image.toml is missing"]);
    // Found by the agent, and told at what says it.
    lab.file("long.key", &"x".repeat(126 << 10));
    let too_long = ["deploy.toml:1:", "secrets: ", "bytes of secrets"];
    attempt.fails(&key, &path("long.key"), &["--offline"], &too_long);

    // Something of the image that is neither here nor to be had: the lab has no way outside.
    let read = |name: &str| std::fs::read_to_string(PathBuf::from(standin()).join(name)).unwrap();
    let lock = read("image.lock");
    let busybox =
        lock.split("name = \"busybox\"").nth(1).and_then(|rest| rest.split("sha256 = \"").nth(1)).unwrap();
    lab.file("image/image.lock", &lock.replace(&busybox[..64], &"0".repeat(64)));
    lab.file("image/image.toml", &read("image.toml"));
    lab.file("image/standin.py", &read("standin.py"));
    attempt.fails("vcpus = 1", "vcpus = 1", &["--image", &path("image")], &["busybox"]);

    // The plan is shown, and nothing made either.
    let file = lab.file("deploy.toml", &attempt.text);
    let image = standin();
    let new = ["new", "openclaw", "alice", "--config", file.to_str().unwrap(), "--image", &image];
    let shown = lab.mvm(&[new.as_slice(), &["--dry-run"]].concat());
    assert!(shown.contains("+ alice/workers") && shown.contains("nothing was done"), "{shown}");
    assert_eq!(lab.json(&["tenant", "list"]), serde_json::json!([]));

    // An argument has no place in the file.
    lab.deploy("tenant.id = 'bob'");
    for (more, expected) in [
        (["--net-id", "0"], "--net-id 0: tenant bob has this number"),
        (["--subnet", "10.240.0.0/24"], "--subnet 10.240.0.0/24: subnet 10.240.0.0/24 overlaps tenant bob's"),
        (["--image", "other"], "--image other: there is no built-in image `other`"),
    ] {
        let new = ["new", "openclaw", "alice", "--config", file.to_str().unwrap()];
        for dry_run in [&[][..], &["--dry-run"]] {
            let error = lab.mvm_fails(&[&new, more.as_slice(), dry_run].concat());
            assert!(
                error.contains(&format!("error: {expected}")) && !error.contains("deploy.toml"),
                "{error}"
            );
        }
    }
    assert!(lab.mvm_fails(&["tenant", "info", "alice"]).contains("no tenant"));

    lab.deploy("tenant.id = 'alice'");
    let error = lab.mvm_fails(&new);
    assert!(error.contains("tenant alice is there already"), "{error}");
    assert_eq!(lab.json(&["user", "list"]), serde_json::json!([]));
    assert_tidy(&lab);
}
