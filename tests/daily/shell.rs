//! A terminal in a machine: `instance shell`, `exec -it`.

use mvm_harness::{Lab, Terminal};

pub const POOL: &str = "alice/workers";
pub const MANIFEST: &str = r#"
[tenant]
id = "alice"

[[pools]]
id = "workers"
role = "worker"
image = "minimal"
vcpus = 1
mem_mib = 256
data_disk_mib = 16
spares = 0
desired_running = 1
"#;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.deploy(MANIFEST);
    lab
}

/// Whether a program runs in the machine.
fn runs(lab: &Lab, command: &str) -> bool {
    lab.exec(POOL, &["ps", "-o", "args"]).lines().any(|line| line.trim() == command)
}

#[test]
fn a_shell_is_a_real_terminal() {
    let lab = lab();
    let mut shell = Terminal::open(&lab, &["instance", "shell", POOL], (97, 31));
    shell.wait_for("#");
    shell.type_in("stty size; readlink /proc/self/fd/0; echo term=$TERM\r");
    for said in ["31 97", "/dev/pts/", "term=xterm-256color"] {
        shell.wait_for(said);
    }
    shell.type_in("printf '\\033[31mre''d\\033[0m\\n'\r");
    shell.wait_for("\x1b[31mred\x1b[0m");

    // Ctrl-C ends what runs, and not the shell.
    shell.type_in("sleep 1000\r");
    lab.wait_for("it runs", || runs(&lab, "sleep 1000"));
    shell.type_in("\x03");
    shell.type_in("echo code=$?\r");
    shell.wait_for("code=130");

    // A new size is that of the machine's terminal, too.
    shell.type_in("until [ \"$(stty size)\" = '50 120' ]; do sleep 0.1; done; echo size=new''er\r");
    shell.resize(120, 50);
    shell.wait_for("size=newer");

    shell.type_in("exit 7\r");
    assert_eq!(shell.end(), 7);
    assert!(!shell.is_raw(), "the terminal is as it was");
}

#[test]
fn what_runs_in_a_shell_ends_with_the_command_that_opened_it() {
    let lab = lab();
    let mut shell = Terminal::open(&lab, &["instance", "exec", "-it", POOL, "--", "sh"], (80, 24));
    shell.wait_for("#");
    shell.type_in("sleep 4242\r");
    lab.wait_for("it runs", || runs(&lab, "sleep 4242"));
    shell.kill();
    lab.wait_for("it ends", || !runs(&lab, "sleep 4242"));
}

#[test]
fn a_program_gets_a_terminal_or_input_only_where_that_was_asked_for() {
    let lab = lab();
    let run = |arguments: &[&str]| {
        let mut command = vec!["instance", "exec"];
        command.extend(arguments);
        let output = lab.try_mvm(&command);
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(run(&[POOL, "--", "test", "-t", "1"]).1, Some(1));
    let (out, code) = run(&["-t", POOL, "--", "sh", "-c", "stty size; echo out >&2; exit 3"]);
    assert_eq!(out, "24 80\r\nout\r\n", "all that is written goes through the terminal");
    assert_eq!(code, Some(3));

    let (out, code) = run(&["-t", POOL, "--", "cat"]);
    assert_eq!((out.as_str(), code), ("", Some(0)), "the end of what is piped in is one on a terminal, too");

    let mut without = Terminal::open(&lab, &["instance", "exec", POOL, "--", "cat"], (80, 24));
    assert_eq!(without.end(), 0, "what is typed is not for it");
    let said = lab.try_mvm(&["instance", "shell", POOL]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("no terminal"), "{said:?}");
    assert_eq!(said.status.code(), Some(125));
}

#[test]
fn whoever_works_in_a_machine_that_sleeps_or_is_paused_wakes_it_and_is_told() {
    let lab = lab();
    lab.exec(POOL, &["sh", "-c", "echo kept > /run/mark"]);
    for act in ["sleep", "warm"] {
        lab.mvm(&["instance", act, POOL]);
        let output = lab.try_mvm(&["instance", "exec", POOL, "--", "cat", "/run/mark"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\n", "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("was asleep and was woken in "), "{told}");
        assert_eq!(lab.state(POOL), "running");
    }
    let output = lab.try_mvm(&["instance", "exec", POOL, "--", "true"]);
    assert!(output.stderr.is_empty(), "{output:?}");
    lab.mvm(&["instance", "stop", POOL]);
    let refused = lab.try_mvm(&["instance", "exec", POOL, "--", "true"]);
    assert_eq!(refused.status.code(), Some(125), "one that was stopped is not started behind anyone's back");
}
