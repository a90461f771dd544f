//! What a manifest says, said by commands.

use mvm_harness::{Lab, json};

const POOL: &str = "alice/workers";

fn written(lab: &Lab, tenant: &str) -> String {
    lab.mvm(&["tenant", "info", tenant, "-o", "toml"])
}

/// Runs the words of a line as a command.
fn run(lab: &Lab, line: &str) -> String {
    lab.mvm(&line.split_whitespace().collect::<Vec<_>>())
}

fn fails(lab: &Lab, line: &str) -> String {
    lab.mvm_fails(&line.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn everything_that_a_manifest_says_can_be_said_by_commands() {
    let lab = Lab::new();
    lab.file("secrets/api.key", "x");
    lab.file("secrets/telegram", "y");
    let every = include_str!("every_key.toml").replace("desired_sleeping = 1", "desired_sleeping = 0");
    lab.deploy(&every);
    let by_manifest = written(&lab, "alice");
    lab.mvm(&["tenant", "destroy", "alice", "--force"]);

    run(
        &lab,
        "tenant create alice --net-id 7 --subnet 10.240.7.0/24 --max-vcpus 1 --max-mem-mib 8192 --max-running 8 \
        --max-warm 0 --max-pools 4 --max-instances-per-pool 16 --max-disk-gib 50",
    );
    run(&lab, "pool create alice/gateways --role gateway --egress any");
    run(
        &lab,
        "pool create alice/workers --vcpus 1 --mem-mib 200 --running 0 --egress 192.0.2.0/24:443 --egress 198.51.100.7 \
        --secret-scope none --min-running-seconds 1 --min-warm-seconds 2 --drain-timeout-seconds 3 --restart-policy never",
    );
    let text = written(&lab, "alice");
    assert!(lab.deploy(&text).contains("nothing to do: alice is as "), "{text}");

    // What was said is changed, and the rest stays.
    let said = run(
        &lab,
        "pool update alice/workers --mem-mib 192 --data-disk-mib 16 --graceful-shutdown-seconds 4 --sleeping 0 \
        --snapshot-compression lz4 --spares 0 --sleep-after-seconds 9 --profile minimal --image minimal",
    );
    for how in
        ["resources changed", "runtime policy changed", "snapshot compression changed", "spares changed"]
    {
        assert!(said.contains(&format!("alice/workers: {how}")), "{said}");
    }
    assert!(said.contains("alice: 5 changes made"), "{said}");
    run(
        &lab,
        "tenant update alice --max-vcpus 8 -p 8080:gateways:80 -p 0.0.0.0:9090:gateways:80 --route \
        name=all,port=80,path_prefix=/a,source_cidr=203.0.113.0/24,pool=workers,instance=10.240.7.3,target_port=8080 \
        --route name=other,port=81,pool=workers,target_port=1",
    );
    run(&lab, "tenant update alice --unpublish 9090 --unroute other");
    assert!(run(&lab, "tenant update alice --max-vcpus 8 -p 8080:gateways:80").contains("nothing to do"));
    assert!(lab.host().run("ss", &["-Hltn"]).contains("127.0.0.1:8080 "));

    // Secrets come by a manifest; what a pool is given of them is said by a command.
    lab.deploy(&format!("{}\n[secrets]\napi_key = {{ file = \"secrets/api.key\" }}\ntelegram_token = {{ file = \"secrets/telegram\" }}\n", written(&lab, "alice")));
    run(&lab, "pool update alice/workers --secret-scope default=API_KEY");
    assert_eq!(written(&lab, "alice"), by_manifest);
}

#[test]
fn a_mistake_is_told_at_its_flag_and_changes_nothing() {
    let lab = Lab::new();
    run(&lab, "tenant create alice --max-pools 2 --max-running 1");
    run(&lab, "pool create alice/workers --vcpus 1 --mem-mib 192");
    run(&lab, "tenant update alice --publish 8080:workers:80");
    let before = written(&lab, "alice");
    for (line, said) in [
        ("tenant create alice", "error: tenant alice is there already: `mvm tenant update` changes it"),
        ("tenant update bob --max-vcpus 1", "error: there is no tenant `bob`"),
        ("tenant create bob --net-id 5000", "error: --net-id: must be 0 to 4095, not 5000"),
        ("tenant create bob --net-id 0", "error: --net-id: tenant alice has this number"),
        ("tenant create bob --subnet 192.168.0.0/24", "error: --subnet: subnet 192.168.0.0/24 is not usable"),
        (
            "tenant update alice --max-pools 0",
            "error: --max-pools: quota max_pools = 0 is too small: 1 needed",
        ),
        ("tenant update alice --publish 8080:none:1", "error: --publish: there is no pool `none`"),
        ("tenant update alice --unpublish 9", "error: --unpublish: 9 is not published by alice"),
        ("tenant update alice --unroute x", "error: --unroute: there is no route `x`"),
        (
            "tenant update alice --route name=x,pool=workers,target_port=1",
            "error: --route: route `x` matches everything",
        ),
        ("tenant update alice", "error: say what is to change"),
        ("pool create alice/workers", "error: pool alice/workers is there already"),
        ("pool create bob/workers", "error: there is no tenant `bob`"),
        ("pool update alice/none --vcpus 1", "error: tenant alice has no pool `none`"),
        ("pool update alice/workers", "error: say what is to change"),
        ("pool update alice/workers --vcpus 99", "error: --vcpus: must be 1 to 32, not 99"),
        (
            "pool update alice/workers --restart-policy x",
            "error: --restart-policy: `x` is not a restart policy",
        ),
        ("pool update alice/workers --egress 192.0.2.1/24", "error: --egress: `192.0.2.1/24` has bits set"),
        (
            "pool update alice/workers --image nonesuch",
            "error: --image: there is no built-in image `nonesuch`",
        ),
        ("pool update alice/workers --image ./nonesuch", "error: --image: there is no recipe"),
        (
            "pool update alice/workers --secret-scope default=X",
            "error: --secret-scope: [secrets] does not give `default/X`",
        ),
        ("pool update alice/workers --running 2", "error: quota max_running = 1 is too small: 2 needed"),
        ("pool create alice/second --role king", "error: --role: `king` is not a role"),
        ("instance create alice/none", "error: tenant alice has no pool `none`"),
    ] {
        let told = fails(&lab, line);
        assert!(told.contains(said), "{line}: {said} is not in\n{told}");
        assert_eq!(told.matches("error:").count(), 1, "{told}");
    }
    assert_eq!(written(&lab, "alice"), before);
    assert_eq!(lab.json(&["tenant", "list"]).as_array().unwrap().len(), 1);

    let would = lab.json(&["pool", "update", POOL, "--vcpus", "2", "--dry-run"]);
    assert_eq!(would["diff"], json!([{ "what": POOL, "key": "vcpus", "from": 1, "to": 2 }]));
    assert_eq!(written(&lab, "alice"), before);
}

#[test]
fn a_port_is_moved_where_its_new_place_is_free() {
    let lab = Lab::new();
    run(&lab, "tenant create alice");
    run(&lab, "pool create alice/workers --vcpus 1 --mem-mib 192");
    run(&lab, "tenant update alice -p 8080:workers:80");
    let before = written(&lab, "alice");
    let taken = lab.host().inside(|| std::net::TcpListener::bind("127.0.0.2:8080").unwrap());
    let moved = "tenant update alice --unpublish 8080 -p 0.0.0.0:8080:workers:80";
    let told = fails(&lab, moved);
    assert!(told.contains("error: --publish: 0.0.0.0:8080 cannot be published: another process"), "{told}");
    let listening = || lab.host().run("ss", &["-Hltn"]);
    assert!(written(&lab, "alice") == before && listening().contains("127.0.0.1:8080 "));
    drop(taken);
    run(&lab, moved);
    assert!(listening().contains("0.0.0.0:8080 ") && !listening().contains("127.0.0.1:8080 "));
    run(&lab, "tenant update alice --unpublish 8080 -p 8080:workers:80");
    assert!(!listening().contains("0.0.0.0:8080 ") && listening().contains("127.0.0.1:8080 "));
}

#[test]
fn one_more_instance_is_made_where_quota_and_subnet_have_room_and_one_that_is_destroyed_is_not_wanted() {
    let lab = Lab::new();
    // Four addresses.
    run(&lab, "tenant create alice --subnet 10.250.0.0/29 --max-running 2");
    run(&lab, "pool create alice/workers --vcpus 1 --mem-mib 192 --data-disk-mib 16 --spares 0");
    let first = run(&lab, "instance create alice/workers");
    assert_eq!(lab.instances(POOL), [first.trim()], "it prints the address");
    assert_eq!(lab.state(first.trim()), "running");
    let second = lab.json(&["instance", "create", POOL, "--sleeping"]);
    let (second, ip) = (second[0]["instance"].as_str().unwrap(), &second[0]["ip"]);
    assert_eq!((lab.state(second).as_str(), &lab.info(second)["ip"]), ("sleeping", ip));
    let wanted = || lab.json(&["pool", "info", POOL])["spec"]["desired"].clone();
    assert_eq!(wanted(), json!({ "running": 1, "warm": 0, "sleeping": 1 }));

    run(&lab, "tenant update alice --max-running 1");
    let quota = fails(&lab, "instance create alice/workers");
    assert!(quota.contains("error: quota max_running = 1 is too small: 2 needed; raise it"), "{quota}");
    // What is wanted would fit, and what runs does not leave room for its first start.
    let once = fails(&lab, "instance create alice/workers --sleeping");
    assert!(once.contains("max_running = 1") && once.contains("runs once before"), "{once}");
    assert_eq!((lab.instances(POOL).len(), &wanted()["sleeping"]), (2, &json!(1)));
    run(&lab, "tenant update alice --max-running none");
    // One that sleeps already is none of those that are to run.
    let third = run(&lab, "instance create alice/workers");
    assert_eq!(lab.state(third.trim()), "running");
    run(&lab, "pool update alice/workers --sleeping 2");
    let full = fails(&lab, "instance create alice/workers --sleeping");
    assert!(
        full.contains("error: the subnet is full: it has addresses for 4 instances and 5 are wanted"),
        "{full}"
    );
    assert_eq!(lab.instances(POOL).len(), 4);

    for (gone, left) in [(second, json!([2, 1])), (first.trim(), json!([1, 1]))] {
        lab.mvm(&["instance", "destroy", gone, "--force"]);
        assert_eq!(json!([wanted()["running"], wanted()["sleeping"]]), left);
    }
    assert!(lab.deploy(&written(&lab, "alice")).contains("nothing to do: alice is as "));
    assert!(run(&lab, "tenant update alice --max-running 5").contains("alice: quotas changed"));
    assert_eq!(lab.instances(POOL).len(), 2, "it is not made again by the next command either");
}
