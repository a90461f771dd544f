//! What needs no agent: help, wrong usage, mistakes in manifests; and that none of these starts one.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use snapbox::cmd::{Command, cargo_bin};
use snapbox::{file, str};
use tempfile::TempDir;

/// A folder of its own for every test: manifests, and where an agent would be.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// `mvm` in this folder, with an agent's folders in it.
    fn mvm(&self, arguments: &str) -> Command {
        Command::new(cargo_bin!("mvm"))
            .args(arguments.split_whitespace())
            .current_dir(self.path())
            .env("MVM_DATA_DIR", self.path().join("data"))
            .env("MVM_RUN_DIR", self.path().join("run"))
            .env_remove("MVM_HOST")
            .env_remove("COLUMNS")
    }

    /// Nothing was begun that would lead to an agent.
    fn is_without_agent(&self) -> bool {
        !self.path().join("run").exists() && !self.path().join("data").exists()
    }

    /// Deploys `deployment.toml`, which has a mistake: this one error, and nothing else happens.
    fn refuses_manifest(&self, error: impl snapbox::IntoData) {
        self.mvm("deploy deployment.toml").assert().code(1).stdout_eq(str![""]).stderr_eq(error);
        assert!(self.is_without_agent());
    }
}

#[test]
fn help_shows_every_command() {
    let place = Place::new();
    for (arguments, help) in [
        ("-h", file!["help/mvm.txt"]),
        ("deploy --help", file!["help/deploy.txt"]),
        ("tenant -h", file!["help/tenant.txt"]),
        ("pool -h", file!["help/pool.txt"]),
        ("pool scale --help", file!["help/scale.txt"]),
        ("instance -h", file!["help/instance.txt"]),
        ("instance exec --help", file!["help/exec.txt"]),
        ("instance stats --help", file!["help/stats.txt"]),
        ("agent -h", file!["help/agent.txt"]),
        ("node -h", file!["help/node.txt"]),
        ("net -h", file!["help/net.txt"]),
        ("events -h", file!["help/events.txt"]),
        ("status --help", file!["help/status.txt"]),
        ("doctor --help", file!["help/doctor.txt"]),
        ("completions --help", file!["help/completions.txt"]),
        ("man --help", file!["help/man.txt"]),
    ] {
        place.mvm(arguments).assert().success().stderr_eq(str![""]).stdout_eq(help);
    }
    assert!(place.is_without_agent());
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_right() {
    let place = Place::new();
    place.mvm("").assert().code(2);
    place.mvm("instance fly a/b").assert().code(2).stderr_eq(str![[r#"
error: unrecognized subcommand 'fly'
...
"#]]);
    place.mvm("pool info alice").assert().code(2).stderr_eq(str![[r#"
error: invalid value 'alice' for '<POOL>': a pool is named <tenant>/<pool>, as alice/workers
...
"#]]);
    place.mvm("instance info alice/workers/bob").assert().code(2).stderr_eq(str![[r#"
error: invalid value 'alice/workers/bob' for '<INSTANCE>': `bob` is not an instance id: it looks like i-0000002a (`i-` and 8 hex digits)
...
"#]]);
    place.mvm("instance exec a/b -e X true").assert().code(2).stderr_eq(str![[r#"
error: invalid value 'X' for '--env <KEY=VALUE>': write KEY=VALUE
...
"#]]);
    place.mvm("pool scale alice/workers").assert().code(2).stderr_eq(str![[r#"
error: the following required arguments were not provided:
  <--running <N>|--sleeping <N>>
...
"#]]);
    place.mvm("pool scale alice/workers --running -1").assert().code(2);
    place.mvm("pool scale alice/workers --sleeping 65536").assert().code(2).stderr_eq(str![[r#"
error: invalid value '65536' for '--sleeping <N>': 65536 is not in 0..=65535
...
"#]]);
    place.mvm("instance stats alice/workers/bob").assert().code(2);
    place.mvm("completions tcsh").assert().code(2);
    place.mvm("doctor -y").assert().code(2);
    place.mvm("node").assert().code(2);
    place.mvm("--host tcp://example.org tenant list").assert().code(2).stderr_eq(str![[r#"
error: invalid value 'tcp://example.org' for '--host <ADDRESS>': an agent is reached at unix:/path/to/agent.sock
...
"#]]);
    assert!(place.is_without_agent());
}

#[test]
fn nothing_is_destroyed_unasked() {
    let place = Place::new();
    place.mvm("tenant destroy alice").assert().code(2).stderr_eq(str![[r#"
error: `mvm tenant destroy` destroys for good, and there is no terminal to ask at: add --force

"#]]);
    place.mvm("instance destroy alice/workers").assert().code(2).stderr_eq(str![[r#"
error: `mvm instance destroy` destroys for good, and there is no terminal to ask at: add --force

"#]]);
    assert!(place.is_without_agent());
}

#[test]
fn where_an_agent_is_configured_none_is_started() {
    let place = Place::new();
    let host = format!("--host unix:{}/no.sock", place.path().display());
    for command in
        ["tenant list", "instance start a/b", "net verify", "events a", "agent status", "node disk", "status"]
    {
        place.mvm(&format!("{command} {host}")).assert().code(1).stderr_eq(str![[r#"
error: no agent answers at unix:[..]/no.sock: start one with `mvm agent serve`

"#]]);
    }
    place.mvm(&format!("instance exec {host} a/b true")).assert().code(125).stderr_eq(str![[r#"
error: no agent answers at unix:[..]/no.sock: start one with `mvm agent serve`

"#]]);
    assert!(place.is_without_agent());
}

#[test]
fn status_and_stop_start_no_agent() {
    let place = Place::new();
    place.mvm("agent status").assert().code(1).stdout_eq(str![""]).stderr_eq(str![[r#"
error: no agent answers at unix:[..]/run/agent.sock: start one with `mvm agent serve`

"#]]);
    place.mvm("agent stop").assert().code(0).stdout_eq(str![[r#"
no agent runs at unix:[..]/run/agent.sock

"#]]);
    assert!(place.is_without_agent());
}

#[test]
fn a_status_starts_no_agent() {
    let place = Place::new();
    for command in ["status", "connect alice", "status alice --watch -o json"] {
        place.mvm(command).assert().code(1).stdout_eq(str![""]).stderr_eq(str![[r#"
error: no agent answers at unix:[..]/run/agent.sock: start one with `mvm agent serve`

"#]]);
    }
    assert!(place.is_without_agent());
}

#[test]
fn shells_are_told_what_comes_next_and_nothing_where_no_agent_runs() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script =
            place.mvm(&format!("completions {shell}")).assert().success().get_output().stdout.clone();
        assert!(String::from_utf8(script).unwrap().contains("MVM_COMPLETE"), "{shell}");
    }
    let complete = |words: &str, index: &str| {
        let command = place.mvm(&format!("-- {words}")).env("MVM_COMPLETE", "bash");
        command.env("_CLAP_COMPLETE_INDEX", index).assert().success().stderr_eq(str![""])
    };
    complete("mvm agent st", "2").stdout_eq("status\nstop");
    complete("mvm tenant info a", "3").stdout_eq(str![""]);
    complete("mvm --no-such-flag tenant info a", "4").stdout_eq(str![""]);
    assert!(place.is_without_agent());
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    place.mvm("man --out pages/man1").assert().success().stdout_eq(str![""]).stderr_eq(str![""]);
    let page = |name: &str| fs::read_to_string(place.path().join("pages/man1").join(name)).unwrap();
    for (name, says) in [
        ("mvm.1", "Runs fleets of microVMs for many tenants"),
        ("mvm-pool-scale.1", "sleeping"),
        ("mvm-doctor.1", "fix"),
    ] {
        let text = page(name);
        assert!(text.contains(".TH mvm") && text.contains(says), "{name}: {text}");
    }
    let whole = place.mvm("man").assert().success().get_output().stdout.clone();
    assert_eq!(String::from_utf8(whole).unwrap().lines().next(), page("mvm.1").lines().next());
    place.write("file", "");
    place.mvm("man --out file").assert().code(1).stderr_eq(str![[r#"
error: cannot write manual pages into file: File exists (os error 17)

"#]]);
    assert!(place.is_without_agent());
}

#[test]
fn an_agent_that_does_not_start_shows_its_log() {
    let place = Place::new();
    place.write("data", "a file where the agent wants a folder");
    place.mvm("tenant list").assert().code(1).stdout_eq(str![""]).stderr_eq(str![[r#"
no agent runs: starting one in the background (log: [..]/run/agent.log)
error: the agent did not start: it ended at once (exit status: 1)
the end of its log [..]/run/agent.log:
...
  error: [..]

"#]]);
}

const TENANT: &str = "[tenant]\nid = \"alice\"\n";

#[test]
fn a_mistake_in_a_manifest_is_told_with_file_line_and_key() {
    let place = Place::new();
    place.mvm("deploy deployment.toml").assert().code(1).stderr_eq(str![[r#"
error: cannot read deployment.toml: No such file or directory (os error 2)

"#]]);
    place.write("deployment.toml", &format!("{TENANT}\n[[pools]]\nid = \"workers\"\nvcpu = 2\n"));
    place.refuses_manifest(str![[r#"
error: deployment.toml:6:1: pools[0].vcpu: [..]vcpus[..]
   |
 6 | vcpu = 2
   | ^^^^

"#]]);
    place.write("deployment.toml", &format!("{TENANT}\n[[pools]]\nid = \"workers\"\nvcpus = \"two\"\n"));
    place.refuses_manifest(str![[r#"
error: deployment.toml:6:1: pools[0].vcpus: [..]
   |
 6 | vcpus = "two"
   | ^^^^^

"#]]);
}

#[test]
fn a_secret_that_cannot_be_read_is_told_at_its_key() {
    let place = Place::new();
    let secrets = "[secrets]\nanthropic_key = { file = \"secrets/key\" }\n";
    place.write("deployment.toml", &format!("{TENANT}{secrets}"));
    place.refuses_manifest(str![[r#"
error: deployment.toml:4:19: secrets.anthropic_key.file: cannot read the secret's file secrets/key: No such file or directory (os error 2)

"#]]);
    place.write("secrets/key", "\n");
    place.refuses_manifest(str![[r#"
error: deployment.toml:4:19: secrets.anthropic_key.file: the secret's file secrets/key is empty

"#]]);
}

#[test]
fn a_secret_in_the_manifest_is_not_repeated() {
    let place = Place::new();
    for value in ["\"hunter2\"", "hunter2", "'hunter2"] {
        place.write("deployment.toml", &format!("{TENANT}[secrets]\nanthropic_key = {value}\n"));
        let output = place.mvm("deploy deployment.toml").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("error: deployment.toml:4:"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(place.is_without_agent());
}

#[test]
fn a_recipe_that_is_missing_is_told_at_its_key() {
    let place = Place::new();
    place.write("deployment.toml", &format!("{TENANT}\n[[pools]]\nid = \"workers\"\nimage = \"./worker\"\n"));
    place.refuses_manifest(str![[r#"
error: deployment.toml:6:1: pools[0].image: there is no recipe: ./worker/image.toml is missing
   |
 6 | image = "./worker"
   | ^^^^^

"#]]);
}
