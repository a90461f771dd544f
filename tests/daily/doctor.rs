//! `mvm doctor`: on a host that has everything, on hosts that lack things, before anything is installed.

use std::process::{Command, Output};

use mvm_harness::{Lab, Terminal, Value};

/// In a mount namespace of its own: takes away the tools that `LACKS` names below /usr, does what `FIRST` says, and goes on
/// as the command that follows.
const LACKING: &str = r#"set -e
space=$(mktemp -d)
mount -t tmpfs none "$space"
mkdir "$space/upper" "$space/work"
mount -t overlay overlay -o "lowerdir=/usr,upperdir=$space/upper,workdir=$space/work" /usr
for tool in $LACKS; do rm -f "/usr/$tool"; done
eval "$FIRST"
umount -l "$space"
rmdir "$space"
exec "$@""#;

/// A command line of `mvm` on a host that lacks tools.
fn on_lacking(lab: &Lab, lacks: &str, first: &str, arguments: &[&str]) -> Output {
    let mvm = lab.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", LACKING, "sh"]);
    command.arg(mvm.get_program()).args(mvm.get_args()).args(arguments);
    command.envs(mvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // An agent that was named must be there; a host where nothing is installed has none.
    command.env_remove("MVM_HOST").env("LACKS", lacks).env("FIRST", first);
    command.output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// One requirement of a report.
fn of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["requirements"].as_array().unwrap();
    all.iter().find(|requirement| requirement["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

#[track_caller]
fn assert_mended_by(report: &Value, name: &str, command: &str) {
    let requirement = of(report, name);
    let commands = requirement["commands"].as_array().unwrap().iter().map(|words| {
        words.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ")
    });
    assert!(commands.into_iter().any(|found| found == command), "{command}: {requirement}");
}

#[test]
fn each_tool_that_is_not_there_is_named_with_its_package() {
    let lab = Lab::without_agent();
    let tools = "bin/qemu-system-x86_64 sbin/nft bin/ip sbin/ip bin/mkfs.erofs sbin/mke2fs";
    let output = on_lacking(&lab, tools, "", &["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    assert_eq!(report["ready"], false);
    for (name, package) in [
        ("qemu", "qemu-system-x86"),
        ("nftables", "nftables"),
        ("iproute2", "iproute2"),
        ("erofs-utils", "erofs-utils"),
        ("e2fsprogs", "e2fsprogs"),
    ] {
        assert_eq!(of(&report, name)["status"], "missing");
        assert_mended_by(&report, name, &format!("apt-get install -y --no-install-recommends {package}"));
    }
    assert_eq!(of(&report, "kvm")["status"], "unknown", "there is nothing to try it with");
    assert_eq!(of(&report, "namespaces")["status"], "ok");
    let output = on_lacking(&lab, "bin/mkfs.erofs", "", &["doctor"]);
    let page = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = page.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with("missing  erofs-utils")).unwrap();
    assert_eq!(lines[at + 2], "$ apt-get install -y --no-install-recommends erofs-utils", "{page}");
    assert!(page.contains("this host is not ready: 1 missing"), "{page}");
}

#[test]
fn what_the_kernel_or_the_network_lacks_is_tried_and_told() {
    let lab = Lab::without_agent();
    let host = lab.host();
    host.run("ip", &["link", "add", "vpn0", "type", "veth", "peer", "name", "vpn1"]);
    host.run("ip", &["link", "set", "vpn0", "up"]);
    host.run("ip", &["route", "add", "10.241.0.0/16", "dev", "vpn0"]);
    let first = "mount --bind /dev/null /dev/net/tun; umount -R /sys/fs/cgroup; mount --bind /dev/null /dev/loop-control";
    let output = on_lacking(&lab, "", first, &["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    let tun = of(&report, "tun");
    assert_eq!(tun["status"], "missing");
    assert_mended_by(&report, "tun", "modprobe tun");
    let range = of(&report, "address range");
    assert_eq!(range["status"], "missing");
    assert!(range["found"].as_str().unwrap().contains("10.241.0.0/16 (route on vpn0)"), "{range}");
    assert!(range["commands"].is_null(), "what the host needs its routes for, nobody here knows: {range}");
    let cgroups = of(&report, "cgroups");
    assert_eq!(cgroups["status"], "warning", "machines run without limits, too");
    assert!(cgroups["found"].as_str().unwrap().contains("memory, pids, cpu"), "{cgroups}");
    assert_eq!(of(&report, "shared memory")["status"], "warning");
    assert_mended_by(&report, "shared memory", "modprobe loop");
}

#[test]
fn before_anything_is_installed_it_says_so_and_makes_nothing() {
    let lab = Lab::without_agent();
    let (data, run) = (lab.data_dir().join("none"), lab.data_dir().join("none/run"));
    let folders = ["--data-dir", data.to_str().unwrap(), "--run-dir", run.to_str().unwrap()];
    let output = on_lacking(&lab, "", "", &[&["doctor", "-o", "json"], &folders[..]].concat());
    let as_root = report(&output);
    assert_eq!(output.status.code(), Some(0), "this host runs the tests: {as_root}");
    for name in ["data folder", "run folder", "store", "node.key", "agent"] {
        assert_eq!(of(&as_root, name)["status"], "ok", "{as_root}");
    }
    assert!(of(&as_root, "agent")["found"].as_str().unwrap().starts_with("none runs"), "{as_root}");
    assert!(!data.exists(), "nothing is made");

    // Not root: it says so, and tries what it can.
    let mvm = lab.command();
    let words: Vec<_> = mvm.get_args().collect();
    let (program, before) = words.split_last().unwrap();
    // Where this checkout is, others may not look.
    let copy = lab.file("mvm", "");
    std::fs::copy(program, &copy).unwrap();
    let output = Command::new(mvm.get_program())
        .args(before)
        .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy)
        .args(["doctor", "-o", "json"])
        .args(folders)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let as_nobody = report(&output);
    assert_eq!(of(&as_nobody, "user")["status"], "missing");
    for name in ["cgroups", "namespaces", "tun"] {
        assert_eq!(of(&as_nobody, name)["status"], "unknown");
    }
    assert_eq!(of(&as_nobody, "qemu")["status"], "ok");
    let named = lab.try_mvm(&["doctor", "-o", "json"]);
    assert_eq!(of(&report(&named), "agent")["status"], "missing", "one that was named has to answer");
    assert_eq!(named.status.code(), Some(1));
}

#[test]
fn what_mends_is_run_after_asking_or_without() {
    let lab = Lab::new();
    let key = lab.data_dir().join("node.key");
    let open_up = || lab.host().run("chmod", &["0644", key.to_str().unwrap()]);
    let check = || report(&lab.try_mvm(&["doctor", "-o", "json"]));
    open_up();
    let before = check();
    assert_eq!(
        (of(&before, "node.key")["status"].as_str(), before["ready"].as_bool()),
        (Some("missing"), Some(false))
    );
    assert_mended_by(&before, "node.key", &format!("chmod 0600 {}", key.display()));
    assert_eq!(of(&before, "agent")["status"], "ok");

    let refused = lab.try_mvm(&["doctor", "--fix"]);
    assert_eq!(refused.status.code(), Some(2), "nobody can be asked: {refused:?}");
    assert_eq!(of(&check(), "node.key")["status"], "missing");

    // Everything that a host may lack is asked about; only this is agreed to.
    let mut terminal = Terminal::open(&lab, &["doctor", "--fix"], (200, 100));
    let mends = before["requirements"].as_array().unwrap();
    let is_install = |command: &Value| command[0] == "apt-get";
    let commands = |requirement: &Value| requirement["commands"].as_array().cloned().unwrap_or_default();
    let packages = usize::from(mends.iter().flat_map(commands).any(|command| is_install(&command)));
    let others = mends.iter().take_while(|requirement| requirement["name"] != "node.key");
    let others =
        others.filter(|requirement| commands(requirement).iter().any(|command| !is_install(command)));
    for _ in 0..packages + others.count() {
        terminal.wait_for("Run this? [Y/n] ");
        terminal.type_in("n\r");
    }
    terminal.wait_for("node.key: chown root:root");
    terminal.wait_for("Run this? [Y/n] ");
    terminal.type_in("\r");
    terminal.wait_for("node.key is root's alone");
    assert_eq!(terminal.end(), 0);
    assert_eq!(of(&check(), "node.key")["status"], "ok");

    // Without asking, on a host whose other commands cannot be run: they are told, and the rest is done.
    open_up();
    let tools = "bin/apt-get sbin/groupadd sbin/modprobe bin/kmod bin/timedatectl";
    let output = on_lacking(&lab, tools, "", &["doctor", "--fix", "-y", "-o", "json"]);
    assert_eq!(of(&report(&output), "node.key")["status"], "ok", "{output:?}");
    if packages > 0 {
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("cannot run `apt-get update -q`"), "{said}");
    }
}
