//! A tenant's end: nothing of it is left on the host, and its neighbour does not notice.

use std::collections::BTreeSet;
use std::path::Path;

use mvm_harness::{Echo, KillPoint, Lab, answered, assert_tidy, kill, kill_at};

use crate::restart::points_of;

/// A link by which the lab's host would reach the world: what mvm switches on there, it has to switch off again.
fn give_uplink(lab: &Lab) {
    for arguments in [
        "link add up0 type veth peer name up1",
        "link set up1 up",
        "address add 192.0.2.2/24 dev up0",
        "link set up0 up",
        "route add default via 192.0.2.1",
    ] {
        lab.host().run("ip", &arguments.split(' ').collect::<Vec<_>>());
    }
}

fn forwards(lab: &Lab) -> String {
    lab.host().run("cat", &["/proc/sys/net/ipv4/conf/up0/forwarding"]).trim().to_owned()
}

/// Everything on this host that may belong to a lab's agent, a line each.
fn world(lab: &Lab) -> BTreeSet<String> {
    let mut world = BTreeSet::new();
    for folder in [lab.data_dir(), lab.run_dir()] {
        files(&folder, &mut world);
    }
    let mut note = |what: &str, lines: String| {
        world.extend(lines.lines().map(|line| format!("{what}: {line}")));
    };
    note("link", lab.host().run("ip", &["-brief", "link"]));
    note("address", lab.host().run("ip", &["-brief", "address"]));
    note("route", lab.host().run("ip", &["route"]));
    note("nft", lab.host().run("nft", &["list", "ruleset"]));
    note(
        "sysctl",
        lab.host().run("grep", &["-r", ".", "/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv4/ip_forward"]),
    );
    note("namespace", lab.namespaces().join("\n"));
    note("cgroup", lab.cgroups().into_iter().collect::<Vec<_>>().join("\n"));
    note("VMM", lab.vmms().iter().map(|pid| format!("{pid}\n")).collect());
    let folder = lab.data_dir().parent().unwrap().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let ours = |line: &&str| line.contains(&folder);
    note("mount", mounts.lines().filter(ours).collect::<Vec<_>>().join("\n"));
    let loops = std::fs::read_dir("/sys/block").unwrap().flatten();
    let backing =
        loops.filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    note("loop device", backing.filter(|path| path.contains(&folder)).collect());
    world
}

fn files(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        into.insert(format!("file: {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), into);
        }
    }
}

#[track_caller]
fn assert_same(before: &BTreeSet<String>, after: &BTreeSet<String>, when: &str) {
    let left: Vec<_> = after.difference(before).collect();
    let missing: Vec<_> = before.difference(after).collect();
    assert!(left.is_empty() && missing.is_empty(), "{when}: left {left:#?}, missing {missing:#?}");
}

fn pid(lab: &Lab, instance: &str) -> u32 {
    u32::try_from(lab.info(instance)["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn nothing_is_left_of_a_tenant_and_its_neighbour_does_not_notice() {
    let mut lab = Lab::without_agent();
    give_uplink(&lab);
    lab.start_agent();
    let empty = world(&lab);
    lab.deploy(&Echo { tenant: "bob", port: 8081, ..Echo::default() }.manifest());
    assert_eq!(forwards(&lab), "1");
    let neighbour = world(&lab);
    let bobs = [pid(&lab, "bob/gateways"), pid(&lab, "bob/workers")];

    let secret = lab.file("key", "a secret");
    let more = format!("[secrets]\nsome_key = {{ file = {secret:?} }}");
    lab.deploy(&Echo { workers: 4, more: &more, ..Echo::default() }.manifest());
    let workers = lab.instances("alice/workers");
    lab.mvm(&["instance", "sleep", &workers[1]]);
    lab.mvm(&["instance", "stop", &workers[2]]);
    kill(pid(&lab, &workers[3]));
    lab.wait_for("it has failed", || lab.state(&workers[3]) == "failed");
    let states: Vec<String> = workers.iter().map(|worker| lab.state(worker)).collect();
    assert_eq!(states, ["running", "sleeping", "stopped", "failed"]);
    // A connection that is open, and through which nothing goes, does not hold anything up.
    let mut open = lab.connect(8080);
    assert_eq!(open.get("/hello").status, 200);
    assert!(world(&lab).len() > neighbour.len());

    lab.mvm(&["tenant", "destroy", "alice", "--force"]);
    assert_same(&neighbour, &world(&lab), "without alice");
    let error = open.try_get("/hello").unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection ended with its tenant");
    assert!(lab.try_get(8080, "/hello").is_none(), "the port is closed");
    assert_eq!([pid(&lab, "bob/gateways"), pid(&lab, "bob/workers")], bobs);
    assert_eq!(answered(&lab, 8081)["hello"], "bob");
    assert_tidy(&lab);

    lab.mvm(&["tenant", "destroy", "bob", "--force"]);
    // Built images and what was found out about the engine are nobody's, and kept for the next.
    let kept = [lab.data_dir().join("images"), lab.data_dir().join("engine.json")];
    let kept = kept.map(|path| format!("file: {}", path.display()));
    let after = world(&lab).into_iter().filter(|line| !kept.iter().any(|path| line.starts_with(path)));
    let empty = empty.into_iter().filter(|line| !kept.iter().any(|path| line.starts_with(path)));
    assert_same(&empty.collect(), &after.collect(), "without anyone");
    assert_eq!(forwards(&lab), "0");
}

#[test]
fn a_tenants_destruction_is_finished_after_the_agent_died_in_the_middle_of_it() {
    let mut lab = Lab::without_agent();
    give_uplink(&lab);
    lab.start_agent();
    let only_workers = |tenant: &str, workers: usize| {
        let manifest = Echo { tenant, ..Echo::default() }.manifest();
        let (_, workers_on) = manifest.split_once("[[pools]]").unwrap().1.split_once("[[pools]]").unwrap();
        let (pool, _) = workers_on.split_once("[[publish]]").unwrap();
        let pool = pool.replace("desired_running = 1", &format!("desired_running = {workers}"));
        format!("[tenant]\nid = \"{tenant}\"\n[[pools]]{pool}")
    };
    lab.deploy(&only_workers("bob", 1));
    let neighbour = world(&lab);
    for point in points_of("destroy").map(KillPoint::name) {
        lab.deploy(&only_workers("alice", 2));
        lab.mvm(&["instance", "sleep", &lab.instances("alice/workers")[0]]);
        kill_at(&mut lab, point, &["tenant", "destroy", "alice", "--force"]);
        lab.wait_for("alice is gone", || lab.json(&["tenant", "list"]).as_array().unwrap().len() == 1);
        assert_same(&neighbour, &world(&lab), point);
        assert_tidy(&lab);
    }
}
