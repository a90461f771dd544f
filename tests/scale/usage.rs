//! What machines and the node take: numbers that fit what is known otherwise, and one another.

use mvm_harness::{Lab, Value};

use crate::manifest::empty_pool;

const MIB: u64 = 1 << 20;

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

#[test]
fn what_machines_and_the_node_take_is_told() {
    let lab = Lab::new();
    lab.deploy(&empty_pool(""));
    lab.mvm(&["pool", "scale", "alice/workers", "--running", "2", "--sleeping", "1"]);
    let stats = instances(&lab);
    node(&lab, &stats);
    disk(&lab, &stats);
    for command in [&["instance", "stats"][..], &["node", "info"], &["node", "stats"], &["node", "disk"]] {
        let table = lab.mvm(command);
        assert!(table.contains("alice") || table.contains("2 running, 1 sleeping"), "{table}");
        assert!(!lab.mvm(&[command, &["-o", "yaml"]].concat()).is_empty());
    }
    assert!(lab.mvm_fails(&["instance", "stats", "bob"]).contains("no tenant `bob`"));
    assert!(lab.mvm_fails(&["instance", "stats", "alice/other"]).contains("no pool `other`"));
}

fn instances(lab: &Lab) -> Vec<Value> {
    let all = lab.json(&["instance", "stats"]).as_array().unwrap().clone();
    assert_eq!(all.len(), 3);
    for one in &all {
        assert_eq!(one["mem_mib"], 192);
        let disk = number(one, "data_disk_bytes");
        assert!((64 << 10..=16 * MIB).contains(&disk), "blocks of a file system: {one}");
        if one["state"] == "sleeping" {
            assert!((MIB..192 * MIB).contains(&number(one, "snapshot_bytes")), "{one}");
            for absent in ["pid", "resident_bytes", "proportional_bytes", "cpu_percent", "uptime_seconds"] {
                assert!(one[absent].is_null(), "{absent} of {one}");
            }
            continue;
        }
        assert_eq!(number(one, "snapshot_bytes"), 0, "{one}");
        let (shared, whole) = (number(one, "proportional_bytes"), number(one, "resident_bytes"));
        assert!((20 * MIB..(192 + 128) * MIB).contains(&shared) && shared <= whole, "{one}");
        assert!(one["cpu_seconds"].as_f64().unwrap() > 0.0, "{one}");
        assert!((0.0..=800.0).contains(&one["cpu_percent"].as_f64().unwrap()), "{one}");
        assert!(number(one, "uptime_seconds") < 600, "{one}");
    }
    let address = format!("alice/workers/{}", all[0]["id"].as_str().unwrap());
    let one = lab.json(&["instance", "stats", &address]);
    assert_eq!((one.as_array().unwrap().len(), &one[0]["id"]), (1, &all[0]["id"]));
    for owner in ["alice", "alice/workers"] {
        assert_eq!(lab.json(&["instance", "stats", owner]).as_array().unwrap().len(), 3);
    }
    all
}

fn node(lab: &Lab, instances: &[Value]) {
    let info = lab.json(&["node", "info"]);
    assert!(number(&info, "available_bytes") < number(&info, "memory_bytes"), "{info}");
    assert!(info["engine"].as_str().unwrap().starts_with("qemu ") && number(&info, "cores") > 0, "{info}");
    for text in ["host", "kernel", "cpu_model", "version"] {
        assert!(!info[text].as_str().unwrap().is_empty(), "{text} in {info}");
    }
    for folder in ["data_dir", "run_dir"] {
        assert!(number(&info[folder], "free_bytes") <= number(&info[folder], "total_bytes"), "{info}");
    }
    assert_eq!((number(&info, "tenants"), number(&info["instances"], "sleeping")), (1, 1), "{info}");

    let stats = lab.json(&["node", "stats"]);
    assert_eq!((number(&stats["vmms"], "count"), number(&stats["instances"], "running")), (2, 2), "{stats}");
    let sum: u64 = instances.iter().filter_map(|one| one["proportional_bytes"].as_u64()).sum();
    let all = number(&stats["vmms"], "proportional_bytes");
    assert!(all.abs_diff(sum) < sum / 4, "{all} of all VMMs, {sum} one by one");
    let agent = &stats["agent"];
    assert!((4 * MIB..300 * MIB).contains(&number(agent, "resident_bytes")), "{agent}");
    assert!(agent["cpu_seconds"].as_f64().unwrap() > 0.0 && number(agent, "pid") > 0, "{agent}");
    assert!((0.0..=100.0).contains(&stats["cpu_percent"].as_f64().unwrap()), "{stats}");
    let starts = stats["starts"].as_array().unwrap();
    let counted: u64 = starts.iter().map(|start| number(start, "count")).sum();
    assert_eq!(counted, 2, "{starts:?}");
    for start in starts {
        let ms = |what: &str, which: &str| start[what][which].as_f64().unwrap();
        assert!(0.0 < ms("confirmed_ms", "median") && ms("confirmed_ms", "median") <= ms("total_ms", "p95"));
        assert!(ms("total_ms", "median") <= ms("total_ms", "p95"), "{start}");
    }
}

fn disk(lab: &Lab, instances: &[Value]) {
    let disk = lab.json(&["node", "disk"]);
    let tenants = disk["tenants"].as_array().unwrap();
    let [alice] = tenants.as_slice() else { panic!("{disk}") };
    assert_eq!((&alice["tenant"], number(alice, "instances")), (&"alice".into(), 3));
    for key in ["data_disk_bytes", "snapshot_bytes"] {
        let sum: u64 = instances.iter().map(|one| number(one, key)).sum();
        // Guests that run may have written in between.
        assert!(number(alice, key).abs_diff(sum) <= 2 * MIB, "{key}: {disk} and {sum} one by one");
    }
    assert!(number(&disk, "images_bytes") > 20 * MIB && number(&disk, "other_bytes") > 0, "{disk}");
    let parts = ["images_bytes", "bases_bytes", "other_bytes"].map(|part| number(&disk, part));
    let tenants = number(alice, "data_disk_bytes") + number(alice, "snapshot_bytes");
    assert_eq!(parts.iter().sum::<u64>() + tenants, number(&disk, "total_bytes"), "{disk}");
    assert!(number(&disk["data_dir"], "free_bytes") > 0);
}
