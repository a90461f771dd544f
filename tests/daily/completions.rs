//! What a shell offers while a command is typed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use mvm_harness::Lab;

use crate::shell::{MANIFEST, POOL};

/// Takes the words of a command line, the last of them half typed, and prints what bash offers in its place.
const OFFERED: &str = r#"source <(mvm completions bash)
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMP_TYPE=9
_clap_complete_mvm mvm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}""#;

/// What bash offers; nothing may be said beside it.
fn offered(lab: &Lab, words: &[&str]) -> Vec<String> {
    let mvm = lab.command();
    let of_lab = mvm.get_args().last().map(Path::new).unwrap();
    let folder = of_lab.parent().unwrap().to_str().unwrap();
    let environment = mvm.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let output = Command::new("bash")
        .args(["-c", OFFERED, "bash"])
        .args(words)
        .envs(environment.filter(|(name, _)| *name != OsStr::new("MVM_HOST")))
        .env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn names_are_completed_where_an_agent_runs_and_none_is_started_for_them() {
    let mut lab = Lab::without_agent();
    assert_eq!(offered(&lab, &["mvm", "pool", "rollb"]), ["rollback"]);
    // A single offer of nothing: no names, no agent, and no folder made for one.
    std::fs::remove_dir_all(lab.run_dir()).unwrap_or_default();
    assert_eq!(offered(&lab, &["mvm", "tenant", "info", "a"]), [""; 0]);
    assert!(!lab.run_dir().exists());

    lab.start_agent();
    lab.deploy(MANIFEST);
    let of_nothing = |words: &[&str]| offered(&lab, &[words, &[""]].concat());
    assert_eq!(of_nothing(&["mvm", "tenant", "info"])[0], "alice");
    assert_eq!(offered(&lab, &["mvm", "status", "al"]), ["alice"]);
    assert_eq!(offered(&lab, &["mvm", "pool", "info", "al"]), [POOL]);
    let machine = lab.instances(POOL).remove(0);
    let named = offered(&lab, &["mvm", "instance", "exec", "alice/w"]);
    assert_eq!(named, [POOL, &machine], "its pool will do, as it has one");
    // By the flags that were typed, another agent is asked: here none.
    let elsewhere = of_nothing(&["mvm", "--run-dir", "/nonexistent", "tenant", "info"]);
    assert!(
        elsewhere.contains(&"--output".to_owned()) && !elsewhere.contains(&"alice".to_owned()),
        "{elsewhere:?}"
    );
}
